"""The global order: which sample comes at which position, as a pure function.

Sample number i of epoch e depends on (data fingerprint, seed, e, i) and on nothing else: no index array is held, any
position is reached in O(1), and no rank count, micro-batch or restart changes it. Each epoch is a permutation: a
four-round Feistel network over the next power of four, walked until it lands inside the range (Black & Rogaway,
"Ciphers with arbitrary finite domains", 2002; expected walks below 4).

Everything is there twice: for one position in Python integers, and for many in numpy. Both give the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Integers = NDArray[np.int64]

_ROUNDS = 4
_MASK64 = (1 << 64) - 1


def _mix(value: int, key: int) -> int:
    """64-bit finaliser of splitmix64 over value and key."""
    x = (value + key + 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)


def _mix_many(values: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """`_mix` of many values; numpy's unsigned integers wrap around by themselves."""
    import numpy as np

    x = values + np.uint64((key + 0x9E3779B97F4A7C15) & _MASK64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Permutation:
    """A keyed bijection of range(n); `permutation(i)` costs O(1) time and memory."""

    def __init__(self, n: int, key: bytes) -> None:
        self.n = n
        self._half_bits = max(1, ((n - 1).bit_length() + 1) // 2)
        digest = hashlib.blake2b(key, digest_size=8 * _ROUNDS).digest()
        self._keys = [int.from_bytes(digest[8 * r : 8 * r + 8], "big") for r in range(_ROUNDS)]

    def __call__(self, i: int) -> int:
        """The image of `i`; IndexError outside range(n)."""
        if not 0 <= i < self.n:
            raise IndexError(f"position {i} is outside 0..{self.n - 1}")
        half, mask = self._half_bits, (1 << self._half_bits) - 1
        while True:
            left, right = i >> half, i & mask
            for key in self._keys:
                left, right = right, left ^ (_mix(right, key) & mask)
            i = (left << half) | right
            if i < self.n:
                return i

    def many(self, places: Integers) -> Integers:
        """The images of many places at once; IndexError where one is outside range(n)."""
        import numpy as np

        if len(places) and not (places.min() >= 0 and places.max() < self.n):
            raise IndexError(f"positions {places.min()}..{places.max()} are not all in 0..{self.n - 1}")
        half, mask = np.uint64(self._half_bits), np.uint64((1 << self._half_bits) - 1)
        images = places.astype(np.uint64)
        walking = np.arange(len(images))
        values = images.copy()
        while len(walking):
            left, right = values >> half, values & mask
            for key in self._keys:
                left, right = right, left ^ (_mix_many(right, key) & mask)
            values = (left << half) | right
            images[walking] = values
            out = values >= self.n
            walking, values = walking[out], values[out]
        return images.astype(np.int64)


@dataclass(frozen=True)
class Source:
    """One source of samples: its name, its number of rows, and the share of them that each epoch uses."""

    name: str
    rows: int
    share: float = 1.0

    @property
    def rows_per_epoch(self) -> int:
        """Rows that one epoch takes from this source: the share, rounded, and at least one."""
        return max(1, round(self.rows * self.share)) if self.rows else 0


class _Epoch:
    """The permutations and the layout of one epoch.

    Mixed: a permutation of all slots. In blocks of one source: the epoch begins with as many loose samples as complete
    the last batch of the epoch before, then come whole blocks in permuted order, then the remaining loose samples
    (what is left of every source after its whole blocks), so that each sample is still used exactly once.
    """

    def __init__(self, sources: Sequence[Source], key: str, *, epoch: int, block: int | None) -> None:
        sizes = [s.rows_per_epoch for s in sources]
        total = sum(sizes)
        self.within = [Permutation(s.rows, f"{key}/{s.name}".encode()) for s in sources]
        self._sizes, self._block = sizes, block or 1
        self._blocks = [0] * len(sizes)
        self._head = 0
        if block is not None:
            self._blocks = [n // block for n in sizes]
            missing = -epoch * total % block
            while total - block * sum(self._blocks) < missing and any(self._blocks):
                largest = self._blocks.index(max(self._blocks))
                self._blocks[largest] -= 1
            self._head = min(missing, total - block * sum(self._blocks))
        self._loose = [n - self._block * b for n, b in zip(sizes, self._blocks, strict=True)]
        self._loose_order = Permutation(max(1, sum(self._loose)), f"{key}/order".encode())
        self._block_order = Permutation(max(1, sum(self._blocks)), f"{key}/blocks".encode())

    def __call__(self, i: int) -> tuple[int, int]:
        """(source number, row) at position `i` of the epoch."""
        in_blocks = self._block * sum(self._blocks)
        if self._head <= i < self._head + in_blocks:
            number, offset = divmod(i - self._head, self._block)
            source, found = _locate(self._block_order(number), self._blocks)
            slot = found * self._block + offset
        else:
            source, found = _locate(self._loose_order(i if i < self._head else i - in_blocks), self._loose)
            slot = self._blocks[source] * self._block + found
        return source, self.within[source](slot)

    def many(self, places: Integers) -> tuple[Integers, Integers]:
        """(source numbers, rows) at many positions of the epoch."""
        import numpy as np

        in_blocks = self._block * sum(self._blocks)
        blocked = (self._head <= places) & (places < self._head + in_blocks)
        sources, slots = np.empty_like(places), np.empty_like(places)
        if blocked.any():
            numbers, offsets = np.divmod(places[blocked] - self._head, self._block)
            sources[blocked], found = _locate_many(self._block_order.many(numbers), self._blocks)
            slots[blocked] = found * self._block + offsets
        if not blocked.all():
            rest = places[~blocked]
            loose = self._loose_order.many(np.where(rest < self._head, rest, rest - in_blocks))
            sources[~blocked], found = _locate_many(loose, self._loose)
            slots[~blocked] = self._block * np.asarray(self._blocks)[sources[~blocked]] + found
        rows = np.empty_like(places)
        for number, within in enumerate(self.within):
            here = sources == number
            rows[here] = within.many(slots[here])
        return sources, rows


def _locate(slot: int, counts: Sequence[int]) -> tuple[int, int]:
    """Which count a slot falls into, and its place there."""
    for number, count in enumerate(counts):
        if slot < count:
            return number, slot
        slot -= count
    raise AssertionError("unreachable: slots are exhausted by the counts")


def _locate_many(slots: Integers, counts: Sequence[int]) -> tuple[Integers, Integers]:
    """`_locate` of many slots."""
    import numpy as np

    ends = np.cumsum(np.asarray(counts, np.int64))
    sources = np.searchsorted(ends, slots, side="right")
    return sources, slots - (ends - counts)[sources]


class GlobalOrder:
    """The endless sequence of samples of a blend of sources.

    Args:
        sources: what is blended; a share below 1 takes another part of the source each epoch.
        fingerprint: identifies the data; other data, other order.
        seed: of the recipe.
        block: with a number, batches of that size hold samples of one source each, but for the few that are made of
            what each source has left over.
    """

    def __init__(self, sources: Sequence[Source], *, fingerprint: str, seed: int, block: int | None = None) -> None:
        self.sources = [s for s in sources if s.rows]
        self.epoch_rows = sum(s.rows_per_epoch for s in self.sources)
        self.fingerprint, self.seed, self.block = fingerprint, seed, block
        self._entered: tuple[int, _Epoch] | None = None

    def _epoch(self, number: int) -> _Epoch:
        entered = self._entered  # read once: a thread that prepares batches may enter another epoch meanwhile
        if entered is None or entered[0] != number:
            key = f"{self.fingerprint}/{self.seed}/{number}"
            self._entered = entered = (number, _Epoch(self.sources, key, epoch=number, block=self.block))
        return entered[1]

    def facts(self) -> dict[str, Any]:
        """All that the order depends on, as JSON values; `from_facts` makes it again."""
        return {
            "sources": [{"name": s.name, "rows": s.rows, "share": s.share} for s in self.sources],
            "epoch_samples": self.epoch_rows,
            "fingerprint": self.fingerprint,
            "seed": self.seed,
            "block": self.block,
        }

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> GlobalOrder:
        """The order that `facts` describes; other entries of the mapping are passed over."""
        sources = [Source(s["name"], s["rows"], s["share"]) for s in facts["sources"]]
        return cls(sources, fingerprint=facts["fingerprint"], seed=facts["seed"], block=facts["block"])

    def __getitem__(self, position: int) -> tuple[int, int]:
        """(index into `sources`, row of that source) at a global position from 0; epochs follow one another."""
        epoch, i = divmod(position, self.epoch_rows)
        return self._epoch(epoch)(i)

    def samples(self, positions: Integers | range) -> tuple[Integers, Integers]:
        """The samples at many global positions, in their order: indices into `sources`, and rows of those sources.

        IndexError for a position below 0.
        """
        import numpy as np

        if isinstance(positions, range):
            positions = np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
        if len(positions) and positions.min() < 0:
            raise IndexError(f"position {positions.min()} is below 0")
        epochs, places = np.divmod(positions, self.epoch_rows)
        sources, rows = np.empty_like(places), np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            sources[here], rows[here] = self._epoch(epoch).many(places[here])
        return sources, rows

    def batch(self, step: int, size: int) -> list[tuple[int, int]]:
        """The samples at positions [step * size, (step + 1) * size)."""
        return pairs(*self.samples(range(step * size, (step + 1) * size)))


def pairs(sources: Integers, rows: Integers) -> list[tuple[int, int]]:
    """Two arrays from `GlobalOrder.samples` as (source, row) pairs of Python integers."""
    return list(zip(sources.tolist(), rows.tolist(), strict=True))
