"""Where candidates come from: the nearest texts, or a window of ranks, percentiles, scores or distances.

Invariant: a window is counted inside what its query may take (texts of one language, where the policy says so), without
the query's own text; what it holds does not depend on how the search was cut into blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.mine.hubness import corrected, crowding
from data_prep.mine.sides import RowsOf, Side, cosines
from data_prep.neighbors.search import Backend, in_window, search
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors
    from data_prep.fanout import Fanout
    from data_prep.mine.policy import Policy

_BY_VALUE = ("negative_distances", "negative_percentiles", "negative_scores", "negative_relative", "negative_ranks")
_SAMPLE = 200
"""Queries whose scores tell, in an error, which window would not be empty."""


@dataclass
class Near:
    """Candidates of q queries.

    Attributes:
        rows: [q, m] rows of the corpus, -1 for none. scores: [q, m] cosines (of distance windows: distances).
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]


class Searcher:
    """Asks the neighbour search for one set of queries and one corpus.

    Args:
        own: [q] the row of the corpus that is the query's own text, -1 for none; it is never found.

    Attributes:
        crowds: how crowded queries [q] and corpus [n] are; None leaves the order as it is.
        levels: percentile → [q] the score of every query there, as far as `nearest` was asked.
    """

    def __init__(
        self,
        queries: Side,
        corpus: Side,
        *,
        own: NDArray[np.int64],
        backend: Backend,
        seed: int,
        fanout: Fanout | None,
        scratch: Path | None,
        progress: Progress,
    ) -> None:
        self.queries, self.corpus, self.own, self.seed = queries, corpus, own, seed
        self.crowds: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None
        self.kind: Any = "none"
        self.levels: dict[float, NDArray[np.float32]] = {}
        self._backend: Backend = backend
        self._fanout, self._scratch, self._progress = fanout, scratch, progress

    def _more(self, label: str) -> dict[str, Any]:
        scratch = None if self._scratch is None else self._scratch / label
        return {"fanout": self._fanout, "scratch": scratch, "progress": self._progress}

    def measure_crowds(self, policy: Policy) -> None:
        """Find out how crowded queries and corpus are, for `hubness`."""
        import numpy as np

        if policy.hubness == "none":
            return
        k = min(policy.hub_neighbors, len(self.corpus) - 1)
        whole = np.arange(len(self.corpus), dtype=np.int64)
        pair: list[NDArray[np.float32]] = []
        for label, vectors, exclude in (
            ("crowd-queries", self.queries.vectors, self.own),
            ("crowd-corpus", self.corpus.vectors, whole),
        ):
            if label == "crowd-corpus" and np.array_equal(self.own, whole):
                pair.append(pair[0])
                break
            found = search(
                vectors, self.corpus.vectors, k=k, backend=self._backend, exclude=exclude, **self._more(label)
            )
            scores = np.where(found.indices >= 0, found.scores, -np.inf)
            pair.append(crowding(scores, neighbors=k, kind=policy.hubness))
        self.kind, self.crowds = policy.hubness, (pair[0], pair[1])

    def _ordered(self, near: Near, rows: NDArray[np.int64]) -> Near:
        """The candidates of some queries in the order of their corrected scores."""
        import numpy as np

        if self.crowds is None:
            return near
        of_texts = self.crowds[1][np.maximum(near.rows, 0)]
        scores = corrected(near.scores, self.crowds[0][rows], of_texts, kind=self.kind)
        order = np.argsort(np.where(near.rows >= 0, -scores, np.inf), axis=1, kind="stable")
        return Near(np.take_along_axis(near.rows, order, 1), np.take_along_axis(near.scores, order, 1))

    def of(self, rows: NDArray[np.int64]) -> Searcher:
        """The same, for some of the queries."""
        some = Searcher(
            self.queries.rows(rows), self.corpus, own=self.own[rows], backend=self._backend, seed=self.seed,
            fanout=self._fanout, scratch=self._scratch, progress=self._progress,
        )  # fmt: skip
        if self.crowds is not None:
            some.kind, some.crowds = self.kind, (self.crowds[0][rows], self.crowds[1])
        some.levels = {percent: level[rows] for percent, level in self.levels.items()}
        return some

    def nearest(self, depth: int, percentiles: Sequence[float] = ()) -> Near:
        """The `depth` nearest texts of every query, best first; notes the levels of the percentiles."""
        import numpy as np

        vectors = self.queries.vectors
        k = min(depth, len(self.corpus) - int((self.own >= 0).any()))
        found = search(
            vectors, self.corpus.vectors, k=k, backend=self._backend, exclude=self.own, percentiles=tuple(percentiles),
            metric="cosine" if vectors.normalised else "euclidean", **self._more("nearest"),
        )  # fmt: skip
        if found.levels is not None:
            self.levels = {percent: found.levels[:, n] for n, percent in enumerate(percentiles)}
        scores = np.where(found.indices >= 0, found.scores, -np.inf)
        if not vectors.normalised:
            scores = cosines(vectors, np.arange(len(self.queries)), self.corpus.vectors, found.indices)
        return self._ordered(Near(found.indices, scores), np.arange(len(self.queries)))

    def drawn(
        self, *, low: NDArray[np.float32], high: NDArray[np.float32], count: int, distances: bool, salt: int, label: str
    ) -> tuple[Near, NDArray[np.int64]]:
        """`count` texts drawn evenly among all within [low, high] (per query), nearest first; how many there were."""
        return self._drawn(
            self.queries.vectors, self.corpus.vectors, self.own, low, high, count, distances, salt, label
        )

    def _drawn(
        self, queries: Vectors, corpus: Vectors, own: NDArray[np.int64], low: NDArray[np.float32],
        high: NDArray[np.float32], count: int, distances: bool, salt: int, label: str,
    ) -> tuple[Near, NDArray[np.int64]]:  # fmt: skip
        import numpy as np

        found = in_window(
            queries, corpus, low=low, high=high, count=count, seed=self.seed + salt,
            metric="euclidean" if distances else "cosine", exclude=own, **self._more(label),
        )  # fmt: skip
        assert found.available is not None
        return Near(found.indices, np.where(found.indices >= 0, found.scores, -np.inf)), found.available

    def negatives(self, policy: Policy, nearest: Near, worst: NDArray[np.float64], language: NDArray[np.int64]) -> Near:
        """The candidates for negatives of every query, by the policy's window.

        Args:
            nearest: what `nearest` found. worst: [q] score of the worst positive.
            language: [q] the language that negatives must have, 0 for any.

        Raises:
            UserError: the window is empty for every query; the message names a range that is not.
        """
        import numpy as np

        groups = np.unique(language) if policy.languages != "any" else np.zeros(1, dtype=np.int64)
        width = policy.last_rank - policy.negative_ranks[0] + 1 if policy.negative_ranks else policy.pool
        rows = np.full((len(self.queries), width), -1, dtype=np.int64)
        scores = np.full((len(self.queries), width), -np.inf, dtype=np.float32)
        for group in groups.tolist():
            mine = np.flatnonzero(language == group) if policy.languages != "any" else np.arange(len(self.queries))
            theirs = np.flatnonzero(self.corpus.languages == group) if group else None
            found = self._window(policy, nearest, worst, mine, theirs, label=f"negatives-{group}")
            rows[mine, : found.rows.shape[1]], scores[mine, : found.rows.shape[1]] = found.rows, found.scores
        if len(rows) and not (rows >= 0).any():
            raise self._empty(policy, worst)
        return Near(rows, scores)

    def _window(
        self, policy: Policy, nearest: Near, worst: NDArray[np.float64], mine: NDArray[np.int64],
        theirs: NDArray[np.int64] | None, *, label: str,
    ) -> Near:  # fmt: skip
        """The window of some queries among some rows of the corpus (None: all)."""
        import numpy as np

        queries = self.queries.vectors if len(mine) == len(self.queries) else RowsOf(self.queries.vectors, mine)
        corpus: Vectors = self.corpus.vectors
        own = self.own[mine]
        if theirs is not None:
            corpus = RowsOf(corpus, theirs)
            place = np.searchsorted(theirs, own)
            inside = (place < len(theirs)) & (theirs[np.minimum(place, len(theirs) - 1)] == own) & (own >= 0)
            own = np.where(inside, place, -1)
        if corpus.rows - int((own >= 0).any()) < 1:
            return Near(np.full((len(mine), 0), -1, dtype=np.int64), np.zeros((len(mine), 0), dtype=np.float32))
        low, high = self._bounds(policy, queries, corpus, own, worst[mine], label)
        if policy.negative_ranks:
            if theirs is None:
                near = nearest if len(mine) == len(self.queries) else Near(nearest.rows[mine], nearest.scores[mine])
            else:
                wide = 2 if self.crowds is not None else 1
                k = min(policy.last_rank * wide, corpus.rows - int((own >= 0).any()))
                found = search(queries, corpus, k=k, backend=self._backend, exclude=own, **self._more(label))
                scores = np.where(found.indices >= 0, found.scores, -np.inf)
                near = self._ordered(Near(_back(found.indices, theirs), scores), mine)
            first, last = policy.negative_ranks
            near = Near(near.rows[:, first - 1 : last], near.scores[:, first - 1 : last])
            outside = (near.scores < low[:, None]) | (near.scores > high[:, None])
            return Near(np.where(outside, -1, near.rows), near.scores)
        distances = policy.negative_distances is not None
        near, _ = self._drawn(queries, corpus, own, low, high, policy.pool, distances, 1, label)
        return near if theirs is None else Near(_back(near.rows, theirs), near.scores)

    def _bounds(
        self, policy: Policy, queries: Vectors, corpus: Vectors, own: NDArray[np.int64], worst: NDArray[np.float64],
        label: str,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:  # fmt: skip
        """[low, high] of every query: scores, or distances for a window of distances."""
        import numpy as np

        count = queries.rows
        if policy.negative_distances and not policy.negative_ranks:
            # a negative is farther than the lower bound: the next number above it is the first inside
            above = np.nextafter(np.float32(policy.negative_distances[0]), np.float32(np.inf))
            most = policy.negative_distances[1] if len(policy.negative_distances) > 1 else np.inf
            return np.full(count, above, dtype=np.float32), np.full(count, most, dtype=np.float32)
        low, high = np.full(count, -np.inf, dtype=np.float32), np.full(count, np.inf, dtype=np.float32)
        if policy.negative_scores:
            low, high = np.maximum(low, policy.negative_scores[0]), np.minimum(high, policy.negative_scores[1])
        if policy.negative_relative:
            shares = np.maximum(worst, 0.0)[:, None] * np.asarray(policy.negative_relative)
            low, high = np.maximum(low, shares[:, 0]), np.minimum(high, shares[:, 1])
        if policy.negative_percentiles:
            first, last = policy.negative_percentiles
            if policy.languages == "any" and last in self.levels:
                levels = np.stack([self.levels[first], self.levels[last]], axis=1)
            else:
                found = search(
                    queries, corpus, k=1, percentiles=[first, last], exclude=own, **self._more(f"{label}-percentiles")
                )
                assert found.levels is not None
                levels = found.levels
            low, high = np.maximum(low, levels[:, 0]), np.minimum(high, levels[:, 1])
        return low.astype(np.float32), high.astype(np.float32)

    def _empty(self, policy: Policy, worst: NDArray[np.float64]) -> UserError:
        """The window holds nothing for any query: which one would not be empty."""
        import numpy as np

        texts = len(self.corpus) - 1
        if policy.negative_ranks and not (policy.negative_scores or policy.negative_relative):
            return UserError(
                f"mine.policy.negative_ranks = {policy.negative_ranks}",
                f"is empty for every query: there are {texts} other texts"
                + (" (fewer in one language)" if policy.languages != "any" else ""),
                f"start it between 1 and {max(1, texts)}",
            )
        asked = np.linspace(0, len(self.queries) - 1, min(_SAMPLE, len(self.queries))).astype(np.int64)
        vectors = self.queries.vectors.take(asked)
        step = max(1, len(self.corpus) // 20_000)
        others = self.corpus.vectors.take(np.arange(0, len(self.corpus), step))
        products = vectors @ others.T
        name = next(window for window in _BY_VALUE if getattr(policy, window))
        what = "scores"
        if name == "negative_distances":
            squared = (vectors**2).sum(1)[:, None] + (others**2).sum(1)[None] - 2 * products
            products, what = np.sqrt(np.maximum(squared, 0)), "distances"
        elif name == "negative_relative":
            products, what = products / np.maximum(worst[asked], 1e-6)[:, None], "shares of the worst positive's score"
        low, high = np.quantile(products, [0.01, 0.99])
        return UserError(
            f"mine.policy.{name} = {getattr(policy, name)}",
            f"is empty for every query: 98 % of the {what} lie between {low:.3g} and {high:.3g}",
            f"choose a range that meets [{low:.3g}, {high:.3g}]",
        )


def _back(rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows of a subset as rows of the whole."""
    import numpy as np

    return np.where(rows >= 0, numbers[np.maximum(rows, 0)], -1)
