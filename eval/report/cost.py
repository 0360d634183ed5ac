"""What a run cost: time on devices, tokens, and how fast texts were turned into vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.report import charts
from eval.report.blocks import is_number, table, words
from eval.report.facts import Phase, RunFacts
from eval.report.parts import million

_PHASES = {"pretrain": "continued pretraining", "finetune": "finetuning"}


def cost_tables(facts: RunFacts) -> list[dict[str, Any]]:
    """Tables of training, of encoding in the evaluation, and of what was asked of others; those that the run has."""
    rows = [_phase(_PHASES.get(name, name), phase) for name, phase in facts.phases.items()]
    head = ("training", "steps", "tokens", "tokens/s", "ranks", "time", "device time")
    return [one for one in (table(head, rows, "Training"), _encoding(facts), _asked(facts)) if one["rows"]]


def device_s(phase: Phase) -> float | None:
    """Seconds of training times ranks; None where the run does not say both."""
    ranks, seconds = phase.summary.get("world_size"), phase.summary.get("train_s")
    return ranks * seconds if is_number(ranks) and is_number(seconds) else None


def _phase(name: str, phase: Phase) -> tuple[Any, ...]:
    summary = phase.summary
    seconds, tokens, ranks = (summary.get(key) for key in ("train_s", "tokens", "world_size"))
    rate = summary.get("tokens_per_s")
    if rate is None and is_number(tokens) and is_number(seconds) and seconds > 0:
        rate = tokens / seconds
    spent = device_s(phase)
    return (
        name,
        summary.get("steps") or len(phase.steps),
        f"{million(tokens)}" if is_number(tokens) else "–",
        f"{rate:,.0f}" if is_number(rate) else "–",
        f"{ranks} × {summary.get('device', '?')}" if ranks else "–",
        charts.seconds(seconds) if is_number(seconds) else "–",
        charts.seconds(spent) if spent is not None else "–",
    )


def _encoding(facts: RunFacts) -> dict[str, Any]:
    """Texts and seconds of every system over all sets; systems that do not say are not there."""
    totals: dict[str, list[float]] = {}
    for row in (facts.results or {}).get("cost") or []:
        if isinstance(row, Mapping) and is_number(row.get("texts")) and is_number(row.get("seconds")):
            total = totals.setdefault(str(row.get("system")), [0, 0.0])
            total[0] += row["texts"]
            total[1] += row["seconds"]
    rows = [
        (name, int(texts), charts.seconds(spent), f"{texts / spent:,.0f}" if spent > 0 else "–")
        for name, (texts, spent) in totals.items()
    ]
    if rows:
        return table(("evaluation of", "texts", "time", "texts/s"), rows, "Evaluation")
    shown: list[tuple[str, ...]] = []
    for name, told in facts.encoding.items():
        if isinstance(told, Mapping) and all(is_number(told.get(k)) and told[k] > 0 for k in ("tokens", "steps_s")):
            rate = f"{told['tokens'] / told['steps_s']:,.0f}"
            shown.append((name, million(told["tokens"]), charts.seconds(told["steps_s"]), rate))
    return table(("evaluation of", "tokens", "time", "tokens/s"), shown, "Evaluation")


def _asked(facts: RunFacts) -> dict[str, Any]:
    """What a model elsewhere was asked for while questions were made."""
    counts = (facts.data.synth or {}).get("generator_counts")
    found = counts.items() if isinstance(counts, Mapping) else ()
    rows = [(words(name), value) for name, value in found if is_number(value) and value]
    return table(("asked of the generator", ""), rows, "Asked of the generator")
