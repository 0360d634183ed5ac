"""The k nearest neighbours of every query, exactly.

Invariant: a score is the inner product computed in float64 and rounded once to float32; neighbours are ordered by
score, equal scores by the lower index. So neither block sizes, nor the number of threads, nor the backend changes a
result. Both backends first collect candidates (fast, inexact in the last bits) with a margin that covers their rounding
error, and then score the candidates alike.

Backends: `exact`, a blocked matrix product with a running top-k; on the GPU where there is one. `kdtree`,
scipy.spatial.KDTree on unit vectors, as arXiv 2402.03053 mined; in embedding dimensions it is tens of times slower.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from data_prep.errors import UserError
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Backend = Literal["exact", "kdtree"]
_SPARE = 16
"""Candidates collected beyond k: rows with more near-ties than this are searched again, one by one."""
_SCORE_BYTES = 1 << 27


def top_k(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    *,
    k: int,
    backend: Backend = "exact",
    exclude_self: bool = False,
    block_rows: int = 1024,
    block_columns: int = 16_384,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores [q, k] and indices [q, k] of the k best rows of the corpus for each query, best first.

    Args:
        queries: [q, d] float32.
        corpus: [n, d] float32; unit rows for `kdtree`.
        k: neighbours a query.
        exclude_self: row i of the corpus is no neighbour of query i (the two are the same texts).
        block_rows, block_columns: size of one score block (float32, so 64 MB by default); bounds the memory.

    Raises:
        UserError: k outside 1 … n (n - 1 with `exclude_self`), a value that is not finite, or rows that are not unit
            vectors for `kdtree`.
        ValueError: shapes or block sizes that make no sense.
    """
    import numpy as np

    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries {queries.shape} and corpus {corpus.shape} are not [q, d] and [n, d]")
    if exclude_self and len(queries) != len(corpus):
        raise ValueError("exclude_self needs the same rows as queries and as corpus")
    if block_rows < 1 or block_columns < 1:
        raise ValueError("block_rows and block_columns must be positive")
    most = len(corpus) - exclude_self
    if not 1 <= k <= most:
        raise UserError(f"{k} neighbours", f"must be between 1 and {most} for {len(corpus)} texts", "change the number")
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    corpus = np.ascontiguousarray(corpus, dtype=np.float32)
    for name, vectors in (("query", queries), ("corpus", corpus)):
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise UserError(
                f"{name} vector of row {bad[0]}", "holds NaN or infinity", "remove that text or mend the embedder"
            )
    scores = np.empty((len(queries), k), dtype=np.float32)
    indices = np.empty((len(queries), k), dtype=np.int64)
    if progress:
        progress.begin("find neighbours", len(queries), "queries")
    with _full_precision():
        _search(queries, corpus, k, backend, exclude_self, (block_rows, block_columns), scores, indices, progress)
    return scores, indices


@contextmanager
def _full_precision() -> Iterator[None]:
    """Full float32 products: TF32 (or bfloat16 on some CPUs) would break the rounding bound."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _search(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    k: int,
    backend: Backend,
    exclude_self: bool,
    blocks: tuple[int, int],
    scores: NDArray[np.float32],
    indices: NDArray[np.int64],
    progress: Progress | None,
) -> None:
    """Fill `scores` and `indices` [q, k], block by block."""
    import numpy as np

    search = _ExactSearch(corpus, blocks[1]) if backend == "exact" else _TreeSearch(corpus, queries)
    wanted = k + exclude_self  # a query may find itself first
    for start in range(0, len(queries), blocks[0]):
        block = queries[start : start + blocks[0]]
        own = np.arange(start, start + len(block)) if exclude_self else None
        rows = slice(start, start + len(block))
        candidates, complete = search.candidates(block, min(wanted + _SPARE, len(corpus)), wanted)
        scores[rows], indices[rows] = _rescore(block, corpus, candidates, k, own)
        for row in np.flatnonzero(~complete):
            one = slice(row, row + 1)
            candidates = search.all_candidates(block[one], wanted)[None]
            found = _rescore(block[one], corpus, candidates, k, None if own is None else own[one])
            scores[start + row], indices[start + row] = found[0][0], found[1][0]
        if progress:
            progress.advance(len(block))


def _rescore(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    candidates: NDArray[np.int64],
    k: int,
    own: NDArray[np.int64] | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Score candidates [q, c] in float64, round, order by (score, index) and keep k."""
    import numpy as np

    scores = np.empty(candidates.shape, dtype=np.float32)
    columns_step = min(candidates.shape[1], max(1, _SCORE_BYTES // (8 * queries.shape[1])))
    rows_step = max(1, _SCORE_BYTES // (8 * queries.shape[1] * columns_step))
    for top in range(0, candidates.shape[0], rows_step):
        wide = queries[top : top + rows_step].astype(np.float64)
        for left in range(0, candidates.shape[1], columns_step):
            part = (slice(top, top + rows_step), slice(left, left + columns_step))
            # einsum adds each product in the same order whatever the other rows are: equal vectors get equal scores.
            scores[part] = np.einsum("qcd,qd->qc", corpus[candidates[part]].astype(np.float64), wide)
    if own is not None:
        scores[candidates == own[:, None]] = -np.inf
    order = np.lexsort((candidates, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(candidates, order, 1)


def _squared_norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    norms: NDArray[np.float64] = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return norms


def _rounding(queries: NDArray[np.float32], corpus_norm: float) -> float:
    """A bound on how far a float32 inner product and its rounding may be from the exact one.

    (dimension + 4) × unit roundoff × the largest norms: the standard bound for a sum of products in any order.
    """
    norm = float(_squared_norms(queries).max(initial=0.0)) ** 0.5
    return float((queries.shape[1] + 4) * 2.0**-24 * norm * corpus_norm)


class _ExactSearch:
    def __init__(self, corpus: NDArray[np.float32], block_columns: int) -> None:
        import torch

        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._corpus = torch.from_numpy(corpus).to(self._device)
        self._block = block_columns
        self._norm = float(_squared_norms(corpus).max(initial=0.0)) ** 0.5

    def _blocks(self) -> list[tuple[int, int]]:
        return [(a, min(a + self._block, len(self._corpus))) for a in range(0, len(self._corpus), self._block)]

    def candidates(
        self, queries: NDArray[np.float32], count: int, wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Indices [q, count], and for which queries they surely hold the best `wanted`."""
        import torch

        block = torch.from_numpy(queries).to(self._device)
        best = torch.empty((len(queries), 0), device=self._device)
        where = torch.empty((len(queries), 0), dtype=torch.int64, device=self._device)
        for start, stop in self._blocks():
            scores = block @ self._corpus[start:stop].T
            top, column = scores.topk(min(count, stop - start), dim=1)
            best, where = torch.cat([best, top], 1), torch.cat([where, column + start], 1)
            if best.shape[1] > count:
                best, kept = best.topk(count, dim=1)
                where = where.gather(1, kept)
        order = best.argsort(dim=1, descending=True)
        best, where = best.gather(1, order), where.gather(1, order)
        # What was left out scores at most best[:, -1]; twice the rounding covers an error on either side.
        surely = best[:, -1] < best[:, wanted - 1] - 2 * _rounding(queries, self._norm)
        complete = surely | (count == len(self._corpus))
        return where.cpu().numpy(), complete.cpu().numpy()

    def all_candidates(self, query: NDArray[np.float32], wanted: int) -> NDArray[np.int64]:
        """Every index that may belong to the best `wanted` of one query [1, d]."""
        import torch

        block = torch.from_numpy(query).to(self._device)
        scores = torch.cat([(block @ self._corpus[a:b].T)[0] for a, b in self._blocks()])
        floor = scores.topk(wanted).values[-1] - 2 * _rounding(query, self._norm)
        return (scores >= floor).nonzero()[:, 0].cpu().numpy()


class _TreeSearch:
    def __init__(self, corpus: NDArray[np.float32], queries: NDArray[np.float32]) -> None:
        import numpy as np
        from scipy.spatial import KDTree

        self._slack = 2.0**-20  # squared distance: rounding of scores to float32, and of the tree's own sums
        for name, vectors in (("query", queries), ("corpus", corpus)):
            norms = _squared_norms(vectors)
            off = np.abs(norms - 1)
            bad = np.flatnonzero(off > 1e-4)
            self._slack += 4 * float(off.max(initial=0.0))
            if len(bad):
                raise UserError(
                    f"{name} vector of row {bad[0]}",
                    f"has length {norms[bad[0]] ** 0.5:.4f}, the kdtree backend needs unit vectors",
                    'normalise the vectors, drop empty texts, or set the backend to "exact"',
                )
        self._size = len(corpus)
        self._tree = KDTree(corpus.astype(np.float64), leafsize=40)

    def candidates(
        self, queries: NDArray[np.float32], count: int, wanted: int
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Indices [q, count], and for which queries they surely hold the best `wanted`."""
        import numpy as np
        import torch

        # As many threads as torch was given: one setting rules them all.
        distances, where = self._tree.query(
            queries.astype(np.float64), k=np.arange(1, count + 1), workers=torch.get_num_threads()
        )
        complete = distances[:, -1] > self._reach(distances[:, wanted - 1])
        return where.astype(np.int64), complete | (count == self._size)

    def all_candidates(self, query: NDArray[np.float32], wanted: int) -> NDArray[np.int64]:
        """Every index that may belong to the best `wanted` of one query [1, d]."""
        import numpy as np

        distances, _ = self._tree.query(query.astype(np.float64), k=[wanted])
        found = self._tree.query_ball_point(query[0].astype(np.float64), r=float(self._reach(distances[0, 0])))
        return np.asarray(sorted(found), dtype=np.int64)

    def _reach(self, distance: NDArray[np.float64]) -> NDArray[np.float64]:
        """A distance beyond which nothing can tie: rows are unit vectors only nearly, so the order by distance may
        differ from the order by inner product by as much as their squared norms differ from 1."""
        import numpy as np

        return np.sqrt(distance**2 + self._slack)
