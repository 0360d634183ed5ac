"""Which rank encodes which sequence of a global batch.

Invariant: dealing is a function of the costs and the number of ranks alone, so all ranks agree on it without talking,
and it never changes the result: embeddings are gathered before the loss looks at them (train/gather.py).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Deal sequences to ranks so that the most loaded rank has little more than the mean.

    Longest first, each to the rank with the least load so far (Graham, 1969: at most 4/3 of the optimum; on hundreds of
    text lengths well below 1 % above it). A rank may get more sequences than another. Ties go by rank and by place.

    Args:
        costs: of each sequence, positive.

    Returns:
        For every rank the places of its sequences, ascending; every rank gets at least one where there are enough.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, 0, rank) for rank in range(ranks)]
    for place in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        load, count, rank = heapq.heappop(loads)
        hands[rank].append(place)
        heapq.heappush(loads, (load + costs[place], count + 1, rank))
    return [sorted(hand) for hand in hands]


def imbalance(costs: Sequence[float], hands: Sequence[Sequence[int]]) -> float:
    """How much more than the mean the most loaded rank has, as a share of the mean."""
    loads = [sum(costs[i] for i in hand) for hand in hands]
    return max(loads) * len(loads) / sum(loads) - 1
