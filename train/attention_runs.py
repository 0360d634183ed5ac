"""Exact attention of a packed stream by torch's own kernels, one call for each run of sequences of equal length.

A run of g sequences of n tokens is a [g, heads, n, head_dim] view of the stream: no padding, no mask, no copy on the
way in, and the same bits as a loop over the sequences. `token_chunks` lays chunks out by length, so runs are long where
texts are short, which is where a call costs more than its arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch


class Reach(NamedTuple):
    """Which tokens of its own sequence a token sees.

    Attributes:
        causal: itself and earlier ones only.
        window: at most so many, itself included, where causal; at most so many on each side where not (the
            conventions of transformers' masking_utils); None for all.
    """

    causal: bool
    window: int | None = None

    def cuts(self, length: int) -> bool:
        """Whether the window hides anything in a sequence of this length."""
        return self.window is not None and length > self.window + (not self.causal)

    def sides(self) -> tuple[int, int]:
        """(left, right) as flash attention counts windows: neighbours on each side, -1 for no end."""
        if self.window is None:
            return (-1, 0) if self.causal else (-1, -1)
        return (self.window - 1, 0) if self.causal else (self.window, self.window)


def attend_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    runs: Sequence[tuple[int, int]],
    *,
    reach: Reach,
    scaling: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Attention of [T, heads, head_dim] streams (key and value may have fewer heads); returns [T, heads, head_dim].

    Args:
        runs: (length, how many sequences of it follow each other), in the order of the stream.
    """
    import torch
    import torch.nn.functional as F

    sizes = [length * count for length, count in runs]
    pieces = []
    for (length, count), *parts in zip(runs, *(x.split(sizes) for x in (query, key, value)), strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in parts)
        mask = window_mask(length, reach, query.device) if reach.cuts(length) else None
        seen = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=reach.causal and mask is None,
            scale=scaling,
            dropout_p=dropout,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        pieces.append(seen.transpose(1, 2).flatten(0, 1))
    return torch.cat(pieces)


@lru_cache(maxsize=8)  # the layers of a forward pass ask for the same few lengths
def window_mask(length: int, reach: Reach, device: torch.device) -> torch.Tensor:
    """[length, length] bool: True where a token (row) sees another (column)."""
    import torch

    before, after = reach.sides()
    with torch.inference_mode(False):  # what is kept from an evaluation must serve a backward pass later
        places = torch.arange(length, device=device)
        distance = places[:, None] - places
        return (distance <= before) & (distance >= -after)
