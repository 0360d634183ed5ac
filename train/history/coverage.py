"""Which samples of an epoch were used: one bit for each row of the data.

Invariant: an epoch is complete when every source gave as many different rows as an epoch takes from it. Counted from
the samples themselves, so it does not lean on the order being a permutation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from train.cursor import GlobalOrder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]


class Repeat(NamedTuple):
    """A sample that was used before in its epoch; `at` is its index among those that were given."""

    at: int
    epoch: int
    source: str
    row: int


class Coverage:
    """The epochs of a run.

    Attributes:
        complete: numbers of the epochs that used every sample; their bits are given up.
        open: for every other epoch that was begun, the samples used so far.
    """

    def __init__(self, order: GlobalOrder) -> None:
        import numpy as np

        self._order = order
        self._offsets = np.cumsum([0, *(s.rows for s in order.sources)])
        self._bits: dict[int, NDArray[np.uint8]] = {}
        self._used: dict[int, Integers] = {}
        self.complete: set[int] = set()

    @property
    def open(self) -> dict[int, int]:
        """Samples used so far of every epoch that was begun and is not complete."""
        return {epoch: int(used.sum()) for epoch, used in sorted(self._used.items())}

    def add(self, epochs: Integers, sources: Integers, rows: Integers) -> Repeat | None:
        """Count samples, each with the number of its epoch. Returns the first repeat, and counts no further then."""
        import numpy as np

        for epoch in np.unique(epochs).tolist():
            here = np.flatnonzero(epochs == epoch)
            again = self._add(epoch, sources[here], rows[here])
            if again is not None:
                at = int(here[again])
                return Repeat(at, epoch, self._order.sources[int(sources[at])].name, int(rows[at]))
        return None

    def _add(self, epoch: int, sources: Integers, rows: Integers) -> int | None:
        """Count samples of one epoch; returns the place of one that was there before."""
        import numpy as np

        if epoch in self.complete:
            return 0
        if epoch not in self._bits:
            self._bits[epoch] = np.zeros((int(self._offsets[-1]) + 7) // 8, np.uint8)
            self._used[epoch] = np.zeros(len(self._order.sources), np.int64)
        bits = self._bits[epoch]
        flat = self._offsets[sources] + rows
        by_size = np.argsort(flat, kind="stable")
        ordered = flat[by_size]
        places, masks = ordered >> 3, np.left_shift(1, ordered & 7).astype(np.uint8)
        before = (bits[places] & masks) != 0
        before[1:] |= ordered[1:] == ordered[:-1]
        if before.any():
            return int(by_size[before].min())
        firsts = np.flatnonzero(np.diff(places, prepend=-1))
        bits[places[firsts]] |= np.bitwise_or.reduceat(masks, firsts)
        used = self._used[epoch]
        used += np.bincount(sources, minlength=len(used))
        if used.tolist() == [s.rows_per_epoch for s in self._order.sources]:
            self.complete.add(epoch)
            del self._bits[epoch], self._used[epoch]
        return None
