"""How long the next step and a save may take: so that no step is begun that cannot be saved before a deadline.

Promise: as long as no step takes more than `SLACK` times the longest recent one, and no save more than `SLACK` times
the one before it, everything that was done is saved before the deadline. The answer is given in the middle of a step,
where the ranks exchange the loss: what is left of that step, the whole next one, and the save after it must fit.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

SLACK = 1.5
"""What a step or a save may take more than was seen: cold caches, a busy file system, a longer batch."""
RECENT = 50
"""Steps that are looked back on."""
GUESSED_BYTES_PER_S = 100e6
"""The storage's pace before any save is known: a slow shared file system."""


class Pace:
    """What steps and saves took, on this rank.

    Args:
        save_bytes: of a whole checkpoint; for a guess until the first one is saved.
    """

    def __init__(self, *, save_bytes: int) -> None:
        self._save_s: float | None = None
        self._guess_s = 1.0 + save_bytes / GUESSED_BYTES_PER_S
        self._first_s: float | None = None
        self._steps: deque[float] = deque(maxlen=RECENT)
        self._began: float | None = None
        self._paused_s = 0.0
        self._pausing = False

    def begin(self) -> None:
        """A step begins now; the one before it, with all that came after it, has ended."""
        self.end()
        self._began, self._paused_s = time.perf_counter(), 0.0

    @contextmanager
    def pausing(self) -> Iterator[None]:
        """The block is a save or a rewind, and no part of a usual step; one inside another counts once."""
        inside, began = self._pausing, time.perf_counter()
        self._pausing = True
        try:
            yield
        finally:
            self._pausing = inside
            if not inside:
                self._paused_s += time.perf_counter() - began

    def end(self) -> None:
        """The running step has ended. The first one compiles and fills caches: it counts until another is known."""
        if self._began is None:
            return
        took = max(0.0, time.perf_counter() - self._began - self._paused_s)
        if self._first_s is None:
            self._first_s = took
        else:
            self._steps.append(took)
        self._began = None

    def saved(self, seconds: float | None) -> None:
        """A save was in place after so many seconds, those in the background counted in full; None: nothing new."""
        if seconds is not None:
            self._save_s = seconds

    def needed_s(self, *, saving_s: float | None = None, due: bool = False) -> float:
        """Seconds from now, inside a step, until one more step after it would be saved.

        Each step and each save may take `SLACK` times as long as the one before it.

        Args:
            saving_s: for how long a save has been in flight, None where none is: the next one waits for it.
            due: a save will be begun at the end of this step.
        """
        elapsed = 0.0 if self._began is None else max(0.0, time.perf_counter() - self._began - self._paused_s)
        known = max(self._steps) if self._steps else self._first_s
        longest = max(elapsed, known or 0.0)
        rest = max(0.0, SLACK * longest - elapsed) if known is not None else (SLACK - 1) * elapsed
        following = SLACK * SLACK * longest
        save = self._guess_s / SLACK if self._save_s is None else self._save_s
        saves = 0.0
        if saving_s is not None:
            save *= SLACK
            saves += max(0.0, save - saving_s)
        if due:
            save *= SLACK
            saves += save
        return rest + following + saves + SLACK * save

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON values: the next start saves to the same storage."""
        return {"save_s": self._save_s}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Go on from `state()` of an earlier start."""
        self.saved((state or {}).get("save_s"))
