"""One block of queries against the whole corpus, in bounded memory: the unit of work that is computed and resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import UserError
from data_prep.neighbors.picks import Block, TopPicks, WindowPicks, room_of
from data_prep.neighbors.scoring import RESCORE_BYTES, has_numba, rescore, results_of
from data_prep.neighbors.sweep import SLOTS, Panels, lay_out, shape_of, sweep, zeros

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors

ROWS = 16_384
"""Queries of a block. A constant: other settings must not change what has been computed already."""
_SMALL = 1 << 23
"""Scores below which loading the compiled loops takes longer than the search."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to compute for every query; JSON values only.

    Attributes:
        task: `top`, the k best rows and percentiles; `window`, k rows drawn from a window of scores.
        corpus_norm: length of the longest row of the corpus.
        bins, low, high: of the counted scores; 0 bins: nothing is counted.
        percentiles: the levels to compute from the counts.
        keep_counts: return the counts themselves.
        seed: of the draw.
    """

    task: Literal["top", "window"]
    k: int
    euclidean: bool
    corpus_norm: float
    bins: int = 0
    low: float = 0.0
    high: float = 0.0
    percentiles: tuple[float, ...] = ()
    keep_counts: bool = False
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Arrays [q] for all queries: excluded corpus rows, and the window's bounds."""

    exclude: NDArray[np.int64] | None = None
    low: NDArray[np.float32] | None = None
    high: NDArray[np.float32] | None = None

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those that there are, by name."""
        return {name: array for name, array in vars(self).items() if array is not None}


class Computer:
    """Computes blocks of one search.

    Args:
        budget_gb: working memory beyond the vectors given and the results, 10^9 bytes.
        device: of torch; a GPU where there is one.
        compiled: use the compiled loops; by default on the CPU for searches that are worth loading them.
        panel_rows, block_rows: corpus rows that are read, and queries that are held, at a time; by default what fits.

    Raises:
        UserError: a budget that does not hold the smallest block.
    """

    def __init__(
        self,
        queries: Vectors,
        corpus: Vectors,
        plan: Plan,
        inputs: Inputs,
        *,
        budget_gb: float,
        device: str | None = None,
        compiled: bool | None = None,
        panel_rows: int | None = None,
        block_rows: int | None = None,
    ) -> None:
        import torch

        self._queries, self._corpus, self._plan, self._inputs = queries, corpus, plan, inputs
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        cuda = self._device.type == "cuda"
        worth = queries.rows * corpus.rows > _SMALL or plan.bins > 0
        self._compiled = not cuda and has_numba() and (worth if compiled is None else compiled)
        self._shape = shape_of(
            queries.rows, corpus.rows, queries.dimension, euclidean=plan.euclidean, cuda=cuda, panel_rows=panel_rows
        )
        affordable = int(0.12e9 * budget_gb / (8 * SLOTS * self._shape.width))  # each as it is and packed
        if self._shape.panel > affordable:
            self._shape = replace(self._shape, panel=max(1, affordable // self._shape.columns) * self._shape.columns)
        self._rows = self._rows_that_fit(budget_gb, 1 if cuda else torch.get_num_threads())
        if block_rows:
            self._rows = min(self._rows, -(-block_rows // self._shape.rows) * self._shape.rows)
        self._panels = Panels(corpus, self._shape, euclidean=plan.euclidean, device=self._device)

    def _rows_that_fit(self, budget_gb: float, threads: int) -> int:
        """Queries of a block that fit into the budget, whole tiles."""
        shape, plan = self._shape, self._plan
        fixed = 8 * SLOTS * shape.panel * shape.width
        fixed += threads * (shape.rows * shape.columns * (8 if self._compiled else 24) + RESCORE_BYTES)
        copied = 0 if shape.width == self._queries.dimension else shape.width  # without what fills the rows up
        row = 4 * (shape.width + copied + plan.bins) + 56 * plan.k + 28 * room_of(plan.k) + 64
        tiles = int((0.45 * budget_gb * 1e9 - fixed) / (row * shape.rows))
        if tiles < 1:
            raise UserError(
                f"a memory budget of {budget_gb:g} GB",
                f"must be at least {math.ceil((fixed + row * shape.rows) / 0.45e7) / 100:g} GB for these vectors",
                "raise the budget",
            )
        return tiles * shape.rows

    def compute(self, start: int, stop: int, told: Callable[[float], None] | None = None) -> dict[str, NDArray[Any]]:
        """The results of queries [start, stop), arrays with a row a query.

        For `top`: scores, indices, and levels or counts where planned. For `window`: scores, indices, available.

        Args:
            told: is told about how many queries are done since it was last told.
        """
        import numpy as np

        pieces = -(-(stop - start) // self._rows)
        size = -(-(stop - start) // pieces)
        size = -(-size // self._shape.rows) * self._shape.rows
        found = [self._one(a, min(a + size, stop), told) for a in range(start, stop, size)]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}

    def _one(self, start: int, stop: int, told: Callable[[float], None] | None) -> dict[str, NDArray[Any]]:
        block, plan = self._block(start, stop), self._plan
        rows = slice(start, stop)
        share = (stop - start) / self._corpus.rows

        def tell(done: int) -> None:
            if told:
                told(done * share)

        if plan.task == "top":
            picks = TopPicks(
                block, self._corpus, k=plan.k, corpus_norm=plan.corpus_norm, bins=plan.bins, low=plan.low,
                high=plan.high,
            )  # fmt: skip
            sweep(block.vectors, block.rows, self._panels, picks, tell)
            scores, indices, counts = picks.results()
            return self._top(scores, indices, counts)
        low, high = self._inputs.low, self._inputs.high
        assert low is not None and high is not None
        window = WindowPicks(
            block, wanted=plan.k, low=low[rows], high=high[rows], seed=plan.seed, corpus_norm=plan.corpus_norm
        )
        sweep(block.vectors, block.rows, self._panels, window, tell)
        drawn, available = window.results()
        asked = self._queries.read(start, stop)
        keys = rescore(asked, self._corpus, drawn, k=plan.k, euclidean=plan.euclidean)
        scores, indices = results_of(keys, euclidean=plan.euclidean)
        return {"scores": scores, "indices": indices, "available": available}

    def _top(
        self, scores: NDArray[np.float32], indices: NDArray[np.int64], counts: NDArray[np.uint32]
    ) -> dict[str, NDArray[Any]]:
        from data_prep.neighbors.found import ScoreHistogram

        plan = self._plan
        arrays: dict[str, NDArray[Any]] = {"scores": scores, "indices": indices}
        if plan.percentiles:
            told = ScoreHistogram(counts, plan.low, plan.high, scores, distances=plan.euclidean)
            arrays["levels"] = told.score_at(plan.percentiles)
        if plan.keep_counts:
            arrays["counts"] = counts
        return arrays

    def _block(self, start: int, stop: int) -> Block:
        import numpy as np

        shape, rows = self._shape, stop - start
        vectors = zeros(-(-rows // shape.rows) * shape.rows, shape.width)
        lay_out(self._queries, start, stop, vectors, side="query" if self._plan.euclidean else None)
        squares = (vectors[:rows, : self._queries.dimension].double() ** 2).sum(1).numpy()
        exclude = self._inputs.exclude
        return Block(
            start=start,
            stop=stop,
            dimension=self._queries.dimension,
            euclidean=self._plan.euclidean,
            vectors=vectors.to(self._device),
            squares=squares.astype(np.float32),
            norms=np.sqrt(squares),
            excluded=np.full(rows, -1, dtype=np.int64) if exclude is None else exclude[start:stop],
            compiled=self._compiled,
        )
