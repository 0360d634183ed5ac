"""The plot of several runs' training: their losses over one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.report.charts import INK, RUN_COLOURS, canvas, short, to_svg
from eval.report.charts_training import smooth, thin

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1)))
_DOTTED: Any = (0, (1, 2))


def losses(
    runs: Sequence[tuple[str, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]],
    *,
    order: Mapping[str, int],
    title: str,
    ident: str,
) -> str:
    """The running mean of each run's loss, its validation loss as dots.

    Args:
        runs: (name, steps, validations) of a phase.
        order: name → place among all runs, which gives its colour; beyond the colours there are, its dashes.
        title: what is shown, for readers that cannot see it. ident: prefix of the ids inside.
    """
    from matplotlib.ticker import MaxNLocator

    with canvas(3.4 + 0.2 * (len(runs) // 2)) as figure:
        axes = figure.add_subplot()
        for name, steps, validations in runs:
            colour = RUN_COLOURS[order[name] % len(RUN_COLOURS)]
            dashes = _DASHES[order[name] // len(RUN_COLOURS) % len(_DASHES)]
            points = smooth(thin([(s["step"], s["loss"]) for s in steps]))
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, label=short(name, 26))
            if validations:
                held_out = [(v["step"], v["validation_loss"]) for v in validations]
                axes.plot(*zip(*held_out, strict=True), color=colour, marker="o", markersize=4.5, lw=1, ls=_DOTTED)
        axes.set_ylabel("loss")
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, labelcolor=INK, borderaxespad=0)
        axes.tick_params(length=0)
        axes.grid(axis="x", visible=False)
        return to_svg(figure, title, ident)
