"""Log-sum-exp over the rows of a score matrix that never exists.

Invariant: the value and the gradients are those of `logsumexp(scale * rows @ columns.T)` with hidden places left out,
and the memory beside inputs, their gradients and a few numbers a row is a few blocks, however many rows and columns
there are. The forward pass walks over the blocks with a running log-sum; the backward pass makes every block again, as
in FlashAttention (Dao et al., 2022, arXiv 2205.14135) and Inf-CL (Cheng et al., 2024, arXiv 2410.17243).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from train.objectives.exact import exact_fp32
from train.objectives.masks import Hidden
from train.objectives.share import spans

if TYPE_CHECKING:
    import torch

CPU_BLOCK, CUDA_BLOCK = 1024, 4096
"""Rows and columns of a block. 4 MiB of scores stay in a CPU's cache; 64 MiB keep a GPU busy between launches."""


def log_sum_exp(
    vectors: torch.Tensor,
    columns: torch.Tensor,
    *,
    rows: torch.Tensor,
    scale: float,
    hidden: Hidden | None = None,
    ceiling: torch.Tensor | None = None,
    block: int | None = None,
) -> torch.Tensor:
    """log Σ_c exp(scale · vectors[rows[r]] · columns[c]) over the columns that are not hidden from the row.

    Args:
        vectors: [N, D]. columns: [C, D], of the same floating type, fp32 or fp64.
        rows: [R] int64, the vector that each row is; one may stand in several rows.
        scale: factor on the products (1 / temperature).
        hidden: places that are left out.
        ceiling: [R] or None; a product above its row's ceiling is left out too (before `scale`; it gets no gradient).
        block: rows and columns that are worked on at a time; unset takes what suits the device.

    Returns:
        [R] fp64, because beside 1 / temperature a loss loses its last digits in fp32; -inf where a row has no columns.
        Gradients flow to `vectors` and `columns`, once (no second derivatives).
    """
    block = block or (CUDA_BLOCK if vectors.is_cuda else CPU_BLOCK)
    value: torch.Tensor = _function().apply(vectors, columns, rows, scale, hidden, ceiling, block)
    return value


def _scores(
    scratch: torch.Tensor,
    part: torch.Tensor,
    columns: torch.Tensor,
    r: slice,
    c: slice,
    scale: float,
    hidden: Hidden | None,
    ceiling: torch.Tensor | None,
) -> torch.Tensor:
    """One block, in the scratch memory: on a CPU fresh pages for each block would cost more than its product.

    Both passes make a block by the same operations, so that a product at the ceiling falls on the same side.
    """
    import torch

    shape = (len(part), c.stop - c.start)
    made = torch.mm(part, columns[c].T, out=scratch[: shape[0] * shape[1]].view(shape))
    if ceiling is not None:
        made.masked_fill_(made > ceiling[r, None], float("-inf"))
    if hidden is not None:
        made[hidden.block(r, c)] = float("-inf")
    return made.mul_(scale)


def _exp(made: torch.Tensor) -> torch.Tensor:
    """e^made in place, and 0 below e^-80, which is nothing beside the largest term, e^0.

    On a CPU exp takes 10 to 70 times as long for -inf and for results below 1e-38, and a temperature of 0.01 brings
    whole blocks of them.
    """
    import torch

    return torch.threshold_(made.clamp_(min=-80).exp_(), 2e-35, 0)


@functools.cache
def _function() -> Any:
    """The autograd function. One class for all calls: a class made in a call lives, with what it holds, until a gc."""
    import torch
    from torch.autograd.function import once_differentiable

    class LogSumExp(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            vectors: torch.Tensor,
            columns: torch.Tensor,
            rows: torch.Tensor,
            scale: float,
            hidden: Hidden | None,
            ceiling: torch.Tensor | None,
            block: int,
        ) -> torch.Tensor:
            result = vectors.new_full((len(rows),), float("-inf"), dtype=torch.float64)
            lowest = torch.finfo(vectors.dtype).min
            scratch = vectors.new_empty(min(block, len(rows)) * min(block, len(columns)))
            with exact_fp32(vectors):
                for r in spans(len(rows), block):
                    part = vectors[rows[r]]
                    for c in spans(len(columns), block):
                        made = _scores(scratch, part, columns, r, c, scale, hidden, ceiling)
                        top = made.amax(dim=1).clamp_(min=lowest)  # where all is hidden: -inf - -inf has no value
                        total = _exp(made.sub_(top[:, None])).sum(dim=1).double().log_().add_(top)
                        result[r] = torch.logaddexp(result[r], total)
            ctx.save_for_backward(vectors, columns, rows, result)
            ctx.scale, ctx.hidden, ctx.ceiling, ctx.block = scale, hidden, ceiling, block
            return result

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            vectors, columns, rows, result = ctx.saved_tensors
            for_vectors = torch.zeros_like(vectors) if ctx.needs_input_grad[0] else None
            for_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
            level = result.masked_fill(result == float("-inf"), float("inf")).to(vectors.dtype)  # no columns: no weight
            factor = (gradient * ctx.scale).to(vectors.dtype)[:, None]
            scratch = vectors.new_empty(min(ctx.block, len(rows)) * min(ctx.block, len(columns)))
            with exact_fp32(vectors):
                for r in spans(len(rows), ctx.block):
                    part = vectors[rows[r]]
                    pushed, pulled = part * factor[r], torch.zeros_like(part)
                    for c in spans(len(columns), ctx.block):
                        made = _scores(scratch, part, columns, r, c, ctx.scale, ctx.hidden, ctx.ceiling)
                        weights = _exp(made.sub_(level[r, None]))
                        if for_vectors is not None:
                            pulled.addmm_(weights, columns[c])
                        if for_columns is not None:
                            for_columns[c].addmm_(weights.T, pushed)
                    if for_vectors is not None:
                        for_vectors.index_add_(0, rows[r], pulled.mul_(factor[r]))
            return for_vectors, for_columns, None, None, None, None, None

    return LogSumExp
