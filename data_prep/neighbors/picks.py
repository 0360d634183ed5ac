"""The two visitors of a sweep: one keeps the best rows of every query, one draws rows from windows of scores.

Each has its state in arrays with a row a query, and hands the tiles to the compiled loops (`kernels`) or to torch
(`torch_picks`); both give the same result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.neighbors.scoring import EMPTY, rescore, results_of, slack_of

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors
    from data_prep.neighbors.sweep import Panel


@dataclass(frozen=True, kw_only=True)
class Block:
    """Queries [start, stop) as they are laid out for a sweep.

    Attributes:
        vectors: float32 [whole tiles, width] on the device of the sweep.
        squares: float32 [rows], |q|².
        norms: float64 [rows].
        excluded: int64 [rows], corpus rows that are never found; -1 for none.
        compiled: whether the compiled loops are used.
    """

    start: int
    stop: int
    dimension: int
    euclidean: bool
    vectors: torch.Tensor
    squares: NDArray[np.float32]
    norms: NDArray[np.float64]
    excluded: NDArray[np.int64]
    compiled: bool

    @property
    def rows(self) -> int:
        """How many queries."""
        return self.stop - self.start

    def tensor(self, array: NDArray[Any]) -> torch.Tensor:
        """An array on the device of the sweep."""
        import torch

        return torch.from_numpy(array).to(self.vectors.device)


def room_of(k: int) -> int:
    """How many candidates a row of `TopPicks` can hold before they are sorted out."""
    return 2 * k + 128


class TopPicks:
    """The k best rows of every query; on the way, how many rows have which score.

    The compiled loops collect candidates with the scores of the sweep; `results` scores those that are left exactly.

    Args:
        corpus: what is swept.
        corpus_norm: the length of the longest row of the corpus.
        bins, low, high: of the counts; 0 bins for none.
    """

    def __init__(
        self, block: Block, corpus: Vectors, *, k: int, corpus_norm: float, bins: int, low: float, high: float
    ) -> None:
        import numpy as np

        self._block, self._corpus, self._low = block, corpus, np.float32(low)
        self._scale = np.float32(bins / (high - low)) if bins else np.float32(0)
        rows = block.rows
        slack = slack_of(block.norms, corpus_norm, dimension=block.dimension, euclidean=block.euclidean)
        keys = np.full((rows, k), EMPTY, dtype=np.int64)
        floor = np.full(rows, -np.inf, dtype=np.float32)
        if block.compiled:
            room = room_of(k)
            self._counts = np.zeros((rows, bins), dtype=np.uint32)
            self._state = (
                keys,
                np.zeros(rows, dtype=np.int64),
                np.empty((rows, room), dtype=np.float32),
                np.empty((rows, room), dtype=np.int64),
                np.zeros(rows, dtype=np.int64),
                np.zeros(rows, dtype=np.int64),
                floor,
                slack,
                block.squares,
                block.excluded,
            )
            return
        import torch

        self._bins = torch.zeros((rows, bins), dtype=torch.int32, device=block.vectors.device)
        self._keys, self._floor, self._slack = block.tensor(keys), block.tensor(floor), block.tensor(slack)
        self._squares, self._excluded = block.tensor(block.squares), block.tensor(block.excluded)

    def tile(self, scores: torch.Tensor, first_row: int, rows: int, columns: int, offset: int, panel: Panel) -> None:
        """See `Visitor.tile`."""
        own, block, base = slice(first_row, first_row + rows), self._block, panel.base
        if block.compiled:
            from data_prep.neighbors import kernels

            kernels.pick(
                scores.numpy(), rows, columns, offset, base, block.vectors[own].numpy(), panel.vectors.numpy(),
                block.dimension, block.euclidean, (self._low, self._scale, self._counts[own]),
                tuple(part[own] for part in self._state),
            )  # fmt: skip
            return
        from data_prep.neighbors import torch_picks

        seen = scores[:rows, :columns]
        squares = self._squares[own] if block.euclidean else None
        hidden = torch_picks.hide(seen, self._excluded[own], base + offset)
        if self._scale:
            torch_picks.count(
                seen, hidden, squares=squares, low=float(self._low), scale=float(self._scale), counts=self._bins[own]
            )
        seen[hidden] = float("-inf")
        torch_picks.pick(
            seen,
            base=base + offset,
            queries=block.vectors[own, : block.dimension],
            rows=panel.vectors[offset : offset + columns, : block.dimension],
            squares=squares,
            slack=self._slack[own],
            keys=self._keys[own],
            floor=self._floor[own],
        )

    def end_panel(self, first_row: int, rows: int, panel: Panel) -> None:
        """See `Visitor.end_panel`."""
        if self._block.compiled:
            from data_prep.neighbors import kernels

            own, block = slice(first_row, first_row + rows), self._block
            kernels.end_panel(
                rows, panel.base, block.vectors[own].numpy(), panel.vectors.numpy(), block.dimension, block.euclidean,
                panel.base + panel.valid == self._corpus.rows, tuple(part[own] for part in self._state),
            )  # fmt: skip

    def results(self) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.uint32]]:
        """Scores [rows, k], corpus rows [rows, k], counts [rows, bins]."""
        import numpy as np

        block = self._block
        if not block.compiled:
            counts = self._bins.cpu().numpy().astype(np.uint32)
            return *results_of(self._keys.cpu().numpy(), euclidean=block.euclidean), counts
        keys, filled, _, places, waiting = self._state[:5]
        most = int(waiting.max(initial=0))
        candidates = np.where(np.arange(most) < waiting[:, None], places[:, :most], -1)
        vectors = np.ascontiguousarray(block.vectors[: block.rows, : block.dimension].numpy())
        told = rescore(vectors, self._corpus, candidates, k=keys.shape[1], euclidean=block.euclidean)
        if filled.any() or told.shape != keys.shape:
            told = np.sort(np.concatenate([keys, told], axis=1), axis=1)[:, : keys.shape[1]]
        return *results_of(told, euclidean=block.euclidean), self._counts


class WindowPicks:
    """`wanted` rows of every query whose score lies in the query's window, drawn uniformly, and how many lie there.

    A row's turn is a hash of the seed, the query and the row, and the lowest hashes are drawn: so neither blocks nor
    their order change what is drawn.

    Args:
        low, high: float32 [rows], inclusive: cosines or distances.
    """

    def __init__(
        self,
        block: Block,
        *,
        wanted: int,
        low: NDArray[np.float32],
        high: NDArray[np.float32],
        seed: int,
        corpus_norm: float,
    ) -> None:
        import numpy as np

        self._block, self._wanted = block, wanted
        slack = slack_of(block.norms, corpus_norm, dimension=block.dimension, euclidean=block.euclidean)
        first, last = (edge.astype(np.float64) for edge in (low, high))
        if block.euclidean:  # a near row has a high q·d - |d|²/2
            square = block.norms**2
            squared = [np.where(edge < 0, -np.inf, edge * np.abs(edge)) for edge in (high, low)]
            first, last = ((square - edge) / 2 for edge in squared)
        error = slack / 2  # one score against a bound, not two scores
        bounds = [first + error, last - error, first - error, last + error]
        salts = _salts(seed, np.arange(block.start, block.stop))
        window: tuple[NDArray[Any], ...] = (low, high, *(bound.astype(np.float32) for bound in bounds), salts)
        rows = block.rows
        if block.compiled:
            room = 2 * wanted + 64
            self._window = window
            self._state = (
                np.empty((rows, room), dtype=np.int64),
                np.empty((rows, room), dtype=np.int64),
                np.zeros(rows, dtype=np.int64),
                np.full(rows, EMPTY, dtype=np.int64),
                np.zeros(rows, dtype=np.int64),
                block.excluded,
            )
            return
        self._bounds = tuple(block.tensor(part.view(np.int64) if part.dtype.kind == "u" else part) for part in window)
        self._excluded = block.tensor(block.excluded)
        self._hashes = block.tensor(np.full((rows, wanted), EMPTY, dtype=np.int64))
        self._found = block.tensor(np.full((rows, wanted), -1, dtype=np.int64))
        self._available = block.tensor(np.zeros(rows, dtype=np.int64))

    def tile(self, scores: torch.Tensor, first_row: int, rows: int, columns: int, offset: int, panel: Panel) -> None:
        """See `Visitor.tile`."""
        own, block, base = slice(first_row, first_row + rows), self._block, panel.base
        if block.compiled:
            from data_prep.neighbors import kernels

            kernels.draw(
                scores.numpy(), rows, columns, offset, base, block.vectors[own].numpy(), panel.vectors.numpy(),
                block.dimension, block.euclidean, self._wanted, tuple(part[own] for part in self._window),
                tuple(part[own] for part in self._state),
            )  # fmt: skip
            return
        from data_prep.neighbors import torch_picks

        seen = scores[:rows, :columns]
        seen[torch_picks.hide(seen, self._excluded[own], base + offset)] = float("-inf")
        torch_picks.draw(
            seen,
            base=base + offset,
            queries=block.vectors[own, : block.dimension],
            rows=panel.vectors[offset : offset + columns, : block.dimension],
            euclidean=block.euclidean,
            window=tuple(bound[own] for bound in self._bounds),
            hashes=self._hashes[own],
            found=self._found[own],
            available=self._available[own],
        )

    def end_panel(self, first_row: int, rows: int, panel: Panel) -> None:
        """Nothing waits."""

    def results(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Corpus rows [rows, wanted] (-1: none) in any order, and how many there were [rows]."""
        import numpy as np

        if not self._block.compiled:
            return self._found.cpu().numpy(), self._available.cpu().numpy()
        hashes, found, drawn, _, available, _ = self._state
        unused = np.arange(hashes.shape[1]) >= drawn[:, None]
        hashes[unused], found[unused] = EMPTY, -1
        order = np.argsort(hashes, axis=1, kind="stable")[:, : self._wanted]
        return np.take_along_axis(found, order, axis=1), available


def _salts(seed: int, rows: NDArray[np.int64]) -> NDArray[np.uint64]:
    """One 64-bit number for each query of a seed, spread by splitmix64."""
    import numpy as np

    def spread(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))

    start = spread(np.array([seed % 2**64], dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return spread(start + rows.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
