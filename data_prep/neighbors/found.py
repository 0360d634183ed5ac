"""What a search finds, and where a score stands among all scores of its query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROWS = 64
"""Rows whose counts are looked at together: their running sums stay in a core's cache."""


class ScoreHistogram:
    """How many corpus rows have which score, for every query: exact counts in bins of one width.

    A score is counted as computed in float32, so one that lies within its rounding error of the border of two bins may
    be counted in either. A percentile is therefore wrong by at most `error`: the width of a bin and that rounding;
    where it falls among the best k scores, which are known exactly, it is exact.

    Args:
        counts: uint32 [q, bins]; bins ascend from `low` to `high`.
        best: float32 [q, k], the best scores, best first (distances ascend).
        distances: whether the scores are distances: the best are the lowest.
        rounding: how far a score computed in float32 can be from the exact one (the bound; most are a hundred times
            nearer. A distance near 0 is a root of what rounding leaves, so the bound is wider for distances).

    Attributes:
        error: the largest error of `score_at`, in units of the score.
    """

    def __init__(
        self,
        counts: NDArray[Any],
        low: float,
        high: float,
        best: NDArray[np.float32],
        *,
        distances: bool,
        rounding: float = 0.0,
    ) -> None:
        self.counts, self.low, self.high, self.best, self.distances = counts, low, high, best, distances
        self.error = (high - low) / counts.shape[1] + rounding

    def score_at(self, percentile: float | Sequence[float]) -> NDArray[np.float32]:
        """The percentile (0 … 100) of each query's own scores over the whole corpus, as `numpy.percentile` defines it.

        Returns:
            float32 [q]; [q, m] for m percentiles. Distances ascend too: the 5th percentile of distances is near.
        """
        import numpy as np

        asked = np.atleast_1d(np.asarray(percentile, dtype=np.float64))
        levels = np.empty((len(self.counts), len(asked)), dtype=np.float32)
        for start in range(0, len(levels), _ROWS):
            rows = slice(start, start + _ROWS)
            cumulative = np.cumsum(self.counts[rows], axis=1, dtype=np.int64)
            total = cumulative[:, -1]
            step = int(total.max(initial=0)) + 1
            ladder = (cumulative + step * np.arange(len(cumulative))[:, None]).ravel()  # of all rows, to look up in
            for column, percent in enumerate(asked):
                place = percent / 100 * (total - 1)
                lower = self._ordered(rows, cumulative, ladder, step, np.floor(place).astype(np.int64))
                upper = self._ordered(rows, cumulative, ladder, step, np.ceil(place).astype(np.int64))
                levels[rows, column] = lower + (upper - lower) * (place - np.floor(place))
        return levels if isinstance(percentile, Sequence) else levels[:, 0]

    def _ordered(
        self, rows: slice, cumulative: NDArray[np.int64], ladder: NDArray[np.int64], step: int, place: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """The score at a place [rows] of the ascending scores: exact among the best, else inside its bin."""
        import numpy as np

        each = np.arange(len(cumulative))
        column = np.searchsorted(ladder, place + each * step, side="right") - each * cumulative.shape[1]
        within = cumulative[each, column]
        own = self.counts[rows][each, column].astype(np.int64)
        share = (place - (within - own) + 0.5) / np.maximum(own, 1)
        score = self.low + (column + share) * (self.high - self.low) / self.counts.shape[1]
        best, k = self.best[rows], self.best.shape[1]
        rank = place if self.distances else cumulative[:, -1] - 1 - place
        edge = best[:, -1].astype(np.float64)
        score = np.maximum(score, edge) if self.distances else np.minimum(score, edge)
        return np.where(rank < k, best[each, np.minimum(rank, k - 1)], score)

    def percentile_of(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """The share of the corpus, in percent, that scores below [q, m] scores (for distances: that is nearer).

        Exact for scores better than the k-th best; elsewhere wrong by at most the share that lies in one bin.
        """
        import numpy as np

        shares = np.empty(scores.shape, dtype=np.float32)
        bins, k = self.counts.shape[1], self.best.shape[1]
        for start in range(0, len(scores), _ROWS):
            rows = slice(start, start + _ROWS)
            asked = scores[rows].astype(np.float64)
            cumulative = np.cumsum(self.counts[rows], axis=1, dtype=np.int64)
            total = cumulative[:, -1:]
            place = np.clip((asked - self.low) / (self.high - self.low) * bins, 0, bins)
            column = np.minimum(place.astype(np.int64), bins - 1)
            own = np.take_along_axis(self.counts[rows], column, axis=1).astype(np.int64)
            below = np.take_along_axis(cumulative, column, axis=1) - own + own * (place - column)
            best = self.best[rows].astype(np.float64)
            for one in range(scores.shape[1]):
                value = asked[:, one : one + 1]
                if self.distances:
                    exact, inside = (best < value).sum(axis=1), value[:, 0] <= best[:, k - 1]
                else:
                    exact, inside = total[:, 0] - (best >= value).sum(axis=1), value[:, 0] > best[:, k - 1]
                below[:, one] = np.where(inside, exact, below[:, one])
            shares[rows] = 100 * below / np.maximum(total, 1)
        return shares


@dataclass(kw_only=True)
class Found:
    """The result of a search; large arrays may be memory-mapped files in the scratch folder.

    Attributes:
        scores: float32 [q, k], best first: cosines descending, or euclidean distances ascending. NaN where none.
        indices: int64 [q, k], rows of the corpus; -1 where none.
        histogram: all scores of each query, where whole histograms were asked for.
        levels: float32 [q, m], the scores at the percentiles that were asked for.
        level_error: the largest error of a level, in units of the score.
        available: int64 [q], how many rows lie in the window (`in_window`).
        recall: share of the true neighbours that the faiss backend found, measured on a sample of queries.
    """

    scores: NDArray[np.float32]
    indices: NDArray[np.int64]
    histogram: ScoreHistogram | None = None
    levels: NDArray[np.float32] | None = None
    level_error: float | None = None
    available: NDArray[np.int64] | None = None
    recall: float | None = None
