"""Documents → pairs with hard negatives, from a teacher's neighbours.

Invariant: a negative always scores clearly below the query's worst positive (`negative_max_ratio`), is no near copy of
a positive, and is never the text of the query or of a positive (the rules are in `rules.py`). The same documents and
seed give the same pairs. `audit.json` tells what each rule took away, with score histograms and examples.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.corpus.keys import text_key
from data_prep.embed.embedder import Embedder
from data_prep.embed.teacher import TeacherConfig, fit_teacher
from data_prep.errors import UserError
from data_prep.mine.audit import Audit
from data_prep.mine.rules import Corpus, Selection
from data_prep.neighbors.search import Backend, top_k
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Score = Annotated[float, Field(ge=-1, le=1)]


class MineConfig(Section):
    """`[mine]`: which neighbours become positives and which hard negatives. Scores are cosines of the teacher."""

    teacher: TeacherConfig = TeacherConfig()
    """The embedder (`[mine.teacher]`)."""
    backend: Backend = "exact"
    """`exact` (blocked matrix product) or `kdtree` (as arXiv 2402.03053; same result, much slower)."""
    query: Literal["document", "first_line"] = "document"
    """What stands as the query: the whole document, or its first line (its title)."""
    max_documents: Annotated[int, Field(ge=2)] | None = None
    """Search among at most this many documents, drawn by the seed; none takes all. Time grows with its square."""
    max_queries: Annotated[int, Field(ge=1)] = 50_000
    """Mine for at most this many documents, drawn by the seed."""
    neighbors: Annotated[int, Field(ge=1)] = 50
    """Neighbours looked at per query; positives and negatives are both found among them."""
    positive_min_score: Score = 0.6
    """A positive must score at least this. 0.6 suits TF-IDF with 256 dimensions; see audit.json for another teacher."""
    positives_per_query: Annotated[int, Field(ge=1)] = 1
    """The best so many become positives; the second is less sure than the first."""
    duplicate_score: Score = 0.98
    """At or above this two texts are copies: a copy is no positive (it teaches nothing) and no negative."""
    negative_first_rank: Annotated[int, Field(ge=1)] = 10
    """Negatives come from this rank on (1 = nearest): nearer ones are too often answers as well."""
    negative_last_rank: Annotated[int, Field(ge=1)] = 50
    """… up to this rank; farther ones are too easy."""
    negatives_per_query: Annotated[int, Field(ge=0)] = 4
    """Draw so many of those that pass; 0 mines positives alone."""
    negative_max_ratio: Annotated[float, Field(gt=0, le=1)] = 0.95
    """A negative scores at most this share of the worst positive (0.95: the margin that NV-Retriever found best)."""
    negative_max_score: Score = 0.9
    """A negative never scores above this, however near the positive is."""
    min_negatives: Annotated[int, Field(ge=0)] = 0
    """Drop a query with fewer negatives; 0 keeps it, its batch gives it others."""

    @model_validator(mode="after")
    def _ranks_fit(self) -> MineConfig:
        if not self.negative_first_rank <= self.negative_last_rank <= self.neighbors:
            raise ValueError(
                f"mine: negative_first_rank ({self.negative_first_rank}) <= negative_last_rank "
                f"({self.negative_last_rank}) <= neighbors ({self.neighbors}) must hold"
            )
        if self.min_negatives > self.negatives_per_query:
            raise ValueError(
                f"mine.min_negatives = {self.min_negatives} must be at most "
                f"mine.negatives_per_query = {self.negatives_per_query}"
            )
        return self


def mine_pairs(
    config: MineConfig, *, documents: Path, out: Path, seed: int, progress: Progress
) -> dict[str, int | float]:
    """Embed, search, select; write `out/pairs` (kind `pairs`), `out/teacher` and `out/audit.json`.

    Args:
        documents: a shard folder of kind `documents`.
        seed: draws documents, queries, the teacher's sample and each query's negatives.

    Returns:
        Counts: documents (searched), zero_vectors (left out: no word that the teacher knows), queries, best_score (of
        any neighbour that is no copy), pairs, positives, negatives, without_negatives, and what each rule took away:
        refused_* are queries, skipped_* are neighbours.

    Raises:
        UserError: fewer documents than neighbours, a teacher that cannot be made, or no pair (the best score is named).
    """
    with progress.work("mine"):
        corpus, zero_vectors, teacher = _embed_documents(config, Shards(documents, "documents"), out, seed, progress)
        rows = _query_rows(config, corpus, seed)
        if not len(rows):
            raise UserError(
                f"mine.query = {config.query!r}",
                "leaves no query: no document has a first line and more",
                "use document",
            )
        queries = [corpus.texts[row] for row in rows]
        if config.query == "first_line":
            queries = [text.partition("\n")[0] for text in queries]
        if config.query == "document" and config.teacher.query_prefix == config.teacher.passage_prefix:
            vectors = corpus.vectors[rows]
        else:
            vectors = teacher.embed(queries, role="query", progress=progress)
        # One more than asked: a document finds itself.
        scores, indices = top_k(
            vectors, corpus.vectors, k=config.neighbors + 1, backend=config.backend, progress=progress
        )
        audit = Audit()
        best = -1.0
        progress.begin("select pairs", len(rows), "queries")
        with ShardWriter(out / "pairs", "pairs") as writer:
            for number, row in enumerate(rows.tolist()):
                pick = Selection(config, corpus, row, queries[number], audit.counts)
                found = pick.select(scores[number], indices[number], seed)
                best = max(best, pick.best)
                if found is not None:
                    writer.append(found)
                    audit.kept(found)
                progress.advance(1)
            if not audit.counts["pairs"]:
                raise _no_pairs(config, audit, best)
        counts: dict[str, int | float] = {
            "documents": len(corpus.texts),
            "zero_vectors": zero_vectors,
            "queries": len(rows),
            "best_score": round(best, 4),
            **audit.counts,
        }
        audit.write(out / "audit.json", policy=config.model_dump(), counts=counts, neighbor_scores=scores)
    return counts


def _embed_documents(
    config: MineConfig, shards: Shards, out: Path, seed: int, progress: Progress
) -> tuple[Corpus, int, Embedder]:
    """The searched documents with their vectors, how many were left out for a zero vector, and the teacher."""
    import numpy as np

    drawn = _draw(len(shards), config.max_documents, [seed, 1])
    needed = config.neighbors + 1
    if len(drawn) < needed:
        raise UserError(
            f"mine.neighbors = {config.neighbors}",
            f"needs at least {needed} documents, there are {len(drawn)}",
            "lower mine.neighbors (and mine.negative_last_rank) or give [corpus] more text",
        )
    rows = shards.take(drawn.tolist())
    texts = [row["text"] for row in rows]
    teacher = fit_teacher(config.teacher, texts, out=out / "teacher", seed=seed, progress=progress)
    vectors = teacher.embed(texts, role="passage", progress=progress)
    known = np.flatnonzero(vectors.any(axis=1))
    if len(known) < needed:
        raise UserError(
            f"mine.teacher on {len(drawn)} documents",
            f"knows words of only {len(known)} of them, mine.neighbors needs {needed}",
            "lower mine.teacher.min_documents or mine.neighbors, or give [corpus] more text",
        )
    rows = [rows[number] for number in known]
    corpus = Corpus(
        texts=[row["text"] for row in rows],
        keys=[text_key(row["text"]) for row in rows],
        ids=[row["id"] for row in rows],
        languages=[row["language"] for row in rows],
        vectors=vectors[known],
        first_lines=[text_key(row["text"].partition("\n")[0]) for row in rows] if config.query == "first_line" else [],
    )
    return corpus, len(drawn) - len(known), teacher


def _draw(total: int, most: int | None, seed: list[int]) -> NDArray[np.int64]:
    """At most `most` of `total` rows, sorted."""
    import numpy as np

    if most is None or most >= total:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False))


def _query_rows(config: MineConfig, corpus: Corpus, seed: int) -> NDArray[np.int64]:
    """Rows of the documents that are asked for; `first_line` needs a line and something after it."""
    import numpy as np

    rows = np.arange(len(corpus.texts))
    if config.query == "first_line":
        rows = np.flatnonzero([bool(text.partition("\n")[2].strip()) for text in corpus.texts])
    return rows[_draw(len(rows), config.max_queries, [seed, 2])]


def _no_pairs(config: MineConfig, audit: Audit, best: float) -> UserError:
    """Why nothing was mined, and the setting that would change it."""
    if audit.counts["refused_few_negatives"]:
        return UserError(
            f"mine.min_negatives = {config.min_negatives}",
            f"refuses all {audit.counts['refused_few_negatives']} queries that have a positive",
            "lower mine.min_negatives, raise mine.negative_max_ratio or widen the negative ranks",
        )
    if best < 0 and audit.counts["skipped_duplicate"]:
        return UserError(
            f"mine.duplicate_score = {config.duplicate_score}",
            "every neighbour is at or above it, so it counts as a copy",
            "raise mine.duplicate_score, or use another teacher",
        )
    reachable = math.floor(best * 10_000) / 10_000  # rounded down, so that the advice works as printed
    return UserError(
        f"mine.positive_min_score = {config.positive_min_score}",
        f"no query has a neighbour that near (the best score is {reachable:.4f})",
        f"set mine.positive_min_score to {reachable:.4f} or lower, or use another teacher",
    )
