"""A rank's share of a sum over the global batch, and the checks that all objectives make.

Invariant: the shares of 0 … parts - 1 cut a range without gap or overlap, so their terms add up to the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from data_prep.errors import UserError

if TYPE_CHECKING:
    import torch

    from train.relations import Relations

Share = tuple[int, int]
"""(which part, of how many)."""


def share_of(count: int, share: Share) -> slice:
    """The slice of range(count) that belongs to a share; empty where there are more parts than numbers."""
    part, parts = share
    return slice(count * part // parts, count * (part + 1) // parts)


def spans(count: int, block: int) -> Iterator[slice]:
    """range(count) in slices of at most `block`."""
    return (slice(start, min(start + block, count)) for start in range(0, count, block))


def at_least_fp32(vectors: torch.Tensor) -> torch.Tensor:
    """The same numbers in fp32, or in fp64 if they are: losses are never computed in half precision."""
    import torch

    return vectors if vectors.dtype == torch.float64 else vectors.float()


def check_positive(name: str, value: float, fix: str) -> None:
    """Raise `UserError` unless the value is a number above 0."""
    if not value > 0:
        raise UserError(f"{name} = {value}", "must be greater than 0", fix)


def check_anchors(relations: Relations) -> None:
    """Raise `UserError` where a global batch has no (query, positive) pair to train on."""
    if not len(relations.anchor_query):
        raise UserError(
            f"a global batch of {len(relations.query_ids)} queries without a positive",
            "every query needs one to be trained on",
            "give every pair row at least one text in `positives`",
        )
