"""Rankers: anything that puts the documents of a set in order for each query.

Invariant: a ranking is a pure function of the texts. Best first, no document twice, equal scores by the lower index:
the same as `data_prep.neighbors.top_k`, so a system cannot gain by the order in which a library breaks ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Ranker(Protocol):
    """Orders documents for queries."""

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best `min(k, len(documents))` documents of each query.

        Returns:
            indices: int64 [queries, k], best first.
            scores: float32 [queries, k], never rising along a row.
        """


def ordered_top_k(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and scores of the `k` highest of `scores` [documents], best first, ties by the lower index."""
    import numpy as np

    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else -np.inf
    candidates = np.flatnonzero(scores >= threshold)  # ascending, so a stable sort keeps the lower index first
    best = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
    return best.astype(np.int64), scores[best]
