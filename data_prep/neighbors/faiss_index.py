"""The backend `faiss`: any index that faiss can build, declared by the recall that it reaches here.

Its candidates are scored as everywhere, so its scores are exact; which neighbours it misses depends on the index. The
recall is measured on a sample of the queries against the exact backend, said, and returned. Holds the corpus in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from data_prep.embed.vectors import ArrayVectors
from data_prep.errors import UserError
from data_prep.neighbors.found import Found
from data_prep.neighbors.scoring import Metric, rescore, results_of
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors

SAMPLE = 256
"""Queries that the recall is measured on: a share is known to about three points."""
_SPARE = 16
_BLOCK_ROWS = 1024
_TRAIN_ROWS = 262_144


def search_faiss(
    queries: Vectors,
    corpus: Vectors,
    *,
    k: int,
    metric: Metric | None,
    exclude: NDArray[np.int64] | None,
    progress: Progress,
    index: str,
) -> Found:
    """See `search`.

    Raises:
        UserError: faiss is missing, or does not know the index or cannot train it on so few rows.
    """
    import numpy as np

    from data_prep.neighbors.survey import survey

    for name, vectors in (("query", queries), ("corpus", corpus)):
        survey(vectors, name, metric, digest=False)
    euclidean = metric == "euclidean"
    built = _build(corpus, index, euclidean=euclidean)
    hidden = np.full(queries.rows, -1, dtype=np.int64) if exclude is None else exclude
    width = min(k + 1 + _SPARE, corpus.rows)
    keys = np.empty((queries.rows, k), dtype=np.int64)
    progress.begin("find neighbours", queries.rows, "queries")
    for start in range(0, queries.rows, _BLOCK_ROWS):
        block = queries.read(start, min(start + _BLOCK_ROWS, queries.rows))
        rows = slice(start, start + len(block))
        _, where = built.search(np.ascontiguousarray(block), width)
        candidates = np.where(where == hidden[rows, None], -1, where)
        keys[rows] = rescore(block, corpus, candidates, k=k, euclidean=euclidean)
        progress.advance(len(block))
    scores, indices = results_of(keys, euclidean=euclidean)
    recall, asked = _recall(queries, corpus, indices, k=k, metric=metric, exclude=exclude)
    progress.note(
        f"faiss index {index}: {100 * recall:.2f} % of the true {k} neighbours found, measured on {asked} queries"
    )
    return Found(scores=scores, indices=indices, recall=recall)


def _build(corpus: Vectors, index: str, *, euclidean: bool) -> Any:
    """The trained index with all rows."""
    import numpy as np
    import torch

    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "the faiss backend", "needs faiss, which is not installed", "pip install 'rumpun[faiss]'"
        ) from error
    faiss.omp_set_num_threads(torch.get_num_threads())
    kind = faiss.METRIC_L2 if euclidean else faiss.METRIC_INNER_PRODUCT
    try:
        built = faiss.index_factory(corpus.dimension, index, kind)
        if not built.is_trained:
            drawn = np.random.default_rng(0).choice(corpus.rows, min(corpus.rows, _TRAIN_ROWS), replace=False)
            built.train(np.ascontiguousarray(corpus.take(np.sort(drawn))))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"faiss index {index!r}", f"cannot be built ({reason})", 'use "Flat" or "HNSW32"') from error
    for start in range(0, corpus.rows, _BLOCK_ROWS):
        built.add(np.ascontiguousarray(corpus.read(start, min(start + _BLOCK_ROWS, corpus.rows))))
    return built


def _recall(
    queries: Vectors,
    corpus: Vectors,
    indices: NDArray[np.int64],
    *,
    k: int,
    metric: Metric | None,
    exclude: NDArray[np.int64] | None,
) -> tuple[float, int]:
    """The share of the exact neighbours found, over a sample of the queries, and how many were asked."""
    import numpy as np

    from data_prep.neighbors.search import search, top_k

    drawn = np.unique(np.linspace(0, queries.rows - 1, min(SAMPLE, queries.rows)).astype(np.int64))
    asked = queries.take(drawn)
    if metric is None:
        hidden = exclude is not None
        whole = corpus.read(0, corpus.rows)
        _, true = top_k(asked, whole, k=min(k + hidden, corpus.rows))
        true = np.stack(
            [row[row != own][:k] for row, own in zip(true, drawn if hidden else drawn * 0 - 1, strict=True)]
        )
    else:
        true = search(
            ArrayVectors(asked, normalised=queries.normalised),
            corpus,
            k=k,
            metric=metric,
            exclude=None if exclude is None else exclude[drawn],
        ).indices
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(true, indices[drawn], strict=True))
    return hits / true.size, len(drawn)
