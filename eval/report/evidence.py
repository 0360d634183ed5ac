"""The sections on what the figures are worth: by language and length, similarity, significance, published figures.

Invariant: figures are those of results.json; each part of it may be absent, and then its section is. What others
published stands apart from what was measured, in a section that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from eval.report.blocks import cell, matrix, section, signed, spread, table
from eval.report.parts import lead_metric

LANGUAGES = {
    "ms": "Malay", "en": "English", "id": "Indonesian", "zh": "Chinese", "ta": "Tamil", "th": "Thai", "jv": "Javanese",
    "jav": "Javanese", "iba": "Iban", "kxd": "Brunei Malay", "manglish": "Manglish", "tl": "Tagalog",
    "vi": "Vietnamese", "ar": "Arabic",
}  # fmt: skip
_BY = {
    "language": ("Language by language", "language of the query"),
    "length": ("Short and long queries", "length of the query"),
    "passage_length": ("Short and long answers", "length of the answer"),
    "source": ("Source by source", "source"),
}
_FEW = 30
"""Queries below which a group's figure is little more than an anecdote."""


def evidence(results: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The sections by name (`language`, `length`, …, `significance`, `sts`, `published`), and which are left out."""
    found: dict[str, dict[str, Any]] = {}
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[Mapping[str, Any]], dict[str, Any] | None]] = {
        "significance": significance, "groups": groups, "sts": similarity, "published": published,
    }  # fmt: skip
    for name, make in makers.items():
        try:
            made = make(results)
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            missing[name] = f"eval/results.json lacks a figure of its {name}"
            continue
        if made is not None:
            found[name] = made
    return found, missing


def _names(results: Mapping[str, Any]) -> list[str]:
    return [system["name"] for system in results["systems"]]


def mark_best(cells: Sequence[dict[str, Any] | None]) -> Sequence[dict[str, Any] | None]:
    """The cells of a row, those with the highest figure as printed marked as best."""
    figures = [float(one["text"]) for one in cells if one is not None]
    for one in cells:
        if one is not None and float(one["text"]) == max(figures):
            one["best"] = True
    return cells


def metric_cell(metric: Mapping[str, float] | None) -> dict[str, Any] | None:
    """A mean with its interval; squared for its colour, so that the top of the scale gets the contrast."""
    if metric is None:
        return None
    return cell(f"{metric['mean']:.3f}", small=spread(metric["low"], metric["high"]), shade=metric["mean"] ** 2)


def groups(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metric of the headline by language, by length of query and answer, and by source."""
    rows = results.get("groups") or []
    if not rows:
        return None
    lead, systems = lead_metric(results), _names(results)
    matrices = []
    for by, (title, corner) in _BY.items():
        by_group: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in rows:
            if row["by"] == by:
                by_group.setdefault(str(row["group"]), {}).setdefault(row["system"], row)
        lines = []
        for group, told in by_group.items():
            count = next(iter(told.values()))["queries"]
            cells = mark_best([metric_cell(told[s]["metrics"][lead] if s in told else None) for s in systems])
            note = f"{count:,} quer{'y' if count == 1 else 'ies'}"
            lines.append((_group_name(by, group), note + (", few" if count < _FEW else ""), False, cells))
        matrices.append(matrix(title, corner, systems, lines))
    note = f"{lead} of the queries of all sets together, each counting once, with 95 % bootstrap intervals."
    return section("For whom it works", [weakest(results) or ""], note=note, matrices=matrices)


def _group_name(by: str, group: str) -> str:
    return f"{LANGUAGES[group]} ({group})" if by == "language" and group in LANGUAGES else group


def weakest(results: Mapping[str, Any]) -> str | None:
    """One sentence: in which language the finetuned model finds least, among those with enough queries."""
    lead = lead_metric(results)
    chosen = next((s["name"] for s in results["systems"] if s["kind"] == "finetuned"), None)
    rows = [r for r in results.get("groups") or [] if r["by"] == "language" and r["system"] == chosen]
    rows = [row for row in rows if row["queries"] >= _FEW]
    if len(rows) < 2:
        return None
    least, most = (f(rows, key=lambda r: r["metrics"][lead]["mean"]) for f in (min, max))
    said = []
    for row in (least, most):
        value = row["metrics"][lead]
        said.append(f"{_group_name('language', row['group'])} ({value['mean']:.3f}, {row['queries']:,} queries)")
    among = f"Of {len(rows)} languages with {_FEW} queries or more"
    return f"{among}, {chosen} finds least in {said[0]} and most in {said[1]}."


def significance(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Every paired difference of the finetuned model, its sentence, and what chance would give."""
    differences = results.get("differences") or []
    if not differences:
        return None
    lead = lead_metric(results)
    names = [n for n in dict.fromkeys(("recall@1", lead, "ndcg@10")) if n in differences[0]["metrics"]]
    tested = any(_chance(d, lead) is not None for d in differences)
    rows = []
    for one in differences:
        cells: list[Any] = [one["against"], one["subset"]]
        for name in names:
            gain = one["metrics"][name]
            cells += [signed(gain["mean"]), spread(gain["low"], gain["high"], sign=True)]
        rows.append([*cells, *([_p_value(_chance(one, lead))] if tested else [])])
    head = ["against", "queries"]
    for name in names:
        head += [name, "95 % interval"]
    said = [str(one["sentence"]).rstrip(".") + "." for one in differences if one.get("sentence")]
    note = (
        f"Differences of {differences[0]['system']} to every other system, paired: both answered the same queries. An "
        "interval without 0 is a difference that is not chance alone."
    )
    if tested:
        note += f" p is the chance of a difference as large in {lead} if both were equally good, corrected where said."
    return section(
        "Is the difference real?", said, note=note,
        tables=[table([*head, *(["p"] if tested else [])], rows, "Paired differences")],
    )  # fmt: skip


def _chance(difference: Mapping[str, Any], lead: str) -> float | None:
    gain = difference["metrics"].get(lead, {})
    told = gain.get("p_holm", gain.get("p_value", difference.get("p_value")))
    return told if isinstance(told, (int, float)) else None


def _p_value(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def similarity(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Spearman's and Pearson's correlation with people's scores of sentence pairs, by set."""
    rows = results.get("sts") or []
    if not rows:
        return None
    systems = list(dict.fromkeys(row["system"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        told = {row["system"]: row for row in rows if row["set"] == name}
        pairs = next(iter(told.values()))["pairs"]
        for number, metric in enumerate(("spearman", "pearson")):
            cells = [_correlation(told[s]["metrics"].get(metric)) if s in told else None for s in systems]
            label, note = (name, f"Spearman, {pairs:,} pairs") if number == 0 else ("", "Pearson")
            lines.append((label or "the same", note, number > 0, mark_best(cells)))
    note = "How a system's cosines agree with people's scores of sentence pairs; Spearman's compares the order only."
    return section("Similarity of sentences", [], note=note, matrices=[matrix("Correlation", "set", systems, lines)])


def _correlation(value: Any) -> dict[str, Any] | None:
    if isinstance(value, Mapping):
        return metric_cell({key: float(value[key]) for key in ("mean", "low", "high")})
    return None if value is None else cell(f"{float(value):.3f}", shade=float(value) ** 2)


def published(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """What others published, on sets of their own: nothing here was run by us."""
    rows = results.get("published") or []
    if not rows:
        return None
    names = list(dict.fromkeys(name for row in rows for name in row["metrics"]))
    lines = [
        (row["system"], row["set"], *(_plain(row["metrics"].get(name)) for name in names), row.get("note") or "")
        for row in rows
    ]
    sources = _listed(dict.fromkeys(str(row["source"]) for row in rows if row.get("source")))
    part = section(
        "Published, not rerun",
        [
            "These figures were published by others for their own test sets. None was measured here, and no difference "
            "to a figure above is a measured one."
        ],
        note=f"Taken from {sources}." if sources else "",
        tables=[table(("system", "their set", *names, "to know before comparing"), lines, "Published figures")],
    )
    return part | {"apart": True}


def _plain(value: Any) -> str:
    return "–" if value is None else f"{float(value):.3f}"


def _listed(names: Iterable[str]) -> str:
    return "; ".join(names)
