"""A run of one parameter and of its optimiser moments: the only form in which training state is saved and read back.

Invariant: a piece names a flat range of a parameter, never a rank, so what was saved by any number of ranks under any
ZeRO stage can be read by any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Piece:
    """Elements [start, start + n) of a parameter that is flattened row by row.

    `tensors` maps a kind (`weight`, `exp_avg`, `exp_avg_sq`) to a 1-D fp32 tensor of n elements, on any device, which
    may be a view into the optimiser's own memory: a saver copies it, a restore writes through it. n may be 0.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    tensors: dict[str, torch.Tensor]
