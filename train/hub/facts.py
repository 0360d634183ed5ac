"""What a run folder and a model folder say about a model, as the card needs it.

Invariant: nothing is computed anew and nothing is guessed. What is absent, damaged or of other weights is None or
empty, and the card says "not recorded".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NO_LANGUAGE = {"xx", "und", "mul", "mix"}


@dataclass(frozen=True)
class ModelShape:
    """What the folder itself says: dimension of the vectors, layers, longest text in tokens, pooling, prompts, the
    folder of a projection after the pooling, whether vectors are normalised, whether attention looks both ways,
    shorter prefixes of the vector that were trained too."""

    dimension: int | None
    layers: int | None
    max_tokens: int | None
    architecture: str | None
    pooling: str | None
    prompt_in_pooling: bool
    projection: str | None
    normalised: bool
    query_prompt: str
    passage_prompt: str
    bidirectional: bool
    prefixes: list[int]


@dataclass(frozen=True)
class CardFacts:
    """Everything that the card tells of the run; `stages` maps a stage to its record."""

    shape: ModelShape
    stages: Mapping[str, Mapping[str, Any]]
    corpus: Mapping[str, Any]
    pairs: Mapping[str, Any]
    synth: Mapping[str, Any]
    gates: Mapping[str, Mapping[str, Any]]
    phases: Mapping[str, Mapping[str, Any]]
    results: Mapping[str, Any]
    parity: Mapping[str, Any]
    recipe: str

    def counts(self, stage: str) -> Mapping[str, Any]:
        """What a stage counted."""
        return mapping(self.stages.get(stage, {}).get("counts"))

    def config(self, stage: str, table: str) -> Mapping[str, Any]:
        """The settings of a stage."""
        return mapping(mapping(self.stages.get(stage, {}).get("config")).get(table))


def read_facts(model: Path, run: Path | None) -> CardFacts:
    """Read all of it; a file that is not there or damaged is left out."""
    stages: dict[str, Mapping[str, Any]] = {}
    at = run if run is not None else model / "no run"
    for path in sorted(run.glob("*/stage.json")) if run is not None else []:
        if (record := _read(path)) and not path.parent.name.startswith("."):
            stages[path.parent.name] = record
    results = _read(at / "eval" / "results.json")
    if not _of_this_model(stages):
        results = {}
    recipe = at / "recipe.toml"
    return CardFacts(
        shape=read_shape(model),
        stages=stages,
        corpus=_read(at / "corpus" / "report.json"),
        pairs=_read(at / "pairs" / "report.json"),
        synth=_read(at / "synth" / "report.json"),
        gates={name: proof for name in ("gate", "gate_pairs") if (proof := _read(at / name / "proof.json"))},
        phases={name: told for name in ("pretrain", "finetune") if (told := _read(at / name / "summary.json"))},
        results=results,
        parity=_read(model.parent / "parity.json") or _read(model / "parity.json"),
        recipe=recipe.read_text(encoding="utf-8", errors="replace") if run is not None and recipe.is_file() else "",
    )


def _of_this_model(stages: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the evaluation and the export are of the same finetuned weights, as far as the records tell."""
    inputs = [mapping(stages.get(name, {}).get("inputs")).get("finetune") for name in ("eval", "export")]
    return None in inputs or inputs[0] == inputs[1]


def read_shape(model: Path) -> ModelShape:
    """The folder's own files, in any spelling that sentence-transformers has used."""
    config, st = _read(model / "config.json"), _read(model / "config_sentence_transformers.json")
    limits, prompts = _read(model / "sentence_bert_config.json"), mapping(st.get("prompts"))
    prefixes = st.get("matryoshka_dims")
    modules = _list(model / "modules.json")
    kinds = {str(m.get("type", "")).rsplit(".", 1)[-1]: str(m.get("path", "")) for m in modules}
    pooling = _read(model / kinds["Pooling"] / "config.json") if kinds.get("Pooling") else {}
    dense = _read(model / kinds["Dense"] / "config.json") if kinds.get("Dense") else {}
    dimension, architectures = dense.get("out_features") or config.get("hidden_size"), config.get("architectures")
    return ModelShape(
        dimension=whole(dimension),
        layers=whole(config.get("num_hidden_layers")),
        max_tokens=whole(limits.get("max_seq_length")),
        architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else None,
        pooling=_pooling(pooling),
        prompt_in_pooling=pooling.get("include_prompt") is not False,
        projection=kinds["Dense"] if dense else None,
        normalised="Normalize" in kinds,
        query_prompt=str(prompts.get("query") or ""),
        passage_prompt=str(prompts.get("document") or prompts.get("passage") or ""),
        bidirectional=config.get("is_causal") is False,
        prefixes=[n for n in prefixes if whole(n)] if isinstance(prefixes, list) else [],
    )


def _pooling(config: Mapping[str, Any]) -> str | None:
    stated = config.get("pooling_mode")
    if isinstance(stated, str):
        return stated
    names = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_lasttoken": "lasttoken",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_weightedmean_tokens": "weightedmean",
    }
    set_ = [name for key, name in names.items() if config.get(key) is True]
    return set_[0] if len(set_) == 1 else None


def languages(facts: CardFacts) -> list[str]:
    """Codes of the languages of the corpus, most kept documents first; those that a guess left open are left out."""
    kept: dict[str, int] = {}
    for row in objects(facts.corpus.get("languages")):
        code, count = str(row.get("language", "")), whole(row.get("kept")) or 0
        if re.fullmatch(r"[a-z]{2,3}", code) and code not in NO_LANGUAGE and count > 0:
            kept[code] = kept.get(code, 0) + count
    return sorted(kept, key=lambda code: (-kept[code], code))


def finetuned(facts: CardFacts) -> str | None:
    """The name under which the results list this model."""
    systems = objects(facts.results.get("systems"))
    return next((str(s["name"]) for s in systems if s.get("kind") == "finetuned" and "name" in s), None)


def rows(facts: CardFacts, *, subset: str = "all") -> dict[tuple[str, str], Mapping[str, Any]]:
    """(system, set) → its row of results."""
    found = {}
    for row in objects(facts.results.get("rows")):
        if row.get("subset") == subset:
            found[str(row.get("system")), str(row.get("set"))] = row
    return found


def interval(metrics: Any, name: str) -> tuple[float, float, float] | None:
    """(mean, low, high) of a metric; None where one of them is missing or not finite."""
    cell = mapping(mapping(metrics).get(name))
    values = [cell.get(key) for key in ("mean", "low", "high")]
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in values):
        return None
    return float(values[0]), float(values[1]), float(values[2])  # type: ignore[arg-type]


def lineage(facts: CardFacts) -> str | None:
    """One SHA-256 over the name and content of every stage that the exported weights come from."""
    seen: dict[str, str] = {}
    open_ = ["export"] if "export" in facts.stages else []
    while open_:
        name = open_.pop()
        content = facts.stages.get(name, {}).get("content")
        if name in seen or not isinstance(content, str):
            continue
        seen[name] = content
        open_ += list(mapping(facts.stages[name].get("inputs")))
    if not seen:
        return None
    return hashlib.sha256("".join(f"{name} {seen[name]}\n" for name in sorted(seen)).encode()).hexdigest()


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects of a list; none where the value is no list."""
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list) else []


def whole(value: Any) -> int | None:
    """The value if it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _list(path: Path) -> list[Mapping[str, Any]]:
    try:
        return objects(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return []
