"""One self-contained HTML page of a robustness.json. It loads nothing, runs no script, and escapes every text."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import eval.report
from eval.robustness.charts import by_strength, css, overview
from eval.robustness.table import bracket, highest, worst

_LABELS = {"query": "query", "documents": "relevant document", "distractor": "relevant document, and its copy"}


def page(results: Mapping[str, Any], *, title: str) -> str:
    """The page.

    Args:
        results: the content of a `robustness.json`.
        title: the heading.
    """
    style = (Path(eval.report.__file__).parent / "templates" / "report.css").read_text(encoding="utf-8")
    parts = [
        f"<header><h1>{escape(title)}</h1><p class='lead'>What damaged queries and documents cost</p>"
        f"<p class='built'>{_lead(results)}</p><p class='note'>{_how(results)}</p></header>",
        _kinds(results),
        _meaning(results),
        _separation(results),
        _charts(results),
        _examples(results),
    ]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}
{css()}
.about {{ display: block; font-weight: 400; white-space: normal; min-width: 180px; }}
.overview {{ max-width: 820px; margin-top: 14px; }}
</style>
</head>
<body><main>
{"".join(parts)}
</main></body>
</html>
"""


def _lead(results: Mapping[str, Any]) -> str:
    if not results["rows"]:
        return "How far scores tell questions that the corpus answers from those that it does not."
    told = []
    for system in results["systems"]:
        row = worst(results, system["name"])
        name, kind = escape(system["name"]), escape(row["kind"].replace("_", " "))
        told.append(f"{name} loses most by {kind}: {row['mean'] + row['lost']:.2f} becomes {row['mean']:.2f}.")
    return " ".join(told)


def _how(results: Mapping[str, Any]) -> str:
    counts = results["counts"]
    level, samples = round(100 * results["bootstrap"]["level"]), results["bootstrap"]["samples"]
    lines = [
        f"{results['metric']} of {counts['queries']:,} queries drawn from {', '.join(map(escape, results['sets']))};",
        f"each set counts the same. Intervals: {level} %, paired bootstrap over queries, {samples:,} samples; seed",
        f"{results['seed']}.",
    ]
    if counts["cells"]:
        lines += [
            f"Over all kinds and strengths {counts['asked']:,} queries were asked of each system: the damage changed",
            f"{counts['changed']:,} and left {counts['unchanged']:,} as they were: nothing in them fits its rule.",
        ]
    return " ".join(lines)


def _section(title: str, note: str, body: str) -> str:
    return f"<section><h2>{title}</h2><p class='note'>{note}</p>{body}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are ready HTML, the first of each row its name."""
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return (
        f"<div class='scroll'><table><thead><tr>{''.join(f'<th>{cell}</th>' for cell in head)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(mean: float | None, low: float, high: float, sign: str) -> str:
    if mean is None:
        return "–"
    value, _, interval = bracket(mean, low, high, sign=sign).partition(" ")
    return f"{value}<small>{interval}</small>"


def _names(results: Mapping[str, Any]) -> list[str]:
    return [system["name"] for system in results["systems"]]


def _kinds(results: Mapping[str, Any]) -> str:
    if not results["rows"]:
        return ""
    names = _names(results)
    tables = {name: highest(results, name) for name in names}
    rows = []
    for kind in results["kinds"]:
        first = tables[names[0]][kind]
        about = f"<span class='sub about'>{escape(results['about'][kind])}</span>"
        lost = [_cell(r["lost"], r["lost_low"], r["lost_high"], "+") for r in (tables[name][kind] for name in names)]
        rows.append([escape(kind.replace("_", " ")) + about, f"{first['changed']:,} of {first['queries']:,}", *lost])
    clean = {row["system"]: _cell(row["mean"], row["low"], row["high"], "") for row in results["clean"]}
    rows.insert(0, [f"{results['metric']} of the clean queries", "", *(clean[name] for name in names)])
    strength = f"{results['strengths'][-1]:g}"
    table = _table(["kind", "queries changed", *map(escape, names)], rows)
    note = f"At strength {strength}, the highest measured; above 0 is worse than the clean queries."
    plot = f"<div class='overview'><figure>{overview(results, ident='overview')}</figure></div>"
    return _section("Recall lost, by kind", note, table + plot)


def _meaning(results: Mapping[str, Any]) -> str:
    found = {(row["system"], row["kind"], row["strength"]): row for row in results["noticed"]}
    if not found:
        return ""
    names, rows = _names(results), []
    for kind, strength in dict.fromkeys((kind, strength) for _, kind, strength in found):
        cells = [found[name, kind, strength] for name in names]
        counts = f"{cells[0]['pairs']:,} of {cells[0]['queries']:,}"
        label = f"{escape(kind.replace('_', ' '))} at {strength:g}"
        rows.append([label, counts, *(_cell(c["mean"], c["low"], c["high"], "") for c in cells)])
    note = (
        "How often the true passage stays above a copy with other numbers, or with a negation put in or taken out."
        " 0.5 is what a system gets that does not notice; a tie counts a half."
    )
    return _section(
        "Is a turned meaning noticed?", note, _table(["copy", "queries with one", *map(escape, names)], rows)
    )


def _separation(results: Mapping[str, Any]) -> str:
    rows_of = {(row["set"], row["system"]): row for row in results["out_of_domain"]}
    if not rows_of:
        return ""
    names, rows = _names(results), []
    for task in dict.fromkeys(task for task, _ in rows_of):
        cells = [rows_of[task, name] for name in names]
        label = escape(task) if task else "mean"
        counts = f"{cells[0]['inside']:,} and {cells[0]['outside']:,}"
        rows.append([label, counts, *(_cell(c["mean"], c["low"], c["high"], "") for c in cells)])
    note = (
        "How often a question of the set gets a higher best score than a question of another set (AUROC): with 1 a"
        " threshold tells them apart, with 0.5 none does."
    )
    table = _table(["corpus", "own and other", *map(escape, names)], rows)
    return _section("Questions that the corpus cannot answer", note, table)


def _charts(results: Mapping[str, Any]) -> str:
    if not results["rows"]:
        return ""
    parts = []
    for kind in results["kinds"]:
        svg = by_strength(results, kind, ident=f"robust-{kind}")
        parts.append(
            f"<figure><h3>{escape(kind.replace('_', ' '))}</h3>{svg}"
            f"<figcaption>{escape(results['about'][kind])}</figcaption></figure>"
        )
    return f"<section><h2>Recall against strength</h2><div class='charts'>{''.join(parts)}</div></section>"


def _examples(results: Mapping[str, Any]) -> str:
    articles = []
    for told in results["examples"]:
        label, asked = _LABELS[told["changed"]], ""
        if told["changed"] != "query":
            asked = f"<span class='label'>query</span><div class='asked'>{_visible(told['query'])}</div>"
        head = f"{told['system']}, {told['kind'].replace('_', ' ')} at {told['strength']:g}, {told['set']}"
        articles.append(
            f"<article><h3>{escape(head)}</h3>{asked}<span class='label'>{label}, rank {_rank(told['before'])}</span>"
            f"<div class='right'>{_visible(told['original'])}</div><span class='label'>damaged, rank"
            f" {_rank(told['after'])}</span><div>{_visible(told['perturbed'])}</div></article>"
        )
    if not articles:
        return ""
    note = "For each system and kind the queries whose right document lost most places."
    return _section("What fell furthest", note, f"<div class='wrong'>{''.join(articles)}</div>")


def _rank(rank: int | None) -> str:
    return "not among the first 100" if rank is None else str(rank)


def _visible(text: str) -> str:
    """Escaped, with invisible characters named: they are what such a text is about."""
    made = []
    for character in text:
        hidden = unicodedata.category(character) in ("Cf", "Cc", "Co", "Cs") and character not in "\n\t\u200d"
        made.append(f"⟨{ord(character):04X}⟩" if hidden else character)
    return escape("".join(made))
