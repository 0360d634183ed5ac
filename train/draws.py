"""Which samples a step uses: the same sequence, however it is cut into batches.

Invariant: the steps of a phase, joined end to end, are one sequence of samples that depends on the data, the seed and
the batch size of the phase's *first* start (`order_batch`), and on nothing that happens later: not on crashes, ranks or
another batch size after a restart. So a phase that goes on after `done` positions needs to know nothing but `done`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from train.arrange import Arrangement
from train.cursor import GlobalOrder, pairs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Draw:
    """The samples of one optimiser step.

    Attributes:
        step: its number, from 1.
        first, end: it covers the places [first, end) of the sequence.
        positions: the position in the global order that is used at each of these places; place i itself, unless
            samples were exchanged to keep equal texts apart.
        samples: the (index into `order.sources`, row) of each place.
        duplicates: samples that share a text with another one of the step all the same.
    """

    step: int
    first: int
    end: int
    positions: Sequence[int]
    samples: list[tuple[int, int]]
    duplicates: int = 0

    def __len__(self) -> int:
        return self.end - self.first


class Draws:
    """The draw of any step, in O(1). A thread that prepares batches may ask at the same time as the training loop.

    Args:
        order: of the data.
        batch: samples of a step now.
        end: the phase covers the places [0, end); its last step may therefore be shorter.
        arrangement: which position stands at which place; None for the order as it is.
        done_steps, done: what is done already: steps, and the places that they (and what was set aside) covered.
    """

    def __init__(
        self,
        order: GlobalOrder,
        *,
        batch: int,
        end: int,
        arrangement: Arrangement | None = None,
        done_steps: int = 0,
        done: int = 0,
    ) -> None:
        self._order, self._batch, self._end, self._arrangement = order, batch, end, arrangement
        self._done_steps, self._done = done_steps, done

    @property
    def steps(self) -> int:
        """The number of the last step; `done_steps` where nothing is left to do."""
        return self._done_steps + math.ceil(max(0, self._end - self._done) / self._batch)

    def __call__(self, step: int) -> Draw:
        """The draw of a step. IndexError for a step that is done or comes after the last one."""
        if not self._done_steps < step <= self.steps:
            raise IndexError(f"step {step} is not among the steps {self._done_steps + 1}..{self.steps}")
        first = self._done + (step - self._done_steps - 1) * self._batch
        end = min(first + self._batch, self._end)
        positions: Sequence[int] = range(first, end)
        duplicates = 0
        if self._arrangement is not None:
            positions, duplicates = self._arrangement.places(first, end)
        samples = pairs(*self._order.samples(_array(positions)))
        return Draw(step, first, end, positions, samples, duplicates)


def _array(positions: Sequence[int]) -> NDArray[np.int64] | range:
    import numpy as np

    return positions if isinstance(positions, range) else np.asarray(positions, np.int64)
