"""No text twice in a global batch: samples that share one are moved to another batch nearby.

A repeated text in a batch teaches nothing: as a negative it is false, and as a positive it is the same pair twice.
The losses mask what is false; here most of it is avoided before it costs a forward pass.

Invariant: batches are regrouped inside windows of `WINDOW` batches, and only with samples of the same epoch (and of the
same source, where batches are of one source), by a rule that looks at nothing but the window. So the arrangement is
still a pure function of the position, every sample is used exactly once per epoch, and any step is reached in O(1).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence

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
    """The positions of the batch of every step.

    Args:
        batch: samples of a global batch.
        keys, group: see `Keys` and `Group`; None for keys leaves positions in their order.
    """

    def __init__(self, batch: int, *, keys: Keys | None, group: Group) -> None:
        self._batch, self._keys, self._group = batch, keys, group
        self._held: tuple[int, list[list[int]], list[int]] | None = None

    def __call__(self, step: int) -> tuple[Sequence[int], int]:
        """(positions of the batch of `step`, samples in it that still share a text with another)."""
        if self._keys is None:
            return range(step * self._batch, (step + 1) * self._batch), 0
        window, number = divmod(step, WINDOW)
        if self._held is None or self._held[0] != window:
            batches, left = arranged_window(window, batch=self._batch, keys=self._keys, group=self._group)
            self._held = (window, batches, left)
        return self._held[1][number], self._held[2][number]
