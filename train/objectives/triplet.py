"""The triplet loss: a query is nearer to its positive than to its own stored negatives, by a margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from data_prep.errors import UserError
from train.objectives.masks import shared
from train.objectives.pair_cosine import pair_cosine
from train.objectives.share import Share, at_least_fp32, check_anchors, check_positive, share_of

if TYPE_CHECKING:
    import torch

    from train.relations import Relations


def triplet(
    queries: torch.Tensor,
    passages: torch.Tensor,
    relations: Relations,
    *,
    margin: float,
    share: Share = (0, 1),
) -> torch.Tensor:
    """A share of the mean over queries of max(0, d(query, positive) - d(query, negative) + margin), d = 1 - cos.

    The mean of a query is over its positives and its own negatives (Schroff et al., 2015, arXiv 1503.03832). Queries
    without a stored negative have no triplet and do not count.

    Args:
        queries: [B, D] unit rows. passages: [C, D] unit rows. relations: the tables of the global batch.
        margin: by how much cosine distance a negative must be farther away than the positive.
        share: which of how many even cuts of the anchors is wanted; all shares sum to the mean.

    Returns:
        A scalar. Raises `UserError` for a margin ≤ 0 and for a batch without positives or without negatives.
    """
    import torch

    check_positive("margin", margin, "set it to a value such as 0.5")
    check_anchors(relations)
    queries, passages = at_least_fp32(queries), at_least_fp32(passages)
    stored = (~relations.passage_positive).nonzero()[:, 0]
    anchors = len(relations.anchor_query)
    negatives = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    negatives.index_add_(0, relations.passage_query[stored], torch.ones_like(stored))
    counted = negatives[relations.anchor_query] > 0
    queries_counted = (relations.anchor_weight.double() * counted).sum()
    if not len(stored) or not bool(queries_counted):
        raise UserError(
            f"a global batch of {len(queries)} queries without a stored negative",
            "the triplet loss compares a positive with the query's own negatives",
            "mine hard negatives and set hard_negatives to 1 or more, or take the loss 'info_nce'",
        )
    part = share_of(anchors, share)
    query, positive = relations.anchor_query[part], relations.anchor_passage[part]
    anchor, which = shared(query[:, None], relations.passage_query[stored][:, None])
    near = pair_cosine(queries, passages, query, positive)
    far = pair_cosine(queries, passages, query[anchor], stored[which])
    weight = (relations.anchor_weight[part] / negatives[query].clamp(min=1)).to(queries.dtype)
    return (weight[anchor] * torch.relu(far - near[anchor] + margin)).sum() / queries_counted.to(queries.dtype)
