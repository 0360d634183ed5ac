"""InfoNCE over the global batch: each query finds its positive among the passages of all ranks.

Invariant: neither the number of shares nor the block size changes the loss or its gradient, and no matrix of queries x
passages exists (see `log_sum_exp`). What is known to belong to a query is never its negative, on whichever rank it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from train.objectives.log_sum_exp import log_sum_exp
from train.objectives.masks import Hidden
from train.objectives.pair_cosine import pair_cosine
from train.objectives.share import Share, at_least_fp32, check_anchors, check_positive, share_of

if TYPE_CHECKING:
    import torch

    from train.relations import Relations


def info_nce(
    queries: torch.Tensor,
    passages: torch.Tensor,
    relations: Relations,
    *,
    temperature: float,
    symmetric: bool = False,
    query_negatives: bool = False,
    passage_negatives: bool = False,
    false_negative_margin: float | None = None,
    block: int | None = None,
    share: Share = (0, 1),
) -> torch.Tensor:
    """A share of Σ_anchors weight · -log(e^(s⁺) / (e^(s⁺) + Σ_negatives e^s)) / B, with s = cosine / temperature.

    The negatives of an anchor (query, positive) are all other passages of the global batch (van den Oord et al., 2018,
    arXiv 1807.03748; in batch: Henderson et al., 2017, arXiv 1705.00652), except those

    - whose text is known to belong to the query (its positives, itself),
    - that come from a document of the query or of its positives,
    - that the model finds closer to the query than the positive, by more than `false_negative_margin`.

    Args:
        queries: [B, D] unit rows. passages: [C, D] unit rows. In fp32 (fp64 stays fp64, halves are widened).
        relations: the tables of the global batch, on the same device.
        temperature: divides the cosines.
        symmetric: also rank all queries for each anchor's positive, and take half of each term.
        query_negatives: the denominator also holds the other queries against the query, and
        passage_negatives: the other passages against the positive, under the same exceptions (GTE: Li et al., 2023,
            arXiv 2308.03281; Qwen3 Embedding: Zhang et al., 2025, arXiv 2506.05176). Queries that know a common text
            or document are no negatives of each other.
        false_negative_margin: in cosine; unset hides nothing by similarity. Qwen3 Embedding took 0.1.
        block: see `log_sum_exp`.
        share: which of how many even cuts of the anchors is wanted; all shares sum to the loss of the batch.

    Returns:
        A scalar in the type of the embeddings. Raises `UserError` for a temperature ≤ 0 and for no anchors at all.
    """
    import torch

    check_positive("temperature", temperature, "set it to a value such as 0.05")
    check_anchors(relations)
    queries, passages = at_least_fp32(queries), at_least_fp32(passages)
    part = share_of(len(relations.anchor_query), share)
    query, positive = relations.anchor_query[part], relations.anchor_passage[part]
    cosine = pair_cosine(queries, passages, query, positive)
    ceiling = None if false_negative_margin is None else cosine.detach() + false_negative_margin
    target = cosine.double() / temperature

    def negatives(
        vectors: torch.Tensor,
        rows: torch.Tensor,
        columns: torch.Tensor,
        own: torch.Tensor,
        *tables: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        hidden, scale = Hidden(own, tables), 1 / temperature
        return log_sum_exp(vectors, columns, rows=rows, scale=scale, hidden=hidden, ceiling=ceiling, block=block)

    known, documents = relations.known_ids[query], relations.known_documents[query]
    passage_tables = (
        (known, relations.passage_ids[:, None]),
        (documents, relations.passage_documents[:, None]),
    )
    terms = [target, negatives(queries, query, passages, positive, *passage_tables)]
    if query_negatives:
        tables = ((known, relations.known_ids), (documents, relations.known_documents))
        terms.append(negatives(queries, query, queries, query, *tables))
    if passage_negatives:
        terms.append(negatives(passages, positive, passages, positive, *passage_tables))
    losses = torch.stack(terms).logsumexp(dim=0) - target
    if symmetric:
        back = negatives(
            passages,
            positive,
            queries,
            query,
            (known, relations.query_ids[:, None]),
            (relations.passage_ids[positive][:, None], relations.known_ids),
            (relations.passage_documents[positive][:, None], relations.known_documents),
        )
        losses = 0.5 * (losses + torch.logaddexp(target, back) - target)
    weight = relations.anchor_weight[part].double()
    return ((weight * losses).sum() / len(relations.query_ids)).to(queries.dtype)
