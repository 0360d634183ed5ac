"""The plot of a training phase: loss, learning rate, speed, and what was spent on waiting, exchange and padding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.report.charts import INK, KIND_COLOURS, canvas, compact, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

IDLE = (("data_wait", "waiting for data"), ("gather", "exchange"), ("padding", "padding"))
"""Step records' shares of time (the first two) and of tokens that trained nothing, with their labels."""
_POINTS = 400  # drawn on a curve at most; more cannot be seen and makes the page heavy


def thin(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_POINTS` points: means of equal runs of neighbours."""
    size = -(-len(points) // _POINTS)
    runs = [points[i : i + size] for i in range(0, len(points), size)] if size else []
    return [(sum(x for x, _ in run) / len(run), sum(y for _, y in run) / len(run)) for run in runs]


def smooth(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Centred running means over about a twentieth of the points."""
    half = max(1, len(points) // 40)
    result = []
    for i, (x, _) in enumerate(points):
        window = points[max(0, i - half) : i + half + 1]
        result.append((x, sum(y for _, y in window) / len(window)))
    return result


def training(
    steps: Sequence[Mapping[str, Any]],
    validations: Sequence[Mapping[str, Any]],
    *,
    colour: str,
    title: str,
    ident: str,
) -> str:
    """Loss (each step faint, running mean strong, validation as dots) over learning rate and tokens per second.

    Where the steps say them, the shares of `IDLE` come below. `title` is for readers that cannot see the plot, `ident`
    the prefix of the ids inside.
    """
    from matplotlib.ticker import MaxNLocator

    idle = [(key, label) for key, label in IDLE if any(isinstance(s.get(key), float) for s in steps)]
    with canvas(5.7 if idle else 4.6) as figure:
        heights = [3.2, 1, 1, 1.1][: 4 if idle else 3]
        loss, rate, speed, *more = figure.subplots(len(heights), 1, sharex=True, gridspec_kw={"height_ratios": heights})
        points = thin([(s["step"], s["loss"]) for s in steps])
        loss.plot(*zip(*points, strict=True), color=colour, alpha=0.35, linewidth=1)
        loss.plot(*zip(*smooth(points), strict=True), color=colour, label="training")
        if validations:
            held_out = [(v["step"], v["validation_loss"]) for v in validations]
            loss.plot(
                *zip(*held_out, strict=True), color=INK, marker="o", markersize=5.5, linewidth=1, linestyle=(0, (2, 2)),
                label="validation",
            )  # fmt: skip
        loss.legend(loc="upper right", labelcolor=INK)
        loss.set_ylabel("loss")
        _panel(rate, steps, "lr", "learning rate", colour)
        _panel(speed, steps, "tokens_per_s", "tokens/s", colour)
        for axes in more:
            _shares(axes, steps, idle)
        last = [speed, *more][-1]
        last.set_xlabel("step")
        last.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        figure.align_ylabels()
        for axes in (loss, rate, speed, *more):
            axes.tick_params(length=0)
            axes.grid(axis="x", visible=False)
        return to_svg(figure, title, ident)


def _panel(axes: Axes, steps: Sequence[Mapping[str, Any]], key: str, label: str, colour: str) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    points = thin([(s["step"], s[key]) for s in steps if isinstance(s.get(key), (int, float))])
    if points:
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.4)
    axes.set_ylabel(label, rotation=0, ha="left", va="bottom")
    axes.yaxis.set_label_coords(0.0, 1.04)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: compact(value)))


def _shares(axes: Axes, steps: Sequence[Mapping[str, Any]], idle: Sequence[tuple[str, str]]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    looks: dict[str, tuple[str, Any]] = {
        "data_wait": (KIND_COLOURS["teacher"], "-"),
        "gather": (INK, (0, (3, 1.5))),
        "padding": (KIND_COLOURS["finetuned"], (0, (1, 1))),
    }
    for key, label in idle:
        colour, dashes = looks[key]
        points = smooth(thin([(s["step"], s[key]) for s in steps if isinstance(s.get(key), (int, float))]))
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, linewidth=1.4, label=label)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_locator(MaxNLocator(2))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, labelcolor=INK, borderaxespad=0, handlelength=2)
