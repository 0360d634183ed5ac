"""The plot of a chain of jobs: one bar a link along the time, in the colours of what it did, and why it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.report.charts import FAINT, INK, KIND_COLOURS, LINE, SURFACE, WARN, canvas, short, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP_COLOURS = {
    "train": KIND_COLOURS["finetuned"],
    "evaluate": KIND_COLOURS["pretrained"],
    "stages": KIND_COLOURS["untrained"],
    "save": KIND_COLOURS["teacher"],
    "start-up": KIND_COLOURS["baseline"],
    "idle": KIND_COLOURS["bm25"],
    "wait": LINE,
    "lost": WARN,
}
"""Green is what counts, grey what it costs, the warning colour what was lost."""
_WIDTH_IN = 13.4
_UNITS = (
    (86400.0 * 3, 86400.0, "days"),
    (3600.0 * 3, 3600.0, "hours"),
    (180.0, 60.0, "minutes"),
    (0.0, 1.0, "seconds"),
)
_LABEL = 46
_BEHIND = {"facecolor": SURFACE, "edgecolor": "none", "alpha": 0.8, "pad": 1.5}


def timeline(
    links: Sequence[Mapping[str, Any]], *, groups: Mapping[str, str], labels: Mapping[str, str], title: str, ident: str
) -> str:
    """One horizontal bar a link, cut into its intervals, the cause of its end beside it.

    Args:
        links: name, cause and intervals (kind, begin, end in epoch seconds), in the order of the page.
        groups: kind → group. labels: group → its name in the legend.
        title: what is shown, for readers that cannot see it.
        ident: prefix of the ids inside.
    """
    from matplotlib.ticker import MaxNLocator

    drawn = [link for link in links if link["intervals"]]
    first = min((link["intervals"][0]["begin"] for link in drawn), default=0.0)
    span = max((link["intervals"][-1]["end"] for link in drawn), default=0.0) - first
    span = span if span > 0 else 1.0
    unit_s, unit = next((size, name) for least, size, name in _UNITS if span >= least)
    row_in = 0.36 if len(drawn) <= 14 else 0.27
    with canvas(1.25 + row_in * max(1, len(drawn))) as figure:
        figure.set_figwidth(_WIDTH_IN)
        axes = figure.add_subplot()
        used: dict[str, str] = {}
        for row, link in enumerate(drawn):
            for group, begin, end in _pieces(link["intervals"], groups, least=span / 1500):
                used.setdefault(group, GROUP_COLOURS.get(group, FAINT))
                thin = group == "wait"
                axes.barh(
                    row, (end - begin) / unit_s, left=(begin - first) / unit_s, height=0.16 if thin else 0.66,
                    color=used[group], linewidth=0, zorder=2 if thin else 3,
                )  # fmt: skip
            _say(axes, row, link, first, span, unit_s)
        axes.set_yticks(range(len(drawn)), [short(str(link["name"]), 24) for link in drawn])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(len(drawn) - 0.4, -0.6)
        axes.set_xlim(0, 1.02 * span / unit_s)
        axes.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10]))
        axes.set_xlabel(f"{unit} since the first was handed in")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        order = [group for group in GROUP_COLOURS if group in used]
        handles = [axes.barh(0, 0, color=used[group], linewidth=0) for group in order]
        axes.legend(
            handles, [labels.get(group, group) for group in order], loc="lower left", bbox_to_anchor=(0, 1),
            ncols=max(1, len(order)), labelcolor=INK, borderaxespad=0, handlelength=1.1, columnspacing=1.4,
        )  # fmt: skip
        return to_svg(figure, title, ident)


def _pieces(
    intervals: Sequence[Mapping[str, Any]], groups: Mapping[str, str], *, least: float
) -> list[tuple[str, float, float]]:
    """(group, begin, end) of what can be seen: neighbours of one group in one, and nothing narrower than `least`,
    which would be drawn as nothing and only make the page heavy. What was lost is always drawn."""
    merged: list[tuple[str, float, float]] = []
    for part in intervals:
        group = groups.get(part["kind"], "")
        if merged and merged[-1][0] == group:
            merged[-1] = (group, merged[-1][1], part["end"])
        else:
            merged.append((group, part["begin"], part["end"]))
    found: list[tuple[str, float, float]] = []
    for group, begin, end in merged:
        if found and found[-1][0] == group:
            found[-1] = (group, found[-1][1], end)
        elif end - begin >= least or group == "lost" or not found:
            found.append((group, begin, max(end, begin + least) if group == "lost" else end))
        else:
            found[-1] = (found[-1][0], found[-1][1], end)
    return found


def _say(axes: Axes, row: int, link: Mapping[str, Any], first: float, span: float, unit_s: float) -> None:
    """The cause: right of the bar, or left of it where the bar ends far to the right."""
    if not link["cause"]:
        return
    begin, end = link["intervals"][0]["begin"] - first, link["intervals"][-1]["end"] - first
    text, pad = short(str(link["cause"]), _LABEL), 0.006 * span
    needed = (len(text) + 1) * 0.0068 * span
    size: dict[str, Any] = {"fontsize": 10.5, "color": INK, "va": "center", "zorder": 4}
    if end + needed <= span:
        axes.text((end + pad) / unit_s, row, text, ha="left", **size)
    elif begin >= needed:
        axes.text((begin - pad) / unit_s, row, text, ha="right", **size)
    else:  # the bar takes the whole width
        axes.text(span / unit_s, row, text, ha="right", **size, bbox=_BEHIND)
