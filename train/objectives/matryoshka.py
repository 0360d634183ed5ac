"""Matryoshka: the first numbers of an embedding are an embedding (Kusupati et al., 2022, arXiv 2205.13147)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from train.objectives.share import Share

if TYPE_CHECKING:
    import torch

    from train.relations import Relations


def matryoshka(
    objective: Callable[..., torch.Tensor],
    dims: Sequence[int],
    queries: torch.Tensor,
    passages: torch.Tensor,
    relations: Relations,
    *,
    share: Share = (0, 1),
) -> torch.Tensor:
    """The mean of an objective over the whole embedding and its prefixes, each prefix made unit again.

    Args:
        objective: (queries [B, d], passages [C, d], relations, share=…) → scalar, its temperature or margin bound.
        dims: lengths of the prefixes. D, the whole, is always one of the terms and need not be named.
        queries: [B, D] unit rows. passages: [C, D] unit rows. relations: the tables of the global batch.
        share: which of how many parts is wanted; the mean of shares is the share of the mean.

    Returns:
        A scalar. Raises `UserError` for a length that the model does not have and for a repeated one.
    """
    import torch.nn.functional as F

    whole = queries.shape[1]
    check_dims(dims, whole)
    total = objective(queries, passages, relations, share=share)
    shorter = [d for d in dims if d < whole]
    for d in shorter:
        prefixes = (F.normalize(vectors[:, :d], dim=1) for vectors in (queries, passages))
        total = total + objective(*prefixes, relations, share=share)
    return total / (1 + len(shorter))


def check_dims(dims: Sequence[int], dimension: int) -> None:
    """Raise `UserError` unless `dims` are distinct lengths of prefixes of a `dimension`-dimensional embedding."""
    wrong = [d for d in dims if not 1 <= d <= dimension]
    if wrong or len(set(dims)) < len(dims):
        raise UserError(
            f"matryoshka dims = {list(dims)}",
            f"must be distinct lengths from 1 to {dimension}, the dimension of this model's embeddings",
            f"leave out {wrong}" if wrong else f"give each length once: {sorted(set(dims), reverse=True)}",
        )
