"""The summary at the top of the page, in plain words: what was trained, on what it was measured, what came out.

Invariant: every sentence repeats figures of the sections below; what the run does not say is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from data_prep.progress import format_seconds
from eval.report import cost
from eval.report.blocks import signed, spread
from eval.report.evidence import weakest
from eval.report.facts import RunFacts, time_summary
from eval.report.parts import built, lead_metric

_NAMED_SETS = 8
_DOING = {"pretrain": "pretraining", "finetune": "finetuning"}


def summary(facts: RunFacts) -> list[tuple[str, str]]:
    """(what, sentence) in the order of a reader's questions."""
    found = [("Trained", _trained(facts))]
    if facts.results is not None:
        found.append(("Measured on", _measured_on(facts.results)))
        found += _against(facts.results)
        with suppress(KeyError, TypeError, AttributeError):  # told at the end of the page with its section
            found.append(("Languages", weakest(facts.results) or ""))
    found.append(("Took", _took(facts)))
    return [(what, sentence) for what, sentence in found if sentence]


def _trained(facts: RunFacts) -> str:
    counts = {stage.name: stage.counts for stage in facts.stages}
    sources = [("labelled", "pairs"), ("mined", "mine"), ("made from documents", "synth")]
    pairs = [
        f"{counts[stage]['pairs']:,} {what}" for what, stage in sources if counts.get(stage, {}).get("pairs", 0) > 0
    ]
    text = built(facts)
    return f"{text} Pairs at hand: {', '.join(pairs)}." if pairs else text


def _measured_on(results: Mapping[str, Any]) -> str:
    sets = results["sets"]
    names = [task["name"] for task in sets]
    named = ", ".join(names[:_NAMED_SETS]) + (
        f" and {len(names) - _NAMED_SETS} more" if len(names) > _NAMED_SETS else ""
    )
    queries, documents = (sum(task[key] for task in sets) for key in ("queries", "documents"))
    of = f"{len(sets)} set{'s' if len(sets) != 1 else ''} ({named})"
    return f"{queries:,} queries against {documents:,} documents of {of}; every set counts the same."


def _against(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The finetuned model beside the base and BM25, judged by the paired interval."""
    lead = lead_metric(results)
    kinds = {system["name"]: system["kind"] for system in results["systems"]}
    means = {row["system"]: row["metrics"] for row in results["means"] if row["subset"] == "all"}
    gains = {d["against"]: d["metrics"] for d in results.get("differences", []) if d["subset"] == "all"}
    found = []
    for kind, what in (("untrained", "Against the base"), ("bm25", "Against BM25")):
        for system in (s for s, k in kinds.items() if k == kind and s in gains and s in means):
            gain, mean = gains[system][lead], means[system][lead]
            word = "better" if gain["low"] > 0 else "worse" if gain["high"] < 0 else "no clear difference"
            interval = spread(gain["low"], gain["high"], sign=True)
            now = mean["mean"] + gain["mean"]
            change = f"{mean['mean']:.3f} → {now:.3f}, {signed(gain['mean'])} {lead} [{interval}]"
            found.append((what, f"{change}: {word}."))
    return found


def _took(facts: RunFacts) -> str:
    text = f"{format_seconds(time_summary(facts.stages)['wall_s'])} for all stages"
    phases = [(name, cost.device_s(phase), phase) for name, phase in facts.phases.items()]
    said = []
    for name, spent, phase in phases:
        if spent is not None:
            ranks = f"{phase.summary['world_size']} × {phase.summary.get('device', '?')}"
            said.append(f"{format_seconds(spent)} {_DOING.get(name, name)} on {ranks}")
    return f"{text}; device time: {', '.join(said)}." if said else f"{text}."
