"""The sections of the report as plain values for its template.

Invariant: each function takes what the run folder says and returns text, numbers or charts; none reads a file, none
invents a figure. What may be absent comes in as None and goes out as None or an empty list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.metrics import metric_names
from eval.report import blocks, charts
from eval.report.facts import RunFacts, Stage, time_summary
from eval.table import best_systems, subsets_of

if TYPE_CHECKING:
    from markupsafe import Markup

_MAIN_COUNTS = ("kept", "pairs", "tokens", "vocab_size", "trunk_parameters", "documents")
_TILES = 5  # differences at the top of the page; all of them stand in a table of their own
_OTHER_STAGES = ("probe", "eval", "export")  # told elsewhere on the page


@dataclass(frozen=True)
class Chart:
    """A drawn plot with its heading and, below it, what to know when reading it."""

    title: str
    svg: Markup
    note: str = ""


def make_chart(title: str, svg: str, note: str = "") -> Chart:
    """A chart of trusted SVG; title and note are escaped by the template."""
    from markupsafe import Markup

    return Chart(title, Markup(svg), note)


def number(value: float) -> str:
    """A number for people: integers with separators, others with four significant digits."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def million(value: float) -> str:
    """A number of parameters or tokens: 812, 45.3 k, 12.3 M, 1.07 B."""
    for limit, suffix in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {suffix}"
    return number(value)


def lead_metric(results: Mapping[str, Any]) -> str:
    """The metric of the headline: recall@10, or recall at the largest k where 10 was not asked for."""
    ks = results["ks"]
    return f"recall@{10 if 10 in ks else ks[-1]}"


def _spread(metric: Mapping[str, float]) -> str:
    return f"[{metric['low']:.3f}, {metric['high']:.3f}]"


def _gain(metric: Mapping[str, float]) -> tuple[str, str]:
    mean, low, high = (f"{metric[key]:+.3f}".replace("-", "\N{MINUS SIGN}") for key in ("mean", "low", "high"))
    return mean, f"[{low}, {high}]"


def headline(facts: RunFacts, title: str) -> dict[str, Any]:
    """The opening sentence: did finetuning help, and the gain over each other system."""
    results = facts.results
    verdict = f"{title}: {len(facts.stages)} stages are finished; nothing has been evaluated yet."
    tiles: list[dict[str, str]] = []
    beside = ""
    if results is not None:
        name, sets = lead_metric(results), len(results["sets"])
        means = {row["system"]: row["metrics"][name] for row in results["means"] if row["subset"] == "all"}
        kinds = {system["name"]: system["kind"] for system in results["systems"]}
        over = f"over {sets} evaluation set{'s' if sets != 1 else ''}"
        chosen = next((system for system, kind in kinds.items() if kind == "finetuned"), None)
        gains = {d["against"]: d["metrics"][name] for d in results.get("differences", []) if d["subset"] == "all"}
        if chosen is None:
            best = max(means, key=lambda system: means[system]["mean"])
            top = f"{means[best]['mean']:.3f} {_spread(means[best])}"
            verdict = f"The best of {len(means)} systems is {best}: {name} {top} {over}."
        else:
            verdict = _verdict(chosen, kinds, means, gains, name, over)
            beside = _comparison(kinds, means, gains)
            mean = means[chosen]
            label = f"{name}, {chosen}"
            tiles.append({"label": label, "value": f"{mean['mean']:.3f}", "note": _spread(mean), "tone": "good"})
        order = ("pretrained", "untrained", "bm25", "teacher", "baseline")
        ranked = sorted(gains, key=lambda s: order.index(kinds[s]) if kinds[s] in order else len(order))
        for system in ranked[:_TILES]:
            gain = gains[system]
            tone = "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else ""
            value, spread = _gain(gain)
            tiles.append({"label": f"against {system}", "value": value, "note": spread, "tone": tone})
    return {"verdict": verdict, "title": title, "beside": beside, "tiles": tiles}


def _verdict(
    chosen: str,
    kinds: Mapping[str, str],
    means: Mapping[str, Mapping[str, float]],
    gains: Mapping[str, Mapping[str, float]],
    name: str,
    over: str,
) -> str:
    """One sentence; "helped" only where the interval of the difference lies above 0."""
    now = f"{means[chosen]['mean']:.3f} {_spread(means[chosen])}"
    stages = ("pretrained", "untrained")
    before = next((s for kind in stages for s, k in kinds.items() if k == kind and s in gains), None)
    if before is None:
        text = f"The finetuned model reaches {name} {now} {over}"
    else:
        gain = gains[before]
        helped = "helped" if gain["low"] > 0 else "hurt" if gain["high"] < 0 else "made no clear difference"
        text = f"Finetuning {helped}: {name} went from {means[before]['mean']:.3f} to {now} {over}"
    return text + "."


def _comparison(
    kinds: Mapping[str, str], means: Mapping[str, Mapping[str, float]], gains: Mapping[str, Mapping[str, float]]
) -> str:
    """Where the finetuned model stands beside BM25, the teacher and published models, judged by paired intervals."""
    words = []
    for kind, label in (("bm25", "BM25"), ("teacher", "its teacher"), ("baseline", "")):
        for system in (s for s, k in kinds.items() if k == kind and s in gains):
            gain = gains[system]
            relation = "above" if gain["low"] > 0 else "below" if gain["high"] < 0 else "level with"
            words.append(f"{relation} {label or system} ({means[system]['mean']:.3f})")
    return f"The finetuned model is {_listed(words)}." if words else ""


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def built(facts: RunFacts) -> str:
    """What the model is and what it was made from, as far as the run says."""
    summary = next((facts.phases[p].summary for p in ("finetune", "pretrain") if p in facts.phases), {})
    counts = {stage.name: stage.counts for stage in facts.stages}
    parts = []
    if summary.get("parameters"):
        trunk = summary.get("trunk_parameters")
        inside = f" ({million(trunk)} of them in the layers)" if trunk else ""
        parts.append(f"{million(summary['parameters'])} parameters{inside}")
    if facts.parity and facts.parity.get("dimension"):
        parts.append(f"{facts.parity['dimension']} dimensions")
    text = f"An embedding model of {_listed(parts)}. " if parts else ""
    for phase, verb in (("pretrain", "pretrained"), ("finetune", "finetuned")):
        if phase in facts.phases:
            done = facts.phases[phase].summary
            steps = done.get("steps") or len(facts.phases[phase].steps)
            tokens = f" and {million(done['tokens'])} tokens" if done.get("tokens") else ""
            text += f"{verb.capitalize()} for {number(steps)} steps{tokens}. "
    kept = counts.get("corpus", {})
    documents = next((kept[key] for key in ("kept", "documents", "rows") if key in kept), None)
    if documents is not None:
        text += f"Made from {number(documents)} documents."
    return text.strip()


def all_names(results: Mapping[str, Any]) -> list[str]:
    """Every metric of the rows, those of the headline first."""
    told = dict.fromkeys(name for row in results["rows"] for name in row["metrics"])
    first = metric_names(results["ks"])
    return [*first, *(name for name in told if name not in first)]


def colour_name(kind: str) -> str:
    """The colour of the style sheet for a kind of system."""
    kind = "pretrained" if kind == "checkpoint" else kind
    return kind if kind in charts.KIND_COLOURS else "baseline"


def result_tables(results: Mapping[str, Any], *, per_set: bool) -> list[dict[str, Any]]:
    """Blocks of rows with metrics: the headline's means of each subset, or all of every set and subset."""
    details = {system["name"]: system for system in results["systems"]}
    names = all_names(results) if per_set else metric_names(results["ks"])

    def block(title: str, rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        chosen = list(rows)
        best = {name: best_systems(chosen, name) for name in names if all(name in r["metrics"] for r in chosen)}
        return {
            "title": title,
            "rows": [
                {
                    "system": row["system"],
                    "kind": details[row["system"]]["kind"],
                    "colour": colour_name(details[row["system"]]["kind"]),
                    "detail": details[row["system"]]["detail"],
                    "cells": [
                        {"metric": row["metrics"].get(n), "best": row["system"] in best.get(n, ())} for n in names
                    ],
                }
                for row in chosen
            ],
        }

    if per_set:
        return [
            block(
                f"{task['name']}, {subset} ({queries:,} queries)",
                (r for r in results["rows"] if r["set"] == task["name"] and r["subset"] == subset),
            )
            for task in results["sets"]
            for subset, queries in task["subsets"].items()
        ]
    return [
        block(f"{subset} queries", (r for r in results["means"] if r["subset"] == subset))
        for subset in subsets_of(results)
    ]


def result_charts(results: Mapping[str, Any]) -> list[Chart]:
    """Bars of the headline metric for each subset, then recall over k for each."""
    lead, systems = lead_metric(results), results["systems"]
    columns, lines = [], []
    for number_, subset in enumerate(subsets_of(results)):
        metrics = {row["system"]: row["metrics"] for row in results["means"] if row["subset"] == subset}
        title = f"{lead}, {subset} queries"
        leads = {system: values[lead] for system, values in metrics.items()}
        columns.append(make_chart(title, charts.bars(systems, leads, title=title, ident=f"bars{number_}")))
        if len(results["ks"]) > 1:
            title = f"Recall by documents read, {subset} queries"
            svg = charts.curves(systems, metrics, results["ks"], title=title, ident=f"curves{number_}")
            lines.append(make_chart(title, svg))
    return columns + lines


def heat(results: Mapping[str, Any]) -> dict[str, Any]:
    """The headline metric of every system on every set and subset, shaded by value."""
    lead = lead_metric(results)
    systems = [system["name"] for system in results["systems"]]
    rows = []
    for task in results["sets"]:
        for subset, queries in task["subsets"].items():
            found = [r for r in results["rows"] if r["set"] == task["name"] and r["subset"] == subset]
            means = {r["system"]: r["metrics"][lead]["mean"] for r in found}
            best = best_systems(found, lead)
            # squared: the top of the scale gets the contrast
            cells = [blocks.cell(f"{means[s]:.3f}", shade=means[s] ** 2) | {"best": s in best} if s in means else None
                     for s in systems]  # fmt: skip
            whole = subset == "all"
            note = f"{queries:,} queries, {task['documents']:,} documents" if whole else f"{queries:,} queries"
            rows.append((task["name"] if whole else subset, note, not whole, cells))
    matrix = blocks.matrix(f"{lead} on every set", "set", systems, rows)
    return {"metric": lead, "matrix": matrix, "hard": "hard" in subsets_of(results)}


def flow(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The counts of each data and training stage in the order of the pipeline, the telling one first; no zeros."""
    shown = []
    for stage in stages:
        if stage.name not in _OTHER_STAGES and stage.counts:
            main = next((key for key in _MAIN_COUNTS if key in stage.counts), None)
            order = sorted((k for k, v in stage.counts.items() if v or k == main), key=lambda key: key != main)
            counts = [{"name": k.replace("_", " "), "value": number(stage.counts[k]), "main": k == main} for k in order]
            shown.append({"name": stage.name, "counts": counts})
    return shown


def flow_line(stages: Sequence[Stage]) -> str:
    """The way of the data in one line: read → kept → tokens → pairs, as far as the stages counted it."""
    counts = {stage.name: stage.counts for stage in stages}
    corpus = counts.get("corpus", {})
    steps = [(corpus.get("read"), "documents read"), (corpus.get("kept"), "kept")]
    steps.append((counts.get("tokens", {}).get("tokens"), "tokens"))
    made = [counts[name]["pairs"] for name in ("pairs", "mine", "synth") if "pairs" in counts.get(name, {})]
    steps.append((sum(made) if made else None, "pairs"))
    return " → ".join(f"{number(value)} {what}" for value, what in steps if value is not None)


def time_part(stages: Sequence[Stage]) -> dict[str, Any]:
    """Seconds by stage, parted into work and the pipeline's own overhead."""
    total = time_summary(list(stages))
    svg = charts.times([(s.name, s.working_s, s.overhead_s) for s in stages], title="Seconds by stage", ident="time")
    seconds = [(s.name, s.seconds, s.working_s, s.overhead_s) for s in stages]
    seconds.append(("all", total["wall_s"], total["work_s"], total["overhead_s"]))
    keys = ("total", "work", "overhead")
    rows = [{"name": name} | dict(zip(keys, map(charts.seconds, parts), strict=True)) for name, *parts in seconds]
    sentence = (
        f"The stages took {rows[-1]['total']} together. {rows[-1]['work']} were work (tokenising, mining, training, "
        f"encoding, scoring); the pipeline's own overhead was {rows[-1]['overhead']}, "
        f"{total['overhead_percent']:.1f} %."
    )
    return {"sentence": sentence, "rows": rows, "chart": make_chart("Seconds by stage", svg)}


def wrong(facts: RunFacts) -> dict[str, Any] | None:
    """The stored worst queries of the finetuned system, or of the last system where none is finetuned."""
    if facts.results is None or not facts.examples:
        return None
    systems = facts.results["systems"]
    name = next((s["name"] for s in systems if s["kind"] == "finetuned"), systems[-1]["name"])
    if name not in facts.examples:
        return None
    examples = []
    for example in facts.examples[name]:
        rank = example.get("relevant_rank")
        place = f"found at rank {rank}" if rank else f"not among the first {example.get('depth', '?')}"
        examples.append({**example, "place": place})
    return {"system": name, "examples": examples}


def parity(record: Mapping[str, Any] | None) -> str | None:
    """One sentence on whether the exported folder gives the embeddings of the trained model."""
    if record is None:
        return None
    try:
        difference, tolerance = float(record["max_abs_difference"]), float(record["tolerance"])
        texts = int(record["texts"])
    except (KeyError, TypeError, ValueError):
        return None
    relation = "is" if difference < tolerance else "differs from"
    return (
        f"The exported model {relation} the trained model: reloaded in plain sentence-transformers, no component of "
        f"the embeddings of {texts:,} texts differs by more than {difference:.1e} (tolerance {tolerance:.0e})."
    )
