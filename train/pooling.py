"""From the token states of a packed stream to one vector a sequence, in fp32.

The sums run over each sequence alone, so a vector never depends on what else is in the stream.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

    from train.packing import Packed

PoolingKind = Literal["mean", "last", "weighted_mean"]


def pool(states: torch.Tensor, packed: Packed, kind: PoolingKind) -> torch.Tensor:
    """Pool [T, H] token states to [n, H].

    `mean` weighs every token alike, `weighted_mean` by its place 1, 2, … in its sequence (Muennighoff 2022, SGPT:
    later tokens of a causal model know more), `last` takes the last token. Tokens under `packed.skip` are left out;
    they keep their place, as in sentence-transformers.
    """
    import torch

    if kind == "last":
        return states[packed.boundaries[1:].long() - 1]
    lengths = torch.diff(packed.boundaries).long()
    rows = torch.repeat_interleave(torch.arange(len(packed.lengths), device=states.device), lengths)
    if kind == "mean" and packed.skip is None:
        sums = states.new_zeros(len(packed.lengths), states.shape[1]).index_add(0, rows, states)
        return sums / lengths[:, None]
    places = packed.position_ids[0]
    weights = (places + 1).to(states.dtype) if kind == "weighted_mean" else torch.ones_like(places, dtype=states.dtype)
    if packed.skip is not None:
        weights = weights * (places >= packed.skip[rows])
    totals = states.new_zeros(len(packed.lengths)).index_add(0, rows, weights)
    sums = states.new_zeros(len(packed.lengths), states.shape[1]).index_add(0, rows, states * weights[:, None])
    return sums / totals[:, None]
