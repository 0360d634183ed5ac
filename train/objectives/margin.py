"""The pairwise margin loss of the paper: positives are pulled near, stored negatives pushed away, pair by pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.objectives.pair_cosine import pair_cosine
from train.objectives.share import Share, at_least_fp32, check_anchors, check_positive, share_of

if TYPE_CHECKING:
    import torch

    from train.relations import Relations


def margin_contrastive(
    queries: torch.Tensor,
    passages: torch.Tensor,
    relations: Relations,
    *,
    margin: float,
    share: Share = (0, 1),
) -> torch.Tensor:
    """A share of the mean of y d² / 2 + (1 - y) max(0, margin - d)² / 2 over the pairs (query of its row, passage).

    d is the cosine distance 1 - cos, y says whether the passage came as a positive (Hadsell et al., 2006; with these
    distances in arXiv 2402.03053). No query sees another row's passages.

    Args:
        queries: [B, D] unit rows. passages: [C, D] unit rows. relations: the tables of the global batch.
        margin: cosine distance from which on a negative is left alone.
        share: which of how many even cuts of the passages is wanted; all shares sum to the mean over all C pairs.

    Returns:
        A scalar. Raises `UserError` for a margin ≤ 0 and for a batch without positives.
    """
    import torch

    check_positive("margin", margin, "set it to a value such as 0.5")
    check_anchors(relations)
    queries, passages = at_least_fp32(queries), at_least_fp32(passages)
    part = share_of(len(passages), share)
    column = torch.arange(len(passages), device=passages.device)[part]
    distance = 1 - pair_cosine(queries, passages, relations.passage_query[part], column)
    too_close = torch.relu(margin - distance)
    losses = 0.5 * torch.where(relations.passage_positive[part], distance, too_close).square()
    return losses.sum() / len(passages)
