"""Embeddings of all ranks on every rank, and their gradients back to the ranks that made them.

Invariant: the loss and its gradient on R ranks equal those of one process that holds the whole global batch. Every rank
sees all embeddings and computes its share of the loss; the shares add up to the loss of the global batch, so the
gradients of all shares add up to the gradient of the loss. Most trainers detach what other ranks made, or rescale it,
and are off by the number of ranks or biased.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def world() -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) where nothing is initialised."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def gather_embeddings(own: torch.Tensor, hands: Sequence[Sequence[int]]) -> torch.Tensor:
    """All embeddings of a global batch in its canonical order. A collective; no gradient flows through it.

    Args:
        own: [n, D] what this rank encoded, in the order of its hand.
        hands: for every rank, the places of its sequences in the canonical order; together they are range(S).

    Returns:
        [S, D], equal on every rank.
    """
    import torch
    import torch.distributed as dist

    rank, ranks = world()
    places = torch.tensor([p for hand in hands for p in hand], device=own.device)
    result = own.new_empty(len(places), own.shape[1])
    if ranks == 1:
        return result.index_copy(0, places, own)
    # collectives want equal shapes; dealing leaves the numbers of sequences nearly equal, so little is padded
    most = max(len(hand) for hand in hands)
    padded = own.new_zeros(most, own.shape[1])
    padded[: len(hands[rank])] = own
    parts = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(parts, padded)
    found = torch.cat([part[: len(hand)] for part, hand in zip(parts, hands, strict=True)])
    return result.index_copy(0, places, found)


def sum_gradients(gradients: torch.Tensor, hands: Sequence[Sequence[int]]) -> torch.Tensor:
    """The gradient of the global loss for this rank's embeddings. A collective.

    Args:
        gradients: [S, D] of this rank's share of the loss with respect to all embeddings; changed in place.
        hands: as in `gather_embeddings`.

    Returns:
        [n, D], the sum over all shares, for the sequences of this rank's hand.
    """
    import torch
    import torch.distributed as dist

    rank, ranks = world()
    if ranks > 1:
        dist.all_reduce(gradients)
    return gradients[torch.tensor(hands[rank], dtype=torch.long, device=gradients.device)]
