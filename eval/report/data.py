"""The report's sections on data: what each rule removed, what was mined and how well, which questions were made.

Figures come from the stages' own reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report import charts
from eval.report.blocks import READ, fold, percent, section, table, words
from eval.report.facts import DataReports
from eval.report.parts import Chart, make_chart


def data_sections(reports: DataReports) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The sections that the run's data stages give, in the order of the pipeline; and which are left out, and why."""
    found: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    for name, place, make, report in (
        ("what cleaning removed", "corpus/report.json", _corpus, reports.corpus),
        ("labelled pairs", "pairs/report.json", _pairs, reports.pairs),
        ("mining audit", "mine/audit.json", _mining, reports.audit),
        ("questions that were made", "synth/report.json", _questions, reports.synth),
        ("proof of the gates", "gate/proof.json", _gates, reports.gates or None),
    ):
        if report is None:
            continue
        try:
            found.append(make(report))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError):
            missing[name] = f"{place} lacks a figure"
    return found, missing


def _corpus(report: Mapping[str, Any]) -> dict[str, Any]:
    counts, rules = report["counts"], [rule for rule in report["rules"] if rule["removed"]]
    read, kept = counts.get("read", 0), counts.get("kept", 0)
    sentence = f"{read:,} documents were read from {counts.get('files', 0):,} files and {kept:,} kept"
    sentence += f" ({percent(kept / read)})." if read else "."
    replaced = sum(part["replaced"] for part in report["private"])
    private = f"{replaced:,} pieces of personal data were replaced by placeholders." if replaced else ""
    languages: dict[str, list[int]] = {}
    for row in report["languages"]:
        total = languages.setdefault(row["language"], [0, 0, 0])
        for place, name in enumerate(("read", "kept", "characters")):
            total[place] += row[name]
    sources = [(r["source"], r["language"], r["read"], r["kept"], r["characters"]) for r in report["sources"][:READ]]
    folds = [
        fold(f"{rule['rule']}: {rule['meaning']}, the first of {rule['removed']:,}", rule["samples"]) for rule in rules
    ]
    folds += [fold(f"<{p['kind'].upper()}>, the first of {p['replaced']:,}", p["samples"]) for p in report["private"]]
    folds += [fold(name.replace("_", " "), samples) for name, samples in report["other"].items()]
    return section(
        "What cleaning removed", [sentence, private],
        tables=[
            table(("rule", "removed because it", "documents", "share"),
                   [(r["rule"], r["meaning"], r["removed"], percent(r["share"])) for r in rules]),
            table(("language", "read", "kept", "characters"), [(name, *row) for name, row in languages.items()]),
            table(("source", "language", "read", "kept", "characters"), sources),
        ],
        folds=folds,
    )  # fmt: skip


def _pairs(report: Mapping[str, Any]) -> dict[str, Any]:
    counts = report["counts"]
    left_out = report["left_out"]
    tables = [(t["name"], t["kind"], t["read"], t["kept"]) for t in report["tables"][:READ]]
    reasons = [(words(name), entry["count"]) for name, entry in left_out.items()]
    return section(
        "Labelled pairs", [f"{counts.get('read', 0):,} rows were read and {counts.get('kept', 0):,} pairs kept."],
        tables=[table(("file", "format", "read", "kept"), tables), table(("left out", "rows"), reasons)],
        folds=[fold(f"{words(name)}, the first of {e['count']:,}", e["samples"]) for name, e in left_out.items()],
    )  # fmt: skip


def _mining(record: Mapping[str, Any]) -> dict[str, Any]:
    rules = record.get("rules") or {}
    alone = rules.get("alone") or {}
    taken = [(name.replace("_", " "), n, alone.get(name, "")) for name, n in (rules.get("in_order") or {}).items()]
    counts = [(k.replace("_", " "), v) for k, v in (record.get("counts") or {}).items() if v]
    hubs = record.get("hubness") or {}
    hubness = ""
    if hubs:
        hubness = (
            f"{hubs['texts_used']:,} of {hubs['texts']:,} texts serve as a negative; the skewness of how often is "
            f"{hubs['skewness']:.2f} (above about 3, a few texts serve everybody)."
        )
    neighbors = record.get("neighbors") or {}
    quantiles = list(next(iter(neighbors.values()), {}))
    examples = record.get("examples")
    by_source = examples if isinstance(examples, Mapping) else {"all": examples or []}
    return section(
        "What was mined",
        [_false_negatives(record.get("false_negatives")), hubness],
        charts=_score_charts(record),
        tables=[
            table(("rule", "negatives refused", "by itself"), [row for row in taken if row[1] or row[2]]),
            table(("count", ""), counts),
            table(("score of the neighbour at", *quantiles), [(r, *q.values()) for r, q in neighbors.items()]),
        ],
        folds=[
            fold("The policy in words", record.get("policy_in_words", [])),
            *(fold(f"Examples to read: {name}", rows) for name, rows in by_source.items()),
            fold("Texts that serve most often as a negative", hubs.get("most_used", [])),
        ],
    )


def _false_negatives(found: Mapping[str, Any] | None) -> str:
    """The estimates with their intervals, in one sentence."""
    if not found:
        return "How many negatives are in truth relevant is unknown: no labelled pairs were given (mine.audit_pairs)."
    parts = []
    for name, per, what in (
        ("known", "per_negative", "of the negatives of queries with known answers {} are known to be relevant"),
        ("hidden", "per_query", "an answer hidden among the texts became a negative of {} of its queries"),
    ):
        rate = (found.get(name) or {}).get(per)
        if rate and rate["trials"]:
            spread = f"{100 * rate['low']:.2f}–{100 * rate['high']:.2f}"
            parts.append(what.format(f"{percent(rate['rate'])} ({spread}, {rate['trials']:,} tries)"))
    return f"False negatives: {'; '.join(parts)} (95 % Wilson intervals)." if parts else ""


def _score_charts(record: Mapping[str, Any]) -> list[Chart]:
    edges = record.get("histogram_edges")
    series = []
    for name in ("positive_scores", "negative_scores"):
        counts = record.get(name)
        if isinstance(edges, list) and isinstance(counts, list) and len(edges) == len(counts) + 1 and any(counts):
            series.append((name.removesuffix("_scores") + "s", counts))
    if not series:
        return []
    used = [i for i in range(len(edges or []) - 1) if any(counts[i] for _, counts in series)]
    first, last = used[0], used[-1] + 1
    cut = [(name, (edges or [])[first : last + 1], counts[first:last]) for name, counts in series]
    svg = charts.histogram(cut, xlabel="cosine by the teacher", title="Scores of mined pairs", ident="audit")
    return [make_chart("Scores of mined pairs", svg, "How many of the kept texts have which score.")]


def _questions(report: Mapping[str, Any]) -> dict[str, Any]:
    counts = report["counts"]
    sentence = f"{counts.get('pairs', 0):,} questions were kept for {counts.get('chunks', 0):,} passages"
    sentence += f", made by {report['generator']}." if report.get("generator") else "."
    spent = {k: v for k, v in (report.get("generator_counts") or {}).items() if v}
    styles = [
        (style, row.get("asked", 0), row.get("made", 0), row.get("kept", 0)) for style, row in report["styles"].items()
    ]
    filters = {words(n).removeprefix("refused "): e for n, e in (report.get("filters") or {}).items() if e["refused"]}
    return section(
        "Questions that were made", [sentence],
        tables=[
            table(("style", "asked for", "made", "kept"), styles),
            table(("refused by", "questions"), [(name, e["refused"]) for name, e in filters.items()]),
            table(("generator", ""), [(words(name), value) for name, value in spent.items()]),
        ],
        folds=[
            fold("Questions to read", report.get("examples", [])),
            *(fold(f"Refused: {name}, of {e['refused']:,}", e["samples"]) for name, e in filters.items()),
        ],
    )  # fmt: skip


def _sets(proof: Mapping[str, Any]) -> str:
    count = len(proof["evaluation_sets"])
    return f"{count} evaluation set{'s' if count != 1 else ''}"


def _gates(proofs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    rows = [(name, part, texts) for name, proof in proofs.items() for part, texts in proof["checked"].items()]
    proof = next(iter(proofs.values()))
    sentence = (
        f"{sum(row[2] for row in rows):,} training texts were compared with {proof['evaluation_texts']:,} texts of "
        f"{_sets(proof)} ({', '.join(proof['evaluation_sets'])}): none is the same in "
        f"whatever case or spacing, none shares runs of {proof['measures']['ngram_words']} words that matter, and none "
        f"is a copy with up to {percent(1 - proof['measures']['near'])} of the words edited."
    )
    return section("No evaluation text in training", [sentence], tables=[table(("gate", "what", "texts"), rows)])
