"""The losses, as pure functions of tensors.

Each returns this rank's share of the global mean, scaled so that averaging the gradients over ranks gives the gradient
of the mean over the whole global batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.negatives import false_negatives, gather_ids, gather_rows, world
from train.objectives.causal_lm import causal_lm_sum as causal_lm_sum

if TYPE_CHECKING:
    import torch


def info_nce(
    queries: torch.Tensor,
    passages: torch.Tensor,
    *,
    passage_ids: torch.Tensor,
    known_ids: torch.Tensor,
    query_ids: torch.Tensor,
    temperature: float,
    symmetric: bool = False,
) -> torch.Tensor:
    """InfoNCE over the passages of all ranks (van den Oord et al., 2018).

    Args:
        queries: [b, D] unit rows of this rank. passages: [b, 1 + k, D] unit rows: the positive, then k hard negatives.
        passage_ids: [b, 1 + k] int64 content ids, -1 where a row has fewer negatives (the slot is masked out).
        known_ids: [b, P] ids of each query's positives and of its own text; such columns are never negatives.
        query_ids: [b] ids of the query texts, for the symmetric term.
        temperature: divides the cosines.
        symmetric: also rank all queries for each positive passage, and average the two terms.

    Returns:
        A scalar: the mean over this rank's b queries. All ranks must hold the same b and k.
    """
    import torch
    import torch.nn.functional as F

    rank, _ = world()
    b, slots, width = passages.shape
    columns = gather_rows(passages).reshape(-1, width)
    column_ids = gather_ids(passage_ids).reshape(-1)
    target = (torch.arange(b, device=queries.device) + rank * b) * slots
    scores = (queries @ columns.T).float() / temperature
    hidden = false_negatives(column_ids, known_ids) | (column_ids < 0)[None, :]
    hidden[torch.arange(b, device=queries.device), target] = False
    loss = F.cross_entropy(scores.masked_fill(hidden, float("-inf")), target)
    if not symmetric:
        return loss
    everyone, everyone_ids = gather_rows(queries), gather_ids(query_ids)
    back = (passages[:, 0] @ everyone.T).float() / temperature
    # a query whose text or positive this passage shares is no negative of it
    twins = (gather_ids(passage_ids[:, 0].contiguous())[None, :] == passage_ids[:, :1]) | (
        everyone_ids[None, :] == query_ids[:, None]
    )
    own = torch.arange(b, device=queries.device) + rank * b
    twins[torch.arange(b, device=queries.device), own] = False
    return 0.5 * (loss + F.cross_entropy(back.masked_fill(twins, float("-inf")), own))


def margin_contrastive(
    queries: torch.Tensor, passages: torch.Tensor, *, passage_ids: torch.Tensor, margin: float
) -> torch.Tensor:
    """The paper's pairwise loss on cosine distance d: y d²/2 + (1 - y) max(0, margin - d)²/2 (Hadsell et al., 2006).

    Args:
        queries: [b, D]; passages: [b, 1 + k, D], the positive first; passage_ids: [b, 1 + k], -1 for an empty slot.

    Returns:
        A scalar: this rank's sum over its pairs, times ranks, over the number of pairs of all ranks.
    """
    import torch.distributed as dist
    import torch.nn.functional as F

    distance = 1 - (passages @ queries[:, :, None]).squeeze(-1).float()
    valid = passage_ids >= 0
    losses = 0.5 * F.relu(margin - distance).square()
    losses = losses.clone()
    losses[:, 0] = 0.5 * distance[:, 0].square()
    _, ranks = world()
    pairs = valid.sum()
    if ranks > 1:
        dist.all_reduce(pairs)
    return (losses * valid).sum() * ranks / pairs
