"""Sequences laid end to end in one stream.

A packed stream computes no padding: positions restart at 0 in every sequence and attention (train/attention.py) stays
inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Packed:
    """n sequences of together T tokens.

    Attributes:
        input_ids, position_ids: [1, T] int64; positions restart at 0 in every sequence.
        boundaries: [n + 1] int32, the cumulative lengths from 0 to T.
        lengths: the n lengths, on the host.
        skip: [n] int64, the leading tokens of each sequence that pooling leaves out (its prompt), or None.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    boundaries: torch.Tensor
    lengths: list[int]
    skip: torch.Tensor | None = None

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments for a Hugging Face model whose attention implementation is `packed`."""
        longest = max(self.lengths)
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "cu_seq_lens_q": self.boundaries,
            "cu_seq_lens_k": self.boundaries,
            "max_length_q": longest,
            "max_length_k": longest,
            "packed_runs": equal_runs(self.lengths),
            "use_cache": False,
        }


def equal_runs(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Lengths as (length, how many of it follow each other): what attention takes in one call."""
    return [(length, sum(1 for _ in run)) for length, run in groupby(lengths)]


def pack(
    sequences: Sequence[Sequence[int]] | Sequence[NDArray[np.signedinteger[Any]]],
    *,
    skip: Sequence[int] | None = None,
    device: Any = "cpu",
) -> Packed:
    """Lay non-empty token sequences (lists or integer arrays) end to end.

    Args:
        skip: leading tokens of each sequence that pooling leaves out; None pools all. At least one token of each stays.
    """
    import numpy as np
    import torch

    lengths = [len(s) for s in sequences]
    if skip is not None and not any(skip):
        skip = None
    total, count = sum(lengths), len(lengths)
    # ids, positions, boundaries and skips travel in one array: one copy to the device instead of four
    table = np.empty(2 * total + 2 * count + 1, dtype=np.int64)
    if isinstance(sequences[0], np.ndarray):
        np.concatenate(sequences, out=table[:total], casting="safe")
    else:
        table[:total] = np.fromiter(chain.from_iterable(sequences), dtype=np.int64, count=total)
    sizes = np.asarray(lengths, dtype=np.int64)
    ends = table[2 * total : 2 * total + count + 1]
    ends[0] = 0
    np.cumsum(sizes, out=ends[1:])
    np.subtract(np.arange(total), np.repeat(ends[:-1], sizes), out=table[total : 2 * total])
    table[2 * total + count + 1 :] = 0 if skip is None else np.minimum(skip, sizes - 1)
    moved = torch.from_numpy(table)
    if torch.device(device).type == "cuda":
        moved = moved.pin_memory().to(device, non_blocking=True)
    ids, positions, boundaries, skips = moved.split([total, total, count + 1, count])
    return Packed(ids[None], positions[None], boundaries.int(), lengths, None if skip is None else skips)


def padded(packed: Packed) -> tuple[dict[str, Any], torch.Tensor]:
    """The same sequences as a right-padded batch.

    Returns:
        Keyword arguments for a Hugging Face model ([n, L] ids, positions and mask), and the [n, L] bool mask of real
        tokens, by which [n, L, H] states are brought back to [T, H].
    """
    import torch

    lengths = torch.diff(packed.boundaries).long()
    places = torch.arange(max(packed.lengths), device=lengths.device)
    kept = places < lengths[:, None]
    ids = torch.zeros_like(kept, dtype=torch.long).masked_scatter(kept, packed.input_ids)
    return {
        "input_ids": ids,
        "position_ids": places.expand_as(kept),
        "attention_mask": kept.long(),
        "use_cache": False,
    }, kept


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
