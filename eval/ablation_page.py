"""An ablation for people: aligned lines, a plot of intervals around the base, and one self-contained page.

Invariant: everything shown is in ablation.json; a cell without figures is shown with the reason.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.report.charts import FAINT, INK, KIND_COLOURS, SURFACE, WARN, canvas, to_svg
from eval.significance import SIGNIFICANT
from eval.table import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = Path(__file__).parent / "report" / "templates" / "report.css"
_LABEL = 72


def label(settings: Mapping[str, Any]) -> str:
    """A cell's settings for people; `base` where there are none."""
    words = [f"{key} = {v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)}" for key, v in settings.items()]
    return ", ".join(words) or "base"


def verdict(cell: Mapping[str, Any]) -> str:
    """What a difference from the base says in a word or two."""
    gain = cell["difference"]
    if gain is None:
        return "other queries" if cell.get("comparable") is False else ""
    if gain["p_holm"] < SIGNIFICANT:
        return "better" if gain["mean"] > 0 else "worse"
    return "no difference shown"


def _signed(gain: Mapping[str, float]) -> str:
    return f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def _base(table: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in table["base"].items())


def _legend(table: Mapping[str, Any]) -> list[str]:
    seeds = table["seeds"]
    lines = [
        "[low, high]: 95 % bootstrap interval over queries; the difference is paired, on the same queries",
        f"better, worse: p < {SIGNIFICANT} in a paired randomisation test, corrected for all cells (Holm)",
    ]
    if len(seeds) > 1:
        lines.append(
            f"means over {len(seeds)} seeds ({', '.join(map(str, seeds))}), each a run of its own from the data on; "
            "seeds: lowest and highest of them"
        )
    else:
        lines.append("one seed: that training draws by chance is not in the intervals (--seeds N measures it)")
    return lines


def table_lines(table: Mapping[str, Any]) -> list[str]:
    """ablation.json as plain aligned lines."""
    metric, several = table["metric"], len(table["seeds"]) > 1
    header = ["cell", metric, "from base", "p", "", *(["seeds"] if several else [])]
    rows, failures = [], []
    for cell in table["cells"]:
        words = [label(cell["settings"])]
        if cell["metrics"]:
            gain = cell["difference"]
            words += [shown(cell["metrics"][metric]), _signed(gain) if gain else "", _p(gain) if gain else ""]
        else:
            words += [cell["state"], "", ""]
        words.append(verdict(cell))
        if several:
            words.append(_spread(cell))
        rows.append(words)
        failures += [f"{s['run']}: {s['state']}: {s['reason']}" for s in cell["seeds"] if s["reason"]]
    width = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [f"ablation of {table['recipe']}: {metric} of the finetuned model, mean over the evaluation sets"]
    lines += [f"base: {_base(table)}", ""]
    lines += ["  ".join(word.ljust(width[n]) for n, word in enumerate(row)).rstrip() for row in [header, *rows]]
    return [*lines, "", *_legend(table), *([""] if failures else []), *failures]


def _p(gain: Mapping[str, float]) -> str:
    return "< 0.001" if gain["p_holm"] < 0.001 else f"{gain['p_holm']:.3f}"


def _spread(cell: Mapping[str, Any]) -> str:
    done = sum(seed["mean"] is not None for seed in cell["seeds"])
    short = f"{done} of {len(cell['seeds'])}" if done < len(cell["seeds"]) else ""
    span = f"{cell['spread']['low']:.3f} to {cell['spread']['high']:.3f}" if cell["spread"] else ""
    return " ".join(word for word in (span, short) if word)


def forest(table: Mapping[str, Any], *, ident: str = "forest") -> str:
    """The differences from the base as points with intervals, one row a cell, as an SVG element.

    What a cell changes stands above its line, so that long settings leave the whole width to the intervals.
    """
    drawn = [cell for cell in table["cells"] if cell["difference"]]
    with canvas(0.75 + 0.56 * max(1, len(drawn))) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1.2, zorder=1)
        for row, cell in enumerate(drawn):
            _interval(axes, row, cell)
        axes.set_yticks([])
        axes.set_ylim(len(drawn) - 0.55, -0.75)
        axes.set_xlabel(f"difference in {table['metric']} from the base (line at 0)")
        axes.tick_params(axis="x", length=0)
        axes.margins(x=0.14)
        axes.grid(axis="y", visible=False)
        axes.spines["left"].set_visible(False)
        axes.spines["bottom"].set_visible(False)
        return to_svg(figure, f"difference of each cell from the base in {table['metric']}, with intervals", ident)


def _interval(axes: Axes, row: int, cell: Mapping[str, Any]) -> None:
    gain, word = cell["difference"], verdict(cell)
    colour = {"better": KIND_COLOURS["finetuned"], "worse": WARN}.get(word, FAINT)
    axes.plot([gain["low"], gain["high"]], [row, row], color=colour, linewidth=2.2, zorder=2)
    axes.plot(
        [gain["mean"]], [row], marker="o", markersize=7, color=colour, zorder=3, markeredgewidth=1.8,
        markerfacecolor=colour if word in ("better", "worse") else SURFACE,
    )  # fmt: skip
    axes.text(
        0, row - 0.42, _short(label(cell["settings"])), transform=axes.get_yaxis_transform(), color=INK, va="center",
        fontsize=10.5, bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 1}, zorder=4,
    )  # fmt: skip
    axes.annotate(
        f"{gain['mean']:+.3f}", (gain["high"], row), xytext=(6, 0), textcoords="offset points", va="center", color=INK,
        fontsize=10.5, bbox={"facecolor": SURFACE, "edgecolor": "none", "pad": 0.5},
    )  # fmt: skip


def _short(text: str) -> str:
    return text if len(text) <= _LABEL else text[: _LABEL - 1] + "…"


def page(table: Mapping[str, Any]) -> str:
    """The whole page: no script, nothing loaded from anywhere."""
    title = f"Ablation of {table['recipe']}"
    body = [f"<h1>{_text(title)}</h1>", f'<p class="lead">{_text(_headline(table))}</p>']
    body.append(f'<p class="built">Base: {_text(_base(table))}.</p>')
    if any(cell["difference"] for cell in table["cells"]):
        caption = "Filled: differs from the base beyond chance. Hollow: no difference shown. Lines: 95 % intervals."
        drawn = f"{forest(table)}<figcaption>{caption}</figcaption>"
        body.append(f'<figure style="max-width:820px;margin-top:14px">{drawn}</figure>')
    notes = " ".join(f"{_text(line[0].upper() + line[1:])}." for line in _legend(table))
    body += [_html_table(table), f'<p class="note" style="margin-top:14px">{notes}</p>']
    style = _STYLE.read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{style}</style></head>\n<body><main>{''.join(body)}</main></body></html>\n"
    )


def _headline(table: Mapping[str, Any]) -> str:
    cells = table["cells"][1:]
    done = [cell for cell in cells if cell["difference"]]
    if not done:
        return f"{len(cells)} cells, none of them measured beside the base yet."
    words = {word: [c for c in done if verdict(c) == word] for word in ("better", "worse")}
    parts = [f"{len(found)} {word}" for word, found in words.items()]
    rest = len(done) - sum(map(len, words.values()))
    sentence = f"Of {len(done)} change{'s' * (len(done) != 1)} measured: {', '.join(parts)} than the base, "
    sentence += f"{rest} without a difference shown."
    missing = len(cells) - len(done)
    return sentence + (f" {missing} not compared." if missing else "")


def _html_table(table: Mapping[str, Any]) -> str:
    metric, several = table["metric"], len(table["seeds"]) > 1
    header = ["cell", metric, "from base", "p", "", *(["seeds"] if several else [])]
    rows = []
    for cell in table["cells"]:
        gain, figures = cell["difference"], cell["metrics"].get(metric)
        words = [_stacked(shown(figures)) if figures else _text(cell["state"])]
        words += [_stacked(_signed(gain)) if gain else "", _p(gain) if gain else "", _text(verdict(cell))]
        if several:
            words.append(_text(_spread(cell)))
        name = _text(label(cell["settings"]))
        if cell["reason"]:
            name += f'<br><span class="sub" style="white-space:normal">{_text(cell["reason"])}</span>'
        chosen = ' class="chosen"' if not cell["settings"] else ""
        columns = "".join(f"<td>{word}</td>" for word in words)
        rows.append(f'<tr{chosen}><th style="white-space:normal">{name}</th>{columns}</tr>')
    heads = "".join(f"<th>{_text(word)}</th>" for word in header)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _stacked(text: str) -> str:
    value, _, interval = text.partition(" ")
    return f"{_text(value)}<small>{_text(interval)}</small>"


def _text(value: str) -> str:
    return html.escape(value)
