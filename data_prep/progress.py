"""What a stage tells the outside while it works: how far it is, and which seconds were real work.

Stage functions take a `Progress`; the command line hands in one that draws (launch/display.py), tests use this silent
one. `work(kind)` brackets the seconds that count as tokenising, mining, training or encoding: everything else in a
stage is the pipeline's own overhead, and the report shows the two apart.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

WorkKind = Literal["prepare", "tokenise", "mine", "synthesise", "train", "encode", "score"]


class Progress:
    """A silent progress sink that still keeps the work clock.

    Attributes:
        work_s: seconds of real work by kind, summed over `work` blocks (blocks must not nest).
    """

    def __init__(self) -> None:
        self.work_s: dict[str, float] = {}

    def begin(self, label: str, total: int | None = None, unit: str = "rows") -> None:
        """Start a new bar `label` of `total` units (None: unknown)."""

    def advance(self, n: int = 1, **shown: float | str) -> None:
        """Move the current bar by `n` units; `shown` are values to print beside it (loss, rate …)."""

    def note(self, line: str) -> None:
        """Say one line that stays."""

    @contextmanager
    def work(self, kind: WorkKind) -> Iterator[None]:
        """Count the seconds of the block as work of this kind."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add_work(kind, time.perf_counter() - started)

    def add_work(self, kind: WorkKind, seconds: float) -> None:
        """Add seconds that were measured elsewhere (a training process, say)."""
        self.work_s[kind] = self.work_s.get(kind, 0.0) + seconds


def format_seconds(seconds: float) -> str:
    """A duration for people: `0.4 s`, `15 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
