"""What one rank did for a step, and its sum over the ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from train.flops import Work
from train.gather import world

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Lesson:
    """What one rank did for a step, before the update.

    Attributes:
        share: this rank's share of the global mean loss. work: what it computed, to be summed over ranks.
        whole: whether `work` is that of the whole batch already, the same on all ranks.
        parts: seconds of it by name. notes: further values of the record, equal on all ranks.
    """

    share: float | torch.Tensor
    work: Work
    whole: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def summed(lesson: Lesson, wishes: Sequence[float], *, device: Any) -> tuple[float, Work, float | None, list[float]]:
    """(mean loss of the global batch, work of all ranks, unevenness, the highest of each wish). A collective.

    One all-reduce of a small table, to which every rank adds its own row: the same bits everywhere, whatever the order
    in which the library adds.
    """
    import torch
    import torch.distributed as dist

    rank, ranks = world()
    table = torch.zeros(ranks, 1 + len(wishes) + len(lesson.work.values()), dtype=torch.float64, device=device)
    table[rank, 0] = lesson.share
    table[rank, 1:] = torch.tensor([*wishes, *lesson.work.values()], dtype=torch.float64)
    if ranks > 1:
        dist.all_reduce(table)
    rows = table.tolist()
    shares = [row[0] for row in rows]
    loss = math.fsum(shares) if all(map(math.isfinite, shares)) else math.nan
    works = [Work(*(int(v) for v in row[1 + len(wishes) :])) for row in rows]
    total = lesson.work if lesson.whole else sum(works, Work())
    uneven = None
    if ranks > 1 and not lesson.whole:
        uneven = max(w.tokens for w in works) * ranks / max(1, total.tokens) - 1
    return loss, total, uneven, [max(row[1 + i] for row in rows) for i in range(len(wishes))]
