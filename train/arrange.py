"""No text twice in a global batch: samples that share one are moved to another batch nearby.

A repeated text in a batch teaches nothing: as a negative it is false, and as a positive it is the same pair twice.
The losses mask what is false; here most of it is avoided before it costs a forward pass.

Invariant: batches are regrouped inside windows of `WINDOW` batches, and only with samples of the same epoch (and of the
same source, where batches are of one source), by a rule that looks at nothing but the window. So the arrangement is
still a pure function of the position, every sample is used exactly once per epoch, and any place is reached in O(1).
The batch size that it arranges for stays that of the run's first start: a run that goes on with another one cuts the
same sequence at other places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from itertools import chain

from data_prep.errors import UserError

WINDOW = 16
"""Batches that exchange samples: more finds a place for rarer repeats and makes a seek dearer."""
_TRIES = 64

Keys = Callable[[int], tuple[int, ...]]
"""Content numbers of the texts that the sample at a global position must not share with its batch."""
Group = Callable[[int], Hashable]
"""What samples must have in common to be exchanged: their epoch, and their source where batches are of one source."""


def arranged_window(window: int, *, batch: int, keys: Keys, group: Group) -> tuple[list[list[int]], list[int]]:
    """The positions of each batch of a window.

    Args:
        window: its number; it covers the positions from window * WINDOW * batch on.
        batch: samples of a global batch.

    Returns:
        `WINDOW` lists of `batch` positions; and for each batch how many samples still share a text with another one
        (a source that holds little else than one text cannot be arranged).
    """
    first = window * WINDOW * batch
    batches = [[first + b * batch + i for i in range(batch)] for b in range(WINDOW)]
    known = {p: frozenset(keys(p)) for positions in batches for p in positions}
    held = [Counter(k for p in positions for k in known[p]) for positions in batches]

    def fits(position: int, leaving: int, number: int) -> bool:
        """Whether `position` may take the place of `leaving` in a batch."""
        gone = known[leaving]
        return all(held[number][k] - (k in gone) <= 0 for k in known[position])

    def exchange(b: int, i: int) -> bool:
        position = batches[b][i]
        for step in range(1, WINDOW):
            other = (b + step) % WINDOW
            for shift in range(min(batch, max(1, _TRIES // WINDOW))):
                j = (i + shift * 7919) % batch
                candidate = batches[other][j]
                if group(candidate) != group(position):
                    continue
                if fits(position, candidate, other) and fits(candidate, position, b):
                    batches[b][i], batches[other][j] = candidate, position
                    held[b].subtract(known[position])
                    held[b].update(known[candidate])
                    held[other].subtract(known[candidate])
                    held[other].update(known[position])
                    return True
        return False

    for b in range(WINDOW):
        for i in range(batch):
            if any(held[b][k] > 1 for k in known[batches[b][i]]):
                exchange(b, i)
    left = [sum(any(held[b][k] > 1 for k in known[p]) for p in batches[b]) for b in range(WINDOW)]
    return batches, left


class Arrangement:
    """Which position of the global order stands at which place of the sequence that training walks through.

    Args:
        order_batch: samples of a global batch at the first start of the run.
        keys, group: see `Keys` and `Group`; None for keys leaves positions in their order.
    """

    def __init__(self, order_batch: int, *, keys: Keys | None, group: Group) -> None:
        self.order_batch = order_batch
        self._keys, self._group = keys, group
        self._window = lru_cache(maxsize=2)(self._arrange)  # two: a batch may lie across their edge

    def _arrange(self, window: int) -> tuple[list[list[int]], list[int]]:
        assert self._keys is not None
        return arranged_window(window, batch=self.order_batch, keys=self._keys, group=self._group)

    def places(self, first: int, end: int) -> tuple[Sequence[int], int]:
        """(the positions at the places [first, end), how many of them share a text with another one there)."""
        keys = self._keys
        if keys is None or end <= first:
            return range(first, end), 0
        size = self.order_batch
        number, offset = divmod(first, size)
        if offset == 0 and end - first == size:
            batches, left = self._window(number // WINDOW)
            return batches[number % WINDOW], left[number % WINDOW]
        found = [self._window(n // WINDOW)[0][n % WINDOW] for n in range(number, -(-end // size))]
        positions = list(chain.from_iterable(found))[offset : offset + end - first]
        known = [frozenset(keys(p)) for p in positions]
        held = Counter(chain.from_iterable(known))
        return positions, sum(any(held[k] > 1 for k in texts) for texts in known)


def check_batch(batch: int, order_batch: int, *, name: str) -> None:
    """Raise `UserError` where a phase that began with `order_batch` cannot go on with `batch` samples a step.

    One must be a multiple of the other: batches then hold whole arranged batches, or a whole number of them makes one.

    Args:
        name: the field of the recipe, e.g. `finetune.batch_pairs`.
    """
    if batch % order_batch == 0 or order_batch % batch == 0:
        return
    fitting = [d for d in range(1, order_batch + 1) if order_batch % d == 0]
    fitting += [order_batch * (batch // order_batch + more) for more in (0, 1) if batch > order_batch]
    below = max(n for n in fitting if n < batch)
    above = min(n for n in fitting if n > batch)
    raise UserError(
        f"{name} = {batch}",
        f"must divide {order_batch}, the batch that this run began with, or be a multiple of it",
        f"use {below} or {above}",
    )
