"""The plots of the report as inline SVG.

Invariant: the same numbers give the same bytes, and a plot has no colours of its own: it is drawn in placeholders that
become `currentColor` or CSS variables, so that one file looks right on light, dark and printed pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, LINE, SURFACE, WARN = "#010101", "#020202", "#030303", "#0b0b0b", "#0a0a0a"
KIND_COLOURS = {
    "finetuned": "#040404",
    "pretrained": "#050505",
    "untrained": "#060606",
    "teacher": "#070707",
    "baseline": "#080808",
    "bm25": "#090909",
    "checkpoint": "#050505",  # as what it was made from
}
RUN_COLOURS = ("#0c0c0c", "#0d0d0d", "#0e0e0e", "#0f0f0f", "#101010", "#111111")
"""Of runs side by side."""
_CSS = {
    INK: "currentColor",
    FAINT: "var(--faint)",
    LINE: "var(--line)",
    SURFACE: "var(--surface)",
    WARN: "var(--warn)",
    **{colour: f"var(--{kind})" for kind, colour in KIND_COLOURS.items() if kind != "checkpoint"},
    **{colour: f"var(--run{number})" for number, colour in enumerate(RUN_COLOURS)},
}
_DASHES: dict[str, Any] = {
    "teacher": (0, (5, 2)),
    "baseline": (0, (2, 1.5)),
    "bm25": (0, (1, 1)),
    "untrained": (0, (4, 1, 1, 1)),
}
_WIDTH_IN = 6.4


@contextmanager
def canvas(height_in: float) -> Iterator[Figure]:
    """A figure of the page's width in the placeholders' colours."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rumpun",
        "font.size": 11.5,
        "font.family": "DejaVu Sans",
        "text.color": INK,
        "text.parse_math": False,
        "axes.labelcolor": FAINT,
        "axes.edgecolor": LINE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": LINE,
        "grid.linewidth": 0.7,
        "xtick.color": LINE,
        "ytick.color": LINE,
        "xtick.labelcolor": FAINT,
        "ytick.labelcolor": FAINT,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        yield Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")


def to_svg(figure: Figure, label: str, ident: str) -> str:
    """The figure as an SVG element that scales with its box; ids get the prefix `ident`, for they share one page."""
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{ident}-', text)
    text = re.sub(r"url\(#", f"url(#{ident}-", text)
    text = re.sub(r'(xlink:)?href="#', f'href="#{ident}-', text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    safe = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    text = text.replace("<svg", f'<svg role="img" aria-label="{safe}"', 1)
    for placeholder, css in _CSS.items():
        text = text.replace(placeholder, css)
    return re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", text)


def _ranked(systems: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(system["name"], _colour(system["kind"])) for system in systems]


def _colour(kind: str) -> str:
    """The placeholder of a kind of system, or of a run as `run0`, `run1` …"""
    if kind.startswith("run") and kind[3:].isdigit():
        return RUN_COLOURS[int(kind[3:]) % len(RUN_COLOURS)]
    return KIND_COLOURS.get(kind, KIND_COLOURS["baseline"])


def short(name: str, limit: int = 20) -> str:
    """The name, cut to so many characters with an ellipsis."""
    return name if len(name) <= limit else name[: limit - 1] + "…"


def bars(
    systems: Sequence[Mapping[str, Any]], metrics: Mapping[str, Mapping[str, float]], *, title: str, ident: str
) -> str:
    """One horizontal bar a system with the interval of its mean.

    Args:
        systems: name and kind, in the order of the page.
        metrics: system name → mean, low, high.
        title: what is shown, for readers that cannot see it.
        ident: prefix of the ids inside.
    """
    drawn = [(name, colour) for name, colour in _ranked(systems) if name in metrics]
    with canvas(0.55 + 0.36 * len(drawn)) as figure:
        axes = figure.add_subplot()
        for row, (name, colour) in enumerate(drawn):
            metric = metrics[name]
            mean = metric["mean"]
            axes.barh(row, mean, height=0.66, color=colour, linewidth=0)
            spread = [[max(0.0, mean - metric["low"])], [max(0.0, metric["high"] - mean)]]
            axes.errorbar(mean, row, xerr=spread, color=INK, linewidth=1.2, capsize=3)
            axes.text(max(metric["high"], mean) + 0.015, row, f"{mean:.3f}", va="center", color=INK)
        axes.set_yticks(range(len(drawn)), [short(name) for name, _ in drawn])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.tick_params(axis="x", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return to_svg(figure, title, ident)


def curves(
    systems: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, Mapping[str, float]]],
    ks: Sequence[int],
    *,
    title: str,
    ident: str,
) -> str:
    """Recall at each k, one line a system, its name at the end of the line.

    Args:
        systems: name and kind.
        metrics: system name → metric name → mean, low, high.
        ks: the ranks.
        title: what is shown, for readers that cannot see it.
        ident: prefix of the ids inside.
    """
    kinds = {system["name"]: system["kind"] for system in systems}
    drawn = [(name, colour) for name, colour in _ranked(systems) if name in metrics]
    with canvas(3.6) as figure:
        axes = figure.add_subplot()
        places = list(range(len(ks)))
        for name, colour in drawn:
            rows = [metrics[name][f"recall@{k}"] for k in ks]
            means = [r["mean"] for r in rows]
            chosen = kinds[name] == "finetuned"
            if chosen:  # bands of every system would hide the lines; the bars carry all intervals
                low, high = [r["low"] for r in rows], [r["high"] for r in rows]
                axes.fill_between(places, low, high, color=colour, alpha=0.16, lw=0)
            axes.plot(
                places, means, color=colour, marker="o", markersize=5 if chosen else 3.5,
                linewidth=2.6 if chosen else 1.6, linestyle=_DASHES.get(kinds[name], "-"), zorder=4 if chosen else 3,
            )  # fmt: skip
        ends = {name: metrics[name][f"recall@{ks[-1]}"]["mean"] for name, _ in drawn}
        bottom = max(0.0, min((m[f"recall@{ks[0]}"]["mean"] for m in metrics.values()), default=0.0) - 0.08)
        highest = max((m[f"recall@{ks[-1]}"]["mean"] for m in metrics.values()), default=1.0)
        top = min(1.02, max(highest + 0.08, bottom + 0.2))
        placed = _spread(ends, gap=(top - bottom) * 0.076, low=bottom, high=top)
        for name, colour in drawn:
            leader = {"arrowstyle": "-", "color": colour, "lw": 1, "shrinkA": 1, "shrinkB": 2, "relpos": (0, 0.5)}
            axes.annotate(
                short(name), (places[-1], ends[name]), xytext=(places[-1] + 0.04 * max(1, len(ks) - 1), placed[name]),
                va="center", color=INK if kinds[name] == "finetuned" else FAINT, fontsize=11,
                fontweight="bold" if kinds[name] == "finetuned" else "normal",
                arrowprops=leader, annotation_clip=False,
            )  # fmt: skip
        axes.set_xticks(places, [str(k) for k in ks])
        axes.set_xlabel("documents read, k")
        axes.set_xlim(-0.15, places[-1] + 0.05)
        axes.set_ylim(bottom, top)
        axes.grid(axis="x", visible=False)
        axes.tick_params(length=0)
        return to_svg(figure, title, ident)


def _spread(values: Mapping[str, float], *, gap: float, low: float, high: float) -> dict[str, float]:
    """Positions near the values, in their order, at least `gap` apart and inside [low, high] where that fits."""
    order = sorted(values, key=lambda name: (values[name], name))
    placed: list[float] = []
    for name in order:
        placed.append(max(values[name], placed[-1] + gap if placed else low))
    ceiling = high
    for index in reversed(range(len(placed))):
        placed[index] = min(placed[index], ceiling)
        ceiling = placed[index] - gap
    return dict(zip(order, placed, strict=True))


def compact(value: float) -> str:
    """A number in few characters: 0, 3e-4, 0.25, 950, 12.5k, 3.1M."""
    if value == 0:
        return "0"
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    if abs(value) >= 0.01:
        return f"{value:.3g}"
    return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def times(stages: Iterable[tuple[str, float, float]], *, title: str, ident: str) -> str:
    """Where the seconds went: for each (stage, work seconds, overhead seconds) one bar in two parts."""
    rows = list(stages)
    longest = max((work + rest for _, work, rest in rows), default=0.0) or 1.0
    with canvas(0.95 + 0.32 * len(rows)) as figure:
        axes = figure.add_subplot()
        for row, (_, work, rest) in enumerate(rows):
            first, second = ("work", "overhead") if row == 0 else ("_", "_")
            axes.barh(row, work, height=0.64, color=KIND_COLOURS["finetuned"], linewidth=0, label=first)
            axes.barh(row, rest, left=work, height=0.64, color=KIND_COLOURS["bm25"], linewidth=0, label=second)
            axes.text(work + rest + longest * 0.015, row, f"{seconds(work + rest)}", va="center", color=INK)
        axes.set_yticks(range(len(rows)), [short(name) for name, _, _ in rows])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.tick_params(axis="x", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.16)
        axes.set_xlabel("seconds")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, labelcolor=INK, borderaxespad=0)
        return to_svg(figure, title, ident)


def seconds(value: float) -> str:
    """A duration for people: 0.42 s, 8.1 s, 75 s, 12.5 min, 3.2 h."""
    if value < 1:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"


def histogram(
    series: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, xlabel: str, title: str, ident: str
) -> str:
    """Counts per bin as outlined steps.

    Args:
        series: (name, edges [bins + 1], counts [bins]); up to three share one plot.
        xlabel: the quantity along the axis.
        title: what is shown, for readers that cannot see it.
        ident: prefix of the ids inside.
    """
    colours = [KIND_COLOURS["finetuned"], KIND_COLOURS["bm25"], KIND_COLOURS["teacher"]]
    with canvas(2.6) as figure:
        axes = figure.add_subplot()
        for (name, edges, counts), colour in zip(series, colours, strict=False):
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(counts, edges, color=colour, linewidth=1.6, label=name)
        axes.set_xlabel(xlabel)
        axes.set_ylim(bottom=0)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, labelcolor=INK, borderaxespad=0)
        axes.grid(axis="x", visible=False)
        axes.tick_params(length=0)
        return to_svg(figure, title, ident)
