"""The backend `kdtree`: scipy.spatial.KDTree, as arXiv 2402.03053 mined.

Exact. A KDTree prunes well in a few dimensions; above about twenty it visits nearly every row, one query at a time, and
a matrix product is tens of times faster. Holds the corpus in float64 in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.neighbors.found import Found
from data_prep.neighbors.scoring import Metric, rescore, results_of
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors

POINTLESS_DIMENSION = 20
_SPARE = 16
"""Candidates beyond k: queries with more near-ties are asked again, one by one."""
_BLOCK_ROWS = 1024


def search_tree(
    queries: Vectors,
    corpus: Vectors,
    *,
    k: int,
    metric: Metric | None,
    exclude: NDArray[np.int64] | None,
    progress: Progress,
) -> Found:
    """See `search`.

    Raises:
        UserError: rows that are no unit vectors, unless the metric is euclidean.
    """
    import numpy as np
    import torch
    from scipy.spatial import KDTree

    if corpus.dimension > POINTLESS_DIMENSION:
        progress.note(
            f"kdtree: vectors of dimension {corpus.dimension} leave a KDTree nothing to prune (it helps up to about "
            f"{POINTLESS_DIMENSION}); the exact backend gives the same neighbours tens of times faster"
        )
    asked, searched = queries.read(0, queries.rows), corpus.read(0, corpus.rows)
    euclidean = metric == "euclidean"
    slack = 0.0
    if euclidean:
        for name, vectors in (("query", asked), ("corpus", searched)):
            _check_finite(name, vectors)
    else:
        slack = 2.0**-20 + sum(_off_unit(name, v) for name, v in (("query", asked), ("corpus", searched)))

    def reach(distance: NDArray[np.float64]) -> NDArray[np.float64]:
        """A distance beyond which nothing can tie. Unit rows are so only nearly: the order by distance may differ from
        the order by inner product by as much as their squared lengths differ from 1."""
        return np.sqrt(distance**2 * (1 + 2.0**-20) + slack)

    hidden = np.full(queries.rows, -1, dtype=np.int64) if exclude is None else exclude
    wanted = k + bool((hidden >= 0).any())
    width = min(wanted + _SPARE, corpus.rows)
    tree = KDTree(searched.astype(np.float64), leafsize=40)
    found = np.empty((queries.rows, k), dtype=np.int64)
    progress.begin("find neighbours", queries.rows, "queries")
    for start in range(0, queries.rows, _BLOCK_ROWS):
        block = asked[start : start + _BLOCK_ROWS]
        rows = slice(start, start + len(block))
        # As many threads as torch was given: one setting rules them all.
        distances, where = tree.query(
            block.astype(np.float64), k=np.arange(1, width + 1), workers=torch.get_num_threads()
        )
        edge = reach(distances[:, wanted - 1])
        candidates = np.where(where == hidden[rows, None], -1, where).astype(np.int64)
        found[rows] = rescore(block, corpus, candidates, k=k, euclidean=euclidean)
        if width < corpus.rows:
            for one in np.flatnonzero(distances[:, -1] <= edge):
                near = np.array(tree.query_ball_point(block[one].astype(np.float64), r=float(edge[one])))
                near = near[near != hidden[start + one]][None]
                found[start + one] = rescore(block[one : one + 1], corpus, near, k=k, euclidean=euclidean)[0]
        progress.advance(len(block))
    scores, indices = results_of(found, euclidean=euclidean)
    return Found(scores=scores, indices=indices)


def _check_finite(name: str, vectors: NDArray[np.float32]) -> None:
    import numpy as np

    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise UserError(
            f"{name} vector of row {bad[0]}", "holds NaN or infinity", "remove that text or mend the embedder"
        )


def _off_unit(name: str, vectors: NDArray[np.float32]) -> float:
    """Four times the largest difference of a squared length from 1."""
    import numpy as np

    _check_finite(name, vectors)
    norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    off = np.abs(norms - 1)
    bad = np.flatnonzero(off > 1e-4)
    if len(bad):
        raise UserError(
            f"{name} vector of row {bad[0]}",
            f"has length {norms[bad[0]] ** 0.5:.4f}, the kdtree backend needs unit vectors",
            'normalise the vectors, drop empty texts, or set the backend to "exact"',
        )
    return 4 * float(off.max(initial=0.0))
