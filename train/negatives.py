"""Negatives from every rank, with the exact gradient, and the masks that keep false ones out.

Invariant: the loss and its gradient on R ranks equal those of one process that holds the whole global batch. Forward
gathers; backward sums every rank's gradient for a row and hands it to the rank that owns the row. The engine averages
over ranks, so a local mean over local rows needs no further factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) where nothing is initialised."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gather_ids(ids: torch.Tensor) -> torch.Tensor:
    """Concatenate an integer tensor over ranks along its first axis; all ranks hold equal shapes. No gradient."""
    import torch
    import torch.distributed as dist

    _, ranks = world()
    if ranks == 1:
        return ids
    parts = [torch.empty_like(ids) for _ in range(ranks)]
    dist.all_gather(parts, ids.contiguous())
    return torch.cat(parts)


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """Concatenate embeddings [b, …] over ranks to [R * b, …], with the exact gradient.

    Every rank must hold the same number of rows.
    """
    import torch
    import torch.distributed as dist

    rank, ranks = world()
    if ranks == 1:
        return rows

    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            parts = [torch.empty_like(x) for _ in range(ranks)]
            dist.all_gather(parts, x.contiguous())
            return torch.cat(parts)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            total = gradient.contiguous().clone()
            dist.all_reduce(total)
            return total[rank * len(rows) : (rank + 1) * len(rows)]

    gathered: torch.Tensor = Gather.apply(rows)  # type: ignore[no-untyped-call]
    return gathered


def number_of(content_id: str) -> int:
    """A content id (hex) as a non-negative int64; 60 of its bits are kept."""
    return int(content_id[:15], 16)


def id_table(rows: Sequence[Sequence[str]], *, width: int | None = None) -> torch.Tensor:
    """Content ids as [len(rows), width] int64, filled up with -1; `width` defaults to the longest row."""
    import torch

    width = max((len(r) for r in rows), default=0) if width is None else width
    table = torch.full((len(rows), width), -1, dtype=torch.long)
    for i, row in enumerate(rows):
        for j, ident in enumerate(row[:width]):
            table[i, j] = number_of(ident)
    return table


def false_negatives(columns: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Which columns are secretly positives.

    Args:
        columns: [C] ids of all candidate passages. known: [b, P] ids that each query must not be pushed away from
            (its positives and its own text), filled up with -1.

    Returns:
        [b, C] bool, True where column c's text is one of row i's known texts.
    """
    return ((columns[None, :, None] == known[:, None, :]) & (known[:, None, :] >= 0)).any(-1)
