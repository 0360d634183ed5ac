"""The plot of robustness: how much each kind of damage costs, a few systems side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.report.charts import INK, KIND_COLOURS, LINE, canvas, short, to_svg

_MARKS = ("o", "s", "D", "^")


def losses(
    kinds: Sequence[str],
    systems: Sequence[tuple[str, str]],
    lost: Mapping[tuple[str, str], Mapping[str, float]],
    *,
    metric: str,
    title: str,
    ident: str,
) -> str:
    """One row a kind of damage, in it one dot a system with the interval of what it loses.

    Args:
        kinds: labels of the rows, from the top.
        systems: (name, kind of system), at most four.
        lost: (kind, system) → mean, low, high of the clean value less the damaged one.
        metric: what is lost.
        title: what is shown, for readers that cannot see it. ident: prefix of the ids inside.
    """
    step = 0.56 / max(1, len(systems))
    with canvas(1.15 + (0.17 * len(systems) + 0.17) * len(kinds)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=LINE, linewidth=1.4, zorder=1)
        for row in range(1, len(kinds)):
            axes.axhline(row - 0.5, color=LINE, linewidth=0.6, zorder=1)
        for number, (name, kind) in enumerate(systems):
            at = [(row, lost[label, name]) for row, label in enumerate(kinds) if (label, name) in lost]
            places = [row + (number - (len(systems) - 1) / 2) * step for row, _ in at]
            means = [told["mean"] for _, told in at]
            arms = [[max(0.0, t["mean"] - t["low"]) for _, t in at], [max(0.0, t["high"] - t["mean"]) for _, t in at]]
            axes.errorbar(
                means, places, xerr=arms, color=KIND_COLOURS.get(kind, INK), marker=_MARKS[number % len(_MARKS)],
                markersize=5.5, linestyle="none", linewidth=1.4, label=short(name, 26),
            )  # fmt: skip
        axes.set_yticks(range(len(kinds)), [short(label, 26) for label in kinds])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(len(kinds) - 0.45, -0.55)
        axes.set_xlabel(f"{metric} lost")
        axes.grid(axis="y", visible=False)
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, labelcolor=INK, borderaxespad=0, handlelength=1.2)
        return to_svg(figure, title, ident)
