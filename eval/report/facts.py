"""What a run folder says about itself, read without recomputing anything.

Invariant: every figure of the report comes from a file of the run. A file that is absent or damaged is noted under the
section that it would have filled; nothing is invented in its place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json, read_jsonl

STAGE_ORDER = (
    "generate", "corpus", "held_out", "tokenizer", "tokens", "pairs", "mine", "synth", "gate", "gate_pairs",
    "base", "probe", "truncate", "pretrain", "finetune", "eval", "export",
)  # fmt: skip
"""The order of the pipeline; stages with other names follow in the order of their names."""


@dataclass(frozen=True)
class Stage:
    """One finished stage, from its stage.json. Seconds are those of the run that built it."""

    name: str
    seconds: float
    work_s: dict[str, float]
    counts: dict[str, int | float]
    config: dict[str, Any]
    started_at: str | None
    commit: str | None
    rumpun: str | None

    @property
    def working_s(self) -> float:
        """Seconds of real work: tokenising, mining, training, encoding …; at most `seconds`."""
        return min(sum(self.work_s.values()), self.seconds)

    @property
    def overhead_s(self) -> float:
        """Seconds that were none of these."""
        return self.seconds - self.working_s


@dataclass(frozen=True)
class Phase:
    """One training phase: its steps (records with a loss), validation records and summary."""

    steps: list[dict[str, Any]]
    validations: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class DataReports:
    """What the data stages wrote about themselves; None or empty where the run has no such stage."""

    corpus: dict[str, Any] | None
    pairs: dict[str, Any] | None
    audit: dict[str, Any] | None
    synth: dict[str, Any] | None
    gates: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class RunFacts:
    """Everything that the report reads. `missing` maps a section to why it is left out."""

    stages: list[Stage]
    results: dict[str, Any] | None
    examples: dict[str, list[dict[str, Any]]]
    phases: dict[str, Phase]
    probe: dict[str, Any] | None
    data: DataReports
    parity: dict[str, Any] | None
    robustness: dict[str, Any] | None
    encoding: dict[str, Any]
    recipe: tuple[str, str] | None
    missing: dict[str, str] = field(default_factory=dict)


def read_run(run: Path) -> RunFacts:
    """Read all that a run folder holds. Raises `UserError` where no stage of it is finished."""
    missing: dict[str, str] = {}
    stages = _stages(run, missing)
    if not stages:
        raise UserError(str(run), "holds no finished stage (no */stage.json)", "run it first: rumpun run RECIPE")
    results = _optional(run / "eval" / "results.json", "results", missing)
    if results is not None and not all(
        results.get(key) for key in ("systems", "sets", "rows", "means", "ks", "bootstrap")
    ):
        missing["results"] = "eval/results.json holds no results"
        results = None
    examples = _optional(run / "eval" / "examples.json", "worst queries", missing)
    phases = {}
    for name in ("pretrain", "finetune"):
        phase = _phase(run / name, missing)
        if phase is not None:
            phases[name] = phase
    return RunFacts(
        stages=stages,
        results=results,
        examples=examples or {},
        phases=phases,
        probe=_probe(run / "probe", missing),
        data=_data(run, {stage.name for stage in stages}, missing),
        parity=_optional(run / "export" / "parity.json", "export parity", missing),
        robustness=_robustness(run, missing),
        encoding=_beside(run / "eval" / "encoding.json", "speed of encoding", missing) or {},
        recipe=_recipe(run),
        missing=missing,
    )


def _data(run: Path, stages: set[str], missing: dict[str, str]) -> DataReports:
    """The reports of the data stages that the run has; a stage that it does not have is not missing."""

    def report(stage: str, file: str, section: str) -> dict[str, Any] | None:
        return _optional(run / stage / file, section, missing) if stage in stages else None

    gates = {name: report(name, "proof.json", f"proof of {name}") for name in ("gate", "gate_pairs")}
    return DataReports(
        corpus=report("corpus", "report.json", "what cleaning removed"),
        pairs=report("pairs", "report.json", "labelled pairs"),
        audit=report("mine", "audit.json", "mining audit"),
        synth=report("synth", "report.json", "questions that were made"),
        gates={name: proof for name, proof in gates.items() if proof is not None},
    )


def time_summary(stages: list[Stage]) -> dict[str, float]:
    """Seconds of all stages together: `wall_s`, `work_s`, `overhead_s`, and `overhead_percent` of the wall time."""
    wall = sum(stage.seconds for stage in stages)
    work = sum(stage.working_s for stage in stages)
    return {
        "wall_s": round(wall, 3),
        "work_s": round(work, 3),
        "overhead_s": round(wall - work, 3),
        "overhead_percent": round(100 * (wall - work) / wall, 2) if wall > 0 else 0.0,
    }


def _optional(path: Path, section: str, missing: dict[str, str]) -> dict[str, Any] | None:
    """A JSON object, or None with a note of why not."""
    place = f"{path.parent.name}/{path.name}"
    if not path.is_file():
        missing[section] = f"the run has no {place}"
        return None
    try:
        value = read_json(path)
    except UserError as error:
        missing[section] = f"{place} {error.rule}"
        return None
    if not isinstance(value, dict):
        missing[section] = f"{place} is not a JSON object"
        return None
    return value


def _beside(path: Path, section: str, missing: dict[str, str]) -> dict[str, Any] | None:
    """A JSON object that not every run has: only a damaged one is missing."""
    return _optional(path, section, missing) if path.exists() else None


def _robustness(run: Path, missing: dict[str, str]) -> dict[str, Any] | None:
    """Measured with the evaluation, or beside it in a folder of its own."""
    for folder in ("eval", "robustness"):
        if (run / folder / "robustness.json").exists():
            return _beside(run / folder / "robustness.json", "robustness", missing)
    return None


def _stages(run: Path, missing: dict[str, str]) -> list[Stage]:
    found = []
    for path in sorted(run.glob("*/stage.json")):
        name = path.parent.name
        record = _optional(path, f"stage {name}", missing)
        if record is None or name == "report" or name.startswith("."):
            continue
        found.append(
            Stage(
                name=name,
                seconds=_number(record.get("seconds")),
                work_s={k: _number(v) for k, v in _mapping(record.get("work_s")).items()},
                counts={k: v for k, v in _mapping(record.get("counts")).items() if isinstance(v, (int, float))},
                config=dict(_mapping(record.get("config"))),
                started_at=record.get("started_at"),
                commit=record.get("commit"),
                rumpun=record.get("rumpun"),
            )
        )
    rank = {name: position for position, name in enumerate(STAGE_ORDER)}
    return sorted(found, key=lambda s: (rank.get(s.name, len(rank)), s.name))


def _phase(folder: Path, missing: dict[str, str]) -> Phase | None:
    section = f"{folder.name} curves"
    path = folder / "metrics.jsonl"
    if not path.is_file():
        missing[section] = f"the run has no {folder.name}/metrics.jsonl"
        return None
    records: list[dict[str, Any]] = []
    try:
        records.extend(row for _, row in read_jsonl(path, required=()))
    except UserError as error:  # a line cut off by a crash: what stands before it is still true
        missing[section] = f"{folder.name}/metrics.jsonl is read up to a damaged line ({error.rule})"
    steps = [r for r in records if _finite(r.get("loss")) and _finite(r.get("step"))]
    if not steps:
        missing.setdefault(section, f"{folder.name}/metrics.jsonl holds no step")
        return None
    validations = [r for r in records if _finite(r.get("validation_loss")) and _finite(r.get("step"))]
    summary = _optional(folder / "summary.json", f"{folder.name} summary", missing)
    return Phase(steps, validations, summary or {})


def _probe(folder: Path, missing: dict[str, str]) -> dict[str, Any] | None:
    """The depth probe, which a recipe may leave out: then nothing is missing."""
    if not folder.is_dir():
        return None
    record = _optional(folder / "probe.json", "depth probe", missing)
    wanted = (
        "rows",
        "base_layers",
        "metric",
        "convention",
        "queries",
        "passages",
        "source",
        "level",
        "best_layers",
        "enough_layers",
    )
    if record is not None and not all(key in record for key in wanted):
        missing["depth probe"] = "probe/probe.json lacks a figure"
        return None
    return record


def _recipe(run: Path) -> tuple[str, str] | None:
    """Name and text of the recipe as resolved, if the run keeps one."""
    for name in ("recipe.toml", "recipe.json"):
        if (run / name).is_file():
            return name, (run / name).read_text(encoding="utf-8", errors="replace")
    return None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float:
    return float(value) if _finite(value) else 0.0


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
