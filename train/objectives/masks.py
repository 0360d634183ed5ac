"""Which columns are no negatives of a row, found block by block.

Invariant: a column is hidden from a row where the two share a number in one of the tables (a text that is known to
belong to the row, a document that its positive comes from), or where the column is the row's own. Nothing of the size
rows x columns is ever made: the pairs of a block are found by sorting the block's numbers, so an unrelated block costs
next to nothing, and one where everything is related costs as much memory as the block itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def shared(left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The pairs of rows that have a number in common.

    Args:
        left: [R, K] int64, filled up with -1. right: [C, M] the same. A fill equals nothing.

    Returns:
        (rows of left, rows of right), [P] int64 each. A pair that shares two numbers is there twice.
    """
    import torch

    numbers, places = right.reshape(-1).sort()
    wanted = left.reshape(-1)
    first = torch.searchsorted(numbers, wanted)
    count = torch.searchsorted(numbers, wanted, right=True) - first
    count = count.masked_fill(wanted < 0, 0)
    entry = torch.arange(len(wanted), device=left.device).repeat_interleave(count)
    # the how-many-th match of its entry each pair is
    nth = torch.arange(len(entry), device=left.device) - (count.cumsum(0) - count)[entry]
    return entry // max(1, left.shape[1]), places[first[entry] + nth] // max(1, right.shape[1])


@dataclass(frozen=True)
class Hidden:
    """The columns that are hidden from each row.

    Attributes:
        own: [R] int64, the column that stands for the row itself.
        tables: pairs (numbers of the rows [R, K], numbers of the columns [C, M]); a common number hides.
    """

    own: torch.Tensor
    tables: Sequence[tuple[torch.Tensor, torch.Tensor]]

    def block(self, rows: slice, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """(row, column) of every hidden place of a block, counted from the block's corner; some may repeat."""
        import torch

        own = self.own[rows]
        inside = ((own >= columns.start) & (own < columns.stop)).nonzero()[:, 0]
        found = [(inside, own[inside] - columns.start)]
        found += [shared(left[rows], right[columns]) for left, right in self.tables]
        return torch.cat([i for i, _ in found]), torch.cat([j for _, j in found])
