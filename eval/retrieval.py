"""Every system on every set: rankings, metrics with intervals, and the queries that went wrong.

Invariant: nothing is skipped in silence. Each system ranks each query of each set, the counts add up or the evaluation
fails (`eval.counts`), and the rankings are stored, so that every figure in results.json can be computed again from them
(`eval.rankings`).
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from data_prep.errors import UserError
from data_prep.evaluation_sets import EvaluationSet, load_set
from data_prep.files import write_json
from data_prep.similarity_sets import SimilaritySet, load_similarity_set
from eval.breakdown import labels
from eval.counts import CountsDocuments, check_counts, set_counts, total_counts
from eval.examples import worst_of_all, wrong_queries
from eval.rankings import first_relevant, rank_file, safe_name, write_rankings
from eval.relevance import judge
from eval.results import Scores, assemble
from eval.robustness.config import RobustnessConfig
from eval.significance import PERMUTATIONS
from eval.sts import cosines, row_without_vectors, similarity_row, write_cosines
from eval.systems.config import SystemsConfig
from eval.systems.dense import DenseRanker
from eval.systems.listing import System
from eval.systems.published import published_beside
from train.encoder import TextEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.progress import Progress
    from eval.systems.ranker import Ranker

__all__ = ["EvalConfig", "evaluate", "rank_file"]


class EvalConfig(SystemsConfig):
    """[eval]: which systems are measured on which retrieval sets."""

    sets: list[str]
    """Folders in BEIR layout, or globs of them; `{data}` is the data folder. Also kept out of all training text."""
    sts: list[str] = Field(default=[])
    """Files of sentence pairs with `sentence1`, `sentence2`, `score`, or globs of them; `{data}` is the data folder.
    Systems that embed are measured by how their cosines agree with the scores. Also kept out of all training text."""
    ks: list[Annotated[int, Field(gt=0)]] = Field(default=[1, 3, 5, 10])
    """Ranks at which recall and success are read, rising; the paper's 1, 3, 5, 10."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """Resamplings behind each 95 % interval; 2,000 steady the third decimal and cost seconds."""
    permutations: Annotated[int, Field(ge=1000)] = PERMUTATIONS
    """Relabelings behind each p-value; 10,000 tell 1 in 1,000 from chance, also after correction for nine systems."""
    depth: Annotated[int, Field(ge=10)] = 100
    """Documents stored per query in ranks/; at least the largest k. `map` and `r_precision` are read to this depth, and
    are the plain figures where it covers the corpus."""
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

    robustness: RobustnessConfig | None = None
    """Also damage the queries and measure what recall is lost; off, since it asks some sixty times as many queries."""

    @field_validator("ks")
    @classmethod
    def _rising(cls, ks: list[int]) -> list[int]:
        if not ks or sorted(set(ks)) != ks:
            raise ValueError("must be rising ranks without repeats, such as [1, 3, 5, 10]")
        return ks


def evaluate(
    config: EvalConfig,
    *,
    sets: list[Path],
    systems: list[System],
    out: Path,
    seed: int,
    progress: Progress,
    sts: Sequence[Path] = (),
) -> dict[str, int | float]:
    """Measure all systems on all sets.

    Writes to `out`: `results.json`, `examples.json`, `ranks/SYSTEM__SET.parquet`, `encoding.json`, which says how fast
    our own models encoded, `sts/SYSTEM__SET.parquet` where there are sentence pairs, and `unjudged.json` (set → ids)
    where queries have no relevant document.

    Args:
        config: the [eval] table.
        sets: folders of evaluation sets, names (last parts) unique.
        systems: what to measure; loaded and freed one after the other.
        out: an existing empty folder.
        seed: of the bootstrap and the relabelings.
        progress: counts the ranking as work "encode" and the metrics as work "score".
        sts: files of sentence pairs, names unique.

    Returns:
        Counts: systems, sets, documents, queries, unjudged, rankings (systems times queries), rows, pairs.

    Raises:
        UserError: no set or system, names that clash, a broken set, or a system whose embeddings are not finite.
        CountError: the counts do not add up.
    """
    _unique([safe_name(path.name) for path in sets], "evaluation sets")
    _unique([safe_name(system.name) for system in systems], "systems")
    pairs = [load_similarity_set(path) for path in sts]
    if pairs:
        _unique([safe_name(one.name) for one in pairs], "files of sentence pairs")
    judged = [judge(load_set(path)) for path in sets]
    depth = max(config.depth, *config.ks)
    by_set = {one.task.name: set_counts(one, depth=min(depth, len(one.task.documents))) for one in judged}
    by_system: dict[str, dict[str, dict[str, Any]]] = {}
    scores, similarity = Scores(config.ks), _Similarity(pairs, config.bootstrap_samples, seed, out / "sts")
    examples: dict[str, list[dict[str, Any]]] = {}
    encoding: dict[str, dict[str, Any]] = {}
    (out / "ranks").mkdir(parents=True, exist_ok=True)
    progress.begin("evaluate", total=len(systems) * sum(len(j.task.queries) for j in judged), unit="queries")
    with progress.work("score"):
        groups = {one.task.name: labels(one) for one in judged}
    for system in systems:
        ranker = system.load()
        wrong: list[dict[str, Any]] = []
        told = by_system.setdefault(system.name, {})
        for one in judged:
            task = one.task
            with progress.work("encode"):
                ranked, values = _rank(ranker, system, task, depth)
            with progress.work("score"):
                path = out / "ranks" / rank_file(system.name, task.name)
                seen = ranker.documents_ranked if isinstance(ranker, CountsDocuments) else len(task.documents)
                told[task.name] = {
                    "documents": seen,
                    "scored": scores.add(system.name, one, ranked),
                    "rankings": write_rankings(path, one, ranked, values, groups[task.name]),
                }
                wrong += wrong_queries(one, ranked, values, first_relevant(one, ranked))
            progress.advance(len(task.queries), system=system.name)
        with progress.work("encode"):
            similarity.measure(system, ranker)
        if isinstance(ranker, DenseRanker) and isinstance(ranker.embedder, TextEncoder):
            encoding[system.name] = ranker.embedder.speed()
        examples[system.name] = worst_of_all(wrong)
        del ranker
        _free()
    with progress.work("score"):
        results = assemble(
            scores, systems=systems, sets=judged, labels=groups, samples=config.bootstrap_samples,
            permutations=config.permutations, seed=seed,
        )  # fmt: skip
    results["sts"] = similarity.rows
    results["published"] = published_beside(sets) if config.published else []
    counts = results["counts"] = total_counts(by_set, by_system, rows=results["rows"])
    check_counts(counts)
    unjudged = {one.task.name: one.task.unjudged for one in judged if one.task.unjudged}
    if unjudged:
        write_json(out / "unjudged.json", unjudged)
    write_json(out / "results.json", results)
    write_json(out / "examples.json", examples)
    write_json(out / "encoding.json", encoding)
    told_counts = ("systems", "sets", "documents", "unjudged", "rankings", "rows")
    found = {name: counts[name] for name in told_counts}
    return {**found, "queries": counts["scored"], "pairs": sum(len(one.scores) for one in pairs)}


class _Similarity:
    """The sentence pairs, and the rows of every system on them."""

    def __init__(self, sets: list[SimilaritySet], samples: int, seed: int, folder: Path) -> None:
        self.sets, self.samples, self.seed, self.folder = sets, samples, seed, folder
        self.rows: list[dict[str, Any]] = []
        if sets:
            folder.mkdir(parents=True, exist_ok=True)

    def measure(self, system: System, ranker: Ranker) -> None:
        """Add a row for each file of pairs; a system without vectors gets rows that say so."""
        for pairs in self.sets:
            if not isinstance(ranker, DenseRanker):
                self.rows.append(row_without_vectors(system.name, pairs))
                continue
            found = cosines(ranker.embedder, pairs, name=system.name)
            write_cosines(self.folder / rank_file(system.name, pairs.name), pairs, found)
            self.rows.append(similarity_row(system.name, pairs, found, samples=self.samples, seed=self.seed))


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
