"""Cosines of chosen pairs, without a copy of the vectors that they choose.

`(queries[i] * passages[j]).sum(1)` keeps three [P, D] tensors for its backward pass; this keeps the two index lists.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from train.objectives.share import spans

if TYPE_CHECKING:
    import torch

BLOCK_PAIRS = 8192
"""Pairs that are worked on at a time: 32 MiB of vectors at 1,024 dimensions."""


def pair_cosine(
    queries: torch.Tensor, passages: torch.Tensor, which_query: torch.Tensor, which_passage: torch.Tensor
) -> torch.Tensor:
    """queries[which_query[n]] · passages[which_passage[n]] for each n.

    Args:
        queries: [B, D] unit rows. passages: [C, D] unit rows. which_query, which_passage: [P] int64.

    Returns:
        [P] in the type of the vectors, with gradients (once) to both.
    """
    value: torch.Tensor = _function().apply(queries, passages, which_query, which_passage)
    return value


@functools.cache
def _function() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    class PairCosine(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            queries: torch.Tensor,
            passages: torch.Tensor,
            which_query: torch.Tensor,
            which_passage: torch.Tensor,
        ) -> torch.Tensor:
            ctx.save_for_backward(queries, passages, which_query, which_passage)
            result = queries.new_empty(len(which_query))
            for n in spans(len(which_query), BLOCK_PAIRS):
                result[n] = (queries[which_query[n]] * passages[which_passage[n]]).sum(dim=1)
            return result

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            queries, passages, which_query, which_passage = ctx.saved_tensors
            for_queries = torch.zeros_like(queries) if ctx.needs_input_grad[0] else None
            for_passages = torch.zeros_like(passages) if ctx.needs_input_grad[1] else None
            for n in spans(len(which_query), BLOCK_PAIRS):
                i, j = which_query[n], which_passage[n]
                if for_queries is not None:
                    for_queries.index_add_(0, i, passages[j] * gradient[n, None])
                if for_passages is not None:
                    for_passages.index_add_(0, j, queries[i] * gradient[n, None])
            return for_queries, for_passages, None, None

    return PairCosine
