"""The plot of a depth probe: a metric after every layer of the base, and how far each layer turns the states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.charts import FAINT, INK, KIND_COLOURS, canvas, short, to_svg


def depths(
    rows: Sequence[Mapping[str, Any]],
    cut: Mapping[str, Any] | None,
    *,
    kept: int | None,
    metric: str,
    title: str,
    ident: str,
) -> str:
    """A metric after every layer with the band of its interval, over how far each layer turns the states.

    Args:
        rows: `layers`, `recall` (mean, low, high) and `turn` (None for the embeddings).
        cut: a list cut's `layers` and `recall`, drawn apart: it is no prefix.
        kept: the depth of the recipe's cut, None where it is a list.
        metric: name of the metric.
        title: what is shown, for readers that cannot see it.
        ident: prefix of the ids inside.
    """
    from matplotlib.ticker import MaxNLocator

    colour = KIND_COLOURS["finetuned"]
    places = [row["layers"] for row in rows]
    means, lows, highs = ([row["recall"][key] for row in rows] for key in ("mean", "low", "high"))
    with canvas(4.0) as figure:
        recall, turn = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 1]})
        recall.fill_between(places, lows, highs, color=colour, alpha=0.16, lw=0)
        recall.plot(places, means, color=colour, marker="o", markersize=4)
        if kept in places:
            row = rows[places.index(kept)]
            recall.axvline(kept, color=FAINT, linewidth=1, linestyle=(0, (3, 2)), zorder=1)
            recall.plot(
                [kept], [row["recall"]["mean"]], color=INK, marker="o", markersize=8, linestyle="none", label="this cut"
            )
        if cut is not None:
            mean, place = cut["recall"]["mean"], len(cut["layers"])
            spread = [[mean - cut["recall"]["low"]], [cut["recall"]["high"] - mean]]
            name = f"this cut: layers {', '.join(map(str, cut['layers']))}"
            recall.errorbar(
                [place],
                [mean],
                yerr=spread,
                color=INK,
                marker="D",
                markersize=6,
                linestyle="none",
                capsize=3,
                label=short(name, 44),
            )
        recall.set_ylim(bottom=0)
        recall.set_ylabel(metric)
        if recall.get_legend_handles_labels()[0]:
            recall.legend(loc="lower left", bbox_to_anchor=(0, 1), labelcolor=INK, borderaxespad=0)
        turned = [(row["layers"], row["turn"]) for row in rows if row["turn"] is not None]
        turn.bar(*zip(*turned, strict=True), width=0.62, color=KIND_COLOURS["untrained"], linewidth=0)
        turn.set_ylabel("turn")
        turn.set_xlabel("layers kept, from the first")
        turn.set_xlim(-0.6, places[-1] + 0.6)
        turn.xaxis.set_major_locator(MaxNLocator(12, integer=True))
        turn.yaxis.set_major_locator(MaxNLocator(2))
        figure.align_ylabels()
        for axes in (recall, turn):
            axes.tick_params(length=0)
            axes.grid(axis="x", visible=False)
        return to_svg(figure, title, ident)
