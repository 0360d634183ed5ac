"""Plots of robustness: recall against strength for each kind, and what every kind costs at its highest strength.

Systems are told apart by colour, dash and marker together: the colours are those of Okabe and Ito (2008), which people
with any colour vision can tell apart. They are CSS variables with a fallback, so a plot looks right on a page that
knows nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from eval.report.charts import FAINT, INK, canvas, short, to_svg
from eval.robustness.table import highest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LIGHT = ("#0072b2", "#d55e00", "#009e73", "#b5548b", "#5a5f5d", "#b98500", "#3d8fc4")
DARK = ("#4aa8e0", "#f5894a", "#2fc79c", "#e49ac4", "#b4bab7", "#f0bd4d", "#93cdf2")
_PLACEHOLDERS = tuple(f"#0c0c{number:02x}" for number in range(1, len(LIGHT) + 1))
_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.3)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 3, 3)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def css(selector: str = ":root") -> str:
    """The colours of light and dark pages as CSS variables; print is light."""
    light, dark = (
        " ".join(f"--series-{i}: {colour};" for i, colour in enumerate(colours, start=1)) for colours in (LIGHT, DARK)
    )
    return f"{selector} {{ {light} }} @media screen and (prefers-color-scheme: dark) {{ {selector} {{ {dark} }} }}"


def standalone(svg: str) -> str:
    """A plot of this file as an SVG document of its own, for light and dark surroundings."""
    style = (
        "svg { color: #1c2321; --faint: #5d6864; --line: #dfe3df; --surface: #fff; }"
        " @media (prefers-color-scheme: dark) { svg { color: #e6ebe8; --faint: #9ba7a2; --line: #303936;"
        " --surface: #1a201e; } } text { font-family: system-ui, 'DejaVu Sans', Arial, sans-serif; } "
    )
    at = svg.index(">") + 1
    return f"{svg[:at]}<style>{style}{css('svg')}</style>{svg[at:]}\n"


def _coloured(svg: str) -> str:
    for number, (placeholder, colour) in enumerate(zip(_PLACEHOLDERS, LIGHT, strict=True), start=1):
        svg = svg.replace(placeholder, f"var(--series-{number}, {colour})")
    return svg


def _look(number: int) -> dict[str, Any]:
    return {
        "color": _PLACEHOLDERS[number % len(_PLACEHOLDERS)],
        "marker": _MARKERS[number % len(_MARKERS)],
        "linestyle": _DASHES[number % len(_DASHES)],
    }


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # as many columns as fit the width of the figure: about 72 characters, of which a line and its gap take 7
    columns = max(1, min(len(labels), 72 // (7 + max(map(len, labels), default=1))))
    figure.legend(
        handles, labels, loc="outside upper left", ncols=columns, labelcolor=INK, handlelength=2.4, columnspacing=1.4
    )


def by_strength(results: Mapping[str, Any], kind: str, *, ident: str) -> str:
    """Recall against the strength of a kind, from the clean queries on; one line a system in the band of its interval.

    Args:
        results: the content of a `robustness.json`.
        kind: one of its kinds.
        ident: prefix of the ids inside.
    """
    clean = {row["system"]: row for row in results["clean"]}
    with canvas(2.9) as figure:
        axes = figure.add_subplot()
        for number, system in enumerate(s["name"] for s in results["systems"]):
            rows = [r for r in results["rows"] if r["system"] == system and r["kind"] == kind]
            points = [(0.0, clean[system]), *((r["strength"], r) for r in sorted(rows, key=lambda r: r["strength"]))]
            xs = [x for x, _ in points]
            means, lows, highs = ([r[key] for _, r in points] for key in ("mean", "low", "high"))
            look = _look(number)
            axes.fill_between(xs, lows, highs, color=look["color"], alpha=0.16, lw=0)
            axes.plot(xs, means, label=short(system, 30), markersize=6, **look)
        axes.set_xlim(-0.02, max(results["strengths"]) * 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
        axes.set_xticks([0, *results["strengths"]], ["0", *(f"{s:g}" for s in results["strengths"])])
        axes.set_xlabel("strength")
        axes.set_ylabel(results["metric"])
        _legend(figure, axes)
        axes.grid(axis="x", visible=False)
        axes.tick_params(length=0)
        return _coloured(to_svg(figure, f"{results['metric']} against the strength of {kind}", ident))


def overview(results: Mapping[str, Any], *, ident: str) -> str:
    """What every kind costs each system at its highest strength, with intervals; the costliest kinds at the top.

    Args:
        results: the content of a `robustness.json`.
        ident: prefix of the ids inside.
    """
    systems = [system["name"] for system in results["systems"]]
    tables = [highest(results, name) for name in systems]
    kinds = sorted(results["kinds"], key=lambda kind: -max(table[kind]["lost"] for table in tables))
    with canvas(1.0 + (0.14 + 0.08 * len(systems)) * len(kinds)) as figure:
        axes = figure.add_subplot()
        for number, (name, table) in enumerate(zip(systems, tables, strict=True)):
            look = _look(number)
            look["linestyle"] = "none"
            gap = 0.66 / len(systems)
            places = [row + (number - (len(systems) - 1) / 2) * gap for row in range(len(kinds))]
            rows = [table[kind] for kind in kinds]
            lost = [row["lost"] for row in rows]
            spread = [
                [max(0.0, row["lost"] - row["lost_low"]) for row in rows],
                [max(0.0, row["lost_high"] - row["lost"]) for row in rows],
            ]
            axes.errorbar(
                lost, places, xerr=spread, label=short(name, 30), markersize=5, elinewidth=1.4, capsize=0, **look
            )
        axes.axvline(0, color=FAINT, linewidth=1, zorder=1)
        axes.set_yticks(range(len(kinds)), [kind.replace("_", " ") for kind in kinds])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.tick_params(axis="x", length=0)
        axes.set_ylim(len(kinds) - 0.4, -0.6)
        axes.set_xlabel(f"{results['metric']} lost at strength {results['strengths'][-1]:g}")
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        _legend(figure, axes)
        return _coloured(to_svg(figure, f"{results['metric']} lost by kind of damage", ident))
