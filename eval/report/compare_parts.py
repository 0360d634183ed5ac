"""The sections of the page that compares runs, below its headline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data_prep.progress import format_seconds
from eval.report import charts_compare, cost
from eval.report.blocks import cell, matrix, section, signed, spread, table
from eval.report.evidence import mark_best, metric_cell
from eval.report.facts import time_summary
from eval.report.parts import make_chart, million
from eval.report.sides import Gains, Side, recipe_differences

_PHASES = (("pretrain", "Continued pretraining"), ("finetune", "Contrastive finetuning"))


def differences(
    sides: Sequence[Side], sets: Sequence[str], gains: Mapping[str, Gains | None], everything: Gains | None, lead: str
) -> dict[str, Any]:
    """Each run less the first on every set and on their mean, with what chance would give."""
    from eval.significance import sentence

    first, others = sides[0], sides[1:]
    rows = []
    for task in sets:
        told = gains[task]
        cells = [
            _gain(told[side.name][lead]) if told is not None else _gain(unpaired(first, side, task, lead))
            for side in others
        ]
        queries = next(one["queries"] for one in first.results["sets"] if one["name"] == task)
        rows.append((task, f"{queries:,} queries, {'paired' if told is not None else 'not paired'}", False, cells))
    said = []
    if everything is not None:
        rows.append(("mean over sets", "paired", False, [_gain(everything[side.name][lead]) for side in others]))
        for side in others:
            told_of = everything[side.name][lead]
            said.append(sentence(side.name, first.name, lead, told_of, comparisons=len(others)) + ".")
    note = f"{lead} of a run less that of {first.name}, with 95 % intervals; green is more, red is less."
    if any(told is None for told in gains.values()):
        note += (
            " Not paired: the runs do not keep the same queries' rankings in a form that gives their figures, so the "
            "interval is that of two independent means, and wider than need be."
        )
    one = matrix(f"{lead} less that of {first.name}", "set", [side.name for side in others], rows)
    return section("What is better, and where", said, note=note, matrices=[one])


def unpaired(first: Side, other: Side, task: str, lead: str) -> dict[str, float]:
    """The difference of two independent means; its interval from theirs (Zou and Donner 2008, MOVER)."""
    a, b = ((side.row(task) or {})["metrics"][lead] for side in (first, other))
    mean = b["mean"] - a["mean"]
    below = ((b["mean"] - b["low"]) ** 2 + (a["high"] - a["mean"]) ** 2) ** 0.5
    above = ((b["high"] - b["mean"]) ** 2 + (a["mean"] - a["low"]) ** 2) ** 0.5
    return {"mean": mean, "low": mean - below, "high": mean + above}


def _gain(gain: Mapping[str, float]) -> dict[str, Any]:
    sure = gain["low"] > 0 or gain["high"] < 0
    return cell(
        signed(gain["mean"]), small=spread(gain["low"], gain["high"], sign=True),
        shade=0.15 + 3 * abs(gain["mean"]) if sure else 0.0, tone="finetuned" if gain["mean"] > 0 else "warn",
    )  # fmt: skip


def on_every_set(sides: Sequence[Side], sets: Sequence[str], lead: str) -> dict[str, Any]:
    """The headline metric of every run on every shared set."""
    rows = []
    for task in sets:
        told = next(one for one in sides[0].results["sets"] if one["name"] == task)
        cells = mark_best([metric_cell((side.row(task) or {"metrics": {}})["metrics"].get(lead)) for side in sides])
        rows.append((task, f"{told['queries']:,} queries, {told['documents']:,} documents", False, cells))
    one = matrix(f"{lead} on every shared set", "set", [side.name for side in sides], rows)
    return section("Set by set", [], note="The best of a row is bold.", matrices=[one])


def recipes(sides: Sequence[Side]) -> dict[str, Any]:
    """The settings in which the recipes differ, and nothing else."""
    rows, without = recipe_differences(sides)
    if without:
        said = f"Not compared: {', '.join(without)} keep{'s' if len(without) == 1 else ''} no recipe.toml."
    elif rows:
        said = f"The recipes differ in {len(rows)} setting{'s' if len(rows) != 1 else ''}; all others are the same."
    else:
        said = "The recipes are the same but for their names."
    head = ("setting", *(side.name for side in sides))
    return section("How the recipes differ", [said], tables=[table(head, rows, "Settings that differ")])


def curves(sides: Sequence[Side]) -> dict[str, Any] | None:
    """The losses of each phase, one line a run."""
    order = {side.name: number for number, side in enumerate(sides)}
    found = []
    for phase, title in _PHASES:
        runs = [
            (side.name, side.facts.phases[phase].steps, side.facts.phases[phase].validations)
            for side in sides
            if phase in side.facts.phases
        ]
        if runs:
            svg = charts_compare.losses(runs, order=order, title=f"{title}: loss of every run", ident=phase)
            found.append(make_chart(title, svg, "Running means; dots are the loss on data that was held out."))
    note = "Losses of different objectives, batches or temperatures do not compare; their shapes may."
    return section("Training", [], note=note, charts=found) if found else None


def costs(sides: Sequence[Side]) -> dict[str, Any]:
    """Size, training and time of each run, and the seconds of every stage."""
    rows = []
    for side in sides:
        phases = side.facts.phases
        last = next((phases[name].summary for name in ("finetune", "pretrain") if name in phases), {})
        spent = [seconds for phase in phases.values() if (seconds := cost.device_s(phase)) is not None]
        steps = [phase.summary.get("steps") or len(phase.steps) for phase in phases.values()]
        tokens = [phase.summary.get("tokens", 0) for phase in phases.values()]
        rows.append(
            (
                side.name,
                million(last["parameters"]) if last.get("parameters") else "–",
                f"{sum(steps):,}" if steps else "–",
                million(sum(tokens)) if sum(tokens) else "–",
                f"{last['world_size']} × {last.get('device', '?')}" if last.get("world_size") else "–",
                format_seconds(sum(spent)) if spent else "–",
                format_seconds(time_summary(side.facts.stages)["wall_s"]),
            )
        )
    head = ("run", "parameters", "steps", "tokens", "ranks", "device time", "all stages")
    names = list(dict.fromkeys(stage.name for side in sides for stage in side.facts.stages))
    wall = [{stage.name: stage.seconds for stage in side.facts.stages} for side in sides]
    stages = [(name, *(format_seconds(s[name]) if name in s else "–" for s in wall)) for name in names]
    return section(
        "Cost", [], note="Device time is that of training, times its ranks. A stage that was taken over counts once.",
        tables=[table(head, rows, "Cost of the runs"), table(("stage", *(s.name for s in sides)), stages, "Stages")],
    )  # fmt: skip
