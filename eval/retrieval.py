"""Every system on every set: rankings, metrics with intervals, and the queries that went wrong.

Invariant: nothing is skipped in silence. Each system ranks each query of each set, the number of rows is systems times
subsets, and the rankings are stored, so that every figure in results.json can be computed again from them.
"""

from __future__ import annotations

import gc
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.evaluation_sets import EvaluationSet, load_set
from data_prep.files import disk_errors, write_json
from eval import metrics
from eval.systems.dense import DenseRanker
from eval.systems.listing import System
from train.encoder import TextEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.progress import Progress
    from eval.systems.ranker import Ranker

EXAMPLES = 10
_EXAMPLE_CHARACTERS = 500


class EvalConfig(Section):
    """[eval]: which systems are measured on which retrieval sets."""

    sets: list[str]
    """Folders in BEIR layout, or globs of them; `{data}` is the data folder. Also kept out of all training text."""
    ks: list[Annotated[int, Field(gt=0)]] = Field(default=[1, 3, 5, 10])
    """Ranks at which recall is read, rising; the paper's 1, 3, 5, 10."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """Resamplings behind each 95 % interval; 2,000 steady the third decimal and cost seconds."""
    depth: Annotated[int, Field(ge=10)] = 100
    """Documents stored per query in ranks/; at least the largest k."""
    bm25: bool = True
    """Measure BM25, the baseline that needs no model."""
    teacher: bool = True
    """Measure the teacher that mined the pairs, if the recipe mines."""
    untrained: bool = True
    """Measure the truncated base before any training: what the pretraining starts from."""
    pretrained: bool = True
    """Measure the model after continued pretraining: what finetuning starts from."""
    finetuned: bool = True
    """Measure the finetuned model."""
    baselines: list[str] = Field(default=[])
    """Published sentence-transformers models: a folder, a Hugging Face id, or `package:NAME` (an installed package)."""
    max_length: Annotated[int, Field(gt=0)] | None = None
    """Cut texts for `baselines` after this many tokens; unset: each model's own limit."""
    batch_size: Annotated[int, Field(gt=0)] = 32
    """Texts in one forward pass of a baseline; changes memory and speed, not the result."""

    @field_validator("ks")
    @classmethod
    def _rising(cls, ks: list[int]) -> list[int]:
        if not ks or sorted(set(ks)) != ks:
            raise ValueError("must be rising ranks without repeats, such as [1, 3, 5, 10]")
        return ks


def evaluate(
    config: EvalConfig, *, sets: list[Path], systems: list[System], out: Path, seed: int, progress: Progress
) -> dict[str, int | float]:
    """Measure all systems on all sets.

    Writes to `out`: `results.json`, `examples.json`, `ranks/SYSTEM__SET.parquet`, and `encoding.json`, which says how
    fast our own models encoded.

    Args:
        config: the [eval] table.
        sets: folders of evaluation sets, names (last parts) unique.
        systems: what to measure; loaded and freed one after the other.
        out: an existing empty folder.
        seed: of the bootstrap.
        progress: counts the ranking as work "encode" and the metrics as work "score".

    Returns:
        Counts: systems, sets, documents, queries, rankings (systems times queries), rows.

    Raises:
        UserError: no set or system, names that clash, a broken set, or a system whose embeddings are not finite.
    """
    _unique([path.name for path in sets], "evaluation sets")
    _unique([_safe(system.name) for system in systems], "systems")
    loaded = [load_set(path) for path in sets]
    samples: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    means: dict[tuple[str, str, str], NDArray[np.float64]] = {}
    examples: dict[str, list[dict[str, Any]]] = {}
    encoding: dict[str, dict[str, Any]] = {}
    (out / "ranks").mkdir(parents=True, exist_ok=True)
    progress.begin("evaluate", total=len(systems) * sum(len(s.queries) for s in loaded), unit="queries")
    for system in systems:
        ranker = system.load()
        wrong: list[dict[str, Any]] = []
        for task in loaded:
            with progress.work("encode"):
                ranked, scores = _rank(ranker, system, task, max(config.depth, *config.ks))
            with progress.work("score"):
                _score(config, seed, system, task, ranked, samples, means)
                wrong += _write_ranks(out / "ranks" / rank_file(system.name, task.name), task, ranked, scores)
            progress.advance(len(task.queries), system=system.name)
        if isinstance(ranker, DenseRanker) and isinstance(ranker.embedder, TextEncoder):
            encoding[system.name] = ranker.embedder.speed()
        examples[system.name] = _worst(wrong)
        del ranker
        _free()
    with progress.work("score"):
        results = _results(config, seed, systems, loaded, samples, means)
    write_json(out / "results.json", results)
    write_json(out / "examples.json", examples)
    write_json(out / "encoding.json", encoding)
    queries = sum(len(s.queries) for s in loaded)
    return {
        "systems": len(systems),
        "sets": len(loaded),
        "documents": sum(len(s.documents) for s in loaded),
        "queries": queries,
        "rankings": queries * len(systems),
        "rows": len(results["rows"]),
    }


def rank_file(system: str, task: str) -> str:
    """The name of the stored rankings of a system on a set."""
    return f"{_safe(system)}__{_safe(task)}.parquet"


def _safe(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)


def _unique(names: Sequence[str], what: str) -> None:
    if not names:
        raise UserError(f"eval: no {what}", "at least one is needed", "name some in [eval]")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"eval: {what} named {twice[0]!r}", "two have the same name", "rename or leave out one")


def _free() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _rank(
    ranker: Ranker, system: System, task: EvaluationSet, depth: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rank and check what came back; a ranker that breaks its contract is a defect, not a bad score."""
    import numpy as np

    k = min(depth, len(task.documents))
    ranked, scores = ranker.rank(task.documents, task.queries, k)
    shape = (len(task.queries), k)
    ordered = np.sort(ranked, axis=1)
    if ranked.shape != shape or scores.shape != shape:
        raise RuntimeError(f"{system.name} on {task.name}: ranking has shape {ranked.shape}, not {shape}")
    if (ordered[:, 1:] == ordered[:, :-1]).any() or ordered.min() < 0 or ordered.max() >= len(task.documents):
        raise RuntimeError(f"{system.name} on {task.name}: a ranking repeats a document or names one that is not there")
    if not np.isfinite(scores).all() or (np.diff(scores, axis=1) > 0).any():
        raise RuntimeError(f"{system.name} on {task.name}: scores are not finite or rise along a ranking")
    return ranked, scores


def _relevant(task: EvaluationSet, subset: str) -> tuple[list[int], list[set[int]]]:
    """Rows of the subset's queries, and for each the indices of its relevant documents."""
    position = {document: index for index, document in enumerate(task.document_ids)}
    judged = task.relevant[subset]
    rows = [row for row, query in enumerate(task.query_ids) if query in judged]
    return rows, [{position[d] for d in judged[task.query_ids[row]]} for row in rows]


def _score(
    config: EvalConfig,
    seed: int,
    system: System,
    task: EvaluationSet,
    ranked: NDArray[np.int64],
    samples: dict[tuple[str, str, str], NDArray[np.float64]],
    means: dict[tuple[str, str, str], NDArray[np.float64]],
) -> None:
    for subset in task.relevant:
        rows, relevant = _relevant(task, subset)
        values = metrics.per_query(ranked[rows], relevant, ks=config.ks)
        key = (system.name, task.name, subset)
        rng = metrics.generator(seed, task.name, subset)  # the same draws for every system: differences are paired
        means[key] = values.mean(axis=0)
        samples[key] = metrics.bootstrap_means(values, samples=config.bootstrap_samples, rng=rng)


def _write_ranks(
    path: Path, task: EvaluationSet, ranked: NDArray[np.int64], scores: NDArray[np.float32]
) -> list[dict[str, Any]]:
    """Store the rankings of one set; returns its queries without a relevant document among the first ten."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[int | None] = [None] * len(task.queries)
    for subset in reversed(list(task.relevant)):  # "all" is first, so it has the last word
        rows, relevant = _relevant(task, subset)
        marked = metrics.hits(ranked[rows], relevant)
        for row, hit in zip(rows, marked, strict=True):
            found[row] = int(hit.argmax()) + 1 if hit.any() else None
    ids = [[task.document_ids[d] for d in row] for row in ranked.tolist()]
    table = pa.table(
        {
            "query_id": pa.array(task.query_ids, pa.string()),
            "document_ids": pa.array(ids, pa.list_(pa.string())),
            "scores": pa.array(scores.tolist(), pa.list_(pa.float32())),
            "relevant_rank": pa.array(found, pa.int32()),
        }
    )
    with disk_errors(path):
        pq.write_table(table, path, compression="zstd")
    rows, relevant = _relevant(task, "all")
    wrong: list[dict[str, Any]] = []
    for row, answers in zip(rows, relevant, strict=True):
        rank = found[row]
        if rank is None or rank > metrics.CUTOFF:
            wrong.append(
                {
                    "set": task.name,
                    "query_id": task.query_ids[row],
                    "query": _cut(task.queries[row]),
                    "relevant": _cut(task.documents[min(answers)]),
                    "relevant_rank": rank,
                    "depth": int(ranked.shape[1]),
                    "retrieved": [
                        {"text": _cut(task.documents[d]), "score": round(float(s), 4)}
                        for d, s in zip(ranked[row, :3].tolist(), scores[row, :3].tolist(), strict=True)
                    ],
                }
            )
    wrong.sort(key=lambda w: (-(w["relevant_rank"] or sys.maxsize), w["query_id"]))
    return wrong[:EXAMPLES]


def _cut(text: str) -> str:
    return text if len(text) <= _EXAMPLE_CHARACTERS else text[: _EXAMPLE_CHARACTERS - 1] + "…"


def _worst(wrong: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ten of the worst queries, dealt from the sets in turn so that one hard set does not fill the list."""
    by_set: dict[str, list[dict[str, Any]]] = {}
    for example in wrong:
        by_set.setdefault(example["set"], []).append(example)
    dealt = [examples[turn] for turn in range(EXAMPLES) for examples in by_set.values() if turn < len(examples)]
    return dealt[:EXAMPLES]


def _results(
    config: EvalConfig,
    seed: int,
    systems: list[System],
    loaded: list[EvaluationSet],
    samples: dict[tuple[str, str, str], NDArray[np.float64]],
    means: dict[tuple[str, str, str], NDArray[np.float64]],
) -> dict[str, Any]:
    import numpy as np

    names = metrics.metric_names(config.ks)
    rows = [
        {
            "system": system.name,
            "set": task.name,
            "subset": subset,
            "queries": len(task.relevant[subset]),
            "metrics": metrics.summary(names, means[key], samples[key]),
        }
        for system in systems
        for task in loaded
        for subset in task.relevant
        if (key := (system.name, task.name, subset)) in means
    ]
    if len(rows) != len(systems) * sum(len(task.relevant) for task in loaded):
        raise RuntimeError(f"{len(rows)} rows for {len(systems)} systems: a system was not scored on every subset")
    subsets = list(dict.fromkeys(subset for task in loaded for subset in task.relevant))
    macro, differences = [], []
    reference = next((s.name for s in reversed(systems) if s.kind == "finetuned"), None)
    for subset in subsets:
        tasks = [task.name for task in loaded if subset in task.relevant]
        mean = {s.name: np.mean([means[s.name, t, subset] for t in tasks], axis=0) for s in systems}
        drawn = {s.name: np.mean([samples[s.name, t, subset] for t in tasks], axis=0) for s in systems}
        for system in systems:
            summary = metrics.summary(names, mean[system.name], drawn[system.name])
            macro.append({"system": system.name, "subset": subset, "sets": len(tasks), "metrics": summary})
            if reference is not None and system.name != reference:
                gain = metrics.summary(
                    names, mean[reference] - mean[system.name], drawn[reference] - drawn[system.name]
                )
                differences.append({"system": reference, "against": system.name, "subset": subset, "metrics": gain})
    return {
        "ks": list(config.ks),
        "bootstrap": {"samples": config.bootstrap_samples, "level": metrics.LEVEL, "seed": seed},
        "systems": [{"name": s.name, "kind": s.kind, "detail": s.detail} for s in systems],
        "sets": [
            {
                "name": task.name,
                "documents": len(task.documents),
                "queries": len(task.queries),
                "subsets": {subset: len(judged) for subset, judged in task.relevant.items()},
            }
            for task in loaded
        ],
        "rows": rows,
        "means": macro,
        "differences": differences,
    }
