"""Sequences laid end to end in one stream, and the dealing of rows to ranks.

A packed stream computes no padding: positions restart at 0 in every sequence and attention (train/attention.py) stays
inside it. Dealing decides which rank computes a row; it never changes the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Packed:
    """n sequences of together T tokens.

    Attributes:
        input_ids, position_ids: [1, T] int64; positions restart at every sequence.
        boundaries: [n + 1] int32, the cumulative lengths from 0 to T.
        lengths: the n lengths, on the host.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    boundaries: torch.Tensor
    lengths: list[int]

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments for a Hugging Face decoder whose attention implementation is `packed`."""
        longest = max(self.lengths)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "cu_seq_lens_q": self.boundaries,
            "cu_seq_lens_k": self.boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
            "packed_lengths": self.lengths,
            "use_cache": False,
        }


def pack(sequences: Sequence[Sequence[int]], *, device: Any = "cpu") -> Packed:
    """Lay non-empty token sequences end to end."""
    import torch

    lengths = [len(s) for s in sequences]
    flat = torch.tensor([t for s in sequences for t in s], dtype=torch.long)
    positions = torch.cat([torch.arange(n) for n in lengths])
    boundaries = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return Packed(flat[None].to(device), positions[None].to(device), boundaries.to(device), lengths)


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Deal rows to ranks in equal numbers and nearly equal cost.

    Rows are sorted by cost and dealt in a snake (0…R-1, R-1…0, …). Ties go by row number, so every rank that computes
    the dealing gets the same answer. `len(costs)` must be a multiple of `ranks`.
    """
    order = sorted(range(len(costs)), key=lambda row: (-costs[row], row))
    hands: list[list[int]] = [[] for _ in range(ranks)]
    for place, row in enumerate(order):
        lap, seat = divmod(place, ranks)
        hands[seat if lap % 2 == 0 else ranks - 1 - seat].append(row)
    return hands


def token_chunks(lengths: Sequence[int], budget_tokens: int) -> list[list[int]]:
    """Cut rows, longest first, into chunks of at most `budget_tokens` tokens; a longer row is a chunk of its own."""
    chunks: list[list[int]] = []
    held = budget_tokens + 1
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if held + lengths[row] > budget_tokens:
            chunks.append([])
            held = 0
        chunks[-1].append(row)
        held += lengths[row]
    return chunks
