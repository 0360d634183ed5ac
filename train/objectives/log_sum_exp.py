"""Log-sum-exp over the rows of a score matrix that never exists.

Invariant: the value and the gradients are those of `logsumexp(scale * rows @ columns.T)` with hidden places left out,
and the memory beside inputs and gradients is a few blocks of block x block numbers, however many rows and columns there
are. The forward pass walks over the blocks with a running log-sum; the backward pass makes every block again, as in
FlashAttention (Dao et al., 2022, arXiv 2205.14135) and Inf-CL (Cheng et al., 2024, arXiv 2410.17243).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from train.objectives.exact import exact_fp32
from train.objectives.masks import Hidden

if TYPE_CHECKING:
    import torch

CPU_BLOCK, CUDA_BLOCK = 1024, 4096
"""Rows and columns of a block. 4 MiB of scores stay in a CPU's cache; 64 MiB keep a GPU busy between launches."""


def log_sum_exp(
    rows: torch.Tensor,
    columns: torch.Tensor,
    *,
    scale: float,
    hidden: Hidden | None = None,
    ceiling: torch.Tensor | None = None,
    block: int | None = None,
) -> torch.Tensor:
    """log Σ_c exp(scale · rows[r] · columns[c]) over the columns that are not hidden from the row.

    Args:
        rows: [R, D]. columns: [C, D], of the same floating type, fp32 or fp64.
        scale: factor on the products (1 / temperature).
        hidden: places that are left out.
        ceiling: [R] or None; a product above its row's ceiling is left out too (before `scale`; it gets no gradient).
        block: rows and columns that are worked on at a time; unset takes what suits the device.

    Returns:
        [R] fp64, because beside 1 / temperature a loss loses its last digits in fp32; -inf where a row has no columns.
        Gradients flow to `rows` and `columns`, once (no second derivatives).
    """
    block = block or (CUDA_BLOCK if rows.is_cuda else CPU_BLOCK)
    value: torch.Tensor = _function().apply(rows, columns, scale, hidden, ceiling, block)
    return value


def _spans(count: int, block: int) -> Iterator[slice]:
    """range(count) in slices of at most `block`."""
    return (slice(start, min(start + block, count)) for start in range(0, count, block))


def _scores(
    rows: torch.Tensor,
    columns: torch.Tensor,
    r: slice,
    c: slice,
    scale: float,
    hidden: Hidden | None,
    ceiling: torch.Tensor | None,
) -> torch.Tensor:
    """One block. Both passes make it by the same operations, so a product at the ceiling falls on the same side."""
    made = rows[r] @ columns[c].T
    if ceiling is not None:
        made.masked_fill_(made > ceiling[r, None], float("-inf"))
    if hidden is not None:
        made[hidden.block(r, c)] = float("-inf")
    return made.mul_(scale)


@functools.cache
def _function() -> Any:
    """The autograd function. One class for all calls: a class made in a call lives, with what it holds, until a gc."""
    import torch
    from torch.autograd.function import once_differentiable

    class LogSumExp(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any,
            rows: torch.Tensor,
            columns: torch.Tensor,
            scale: float,
            hidden: Hidden | None,
            ceiling: torch.Tensor | None,
            block: int,
        ) -> torch.Tensor:
            result = rows.new_full((len(rows),), float("-inf"), dtype=torch.float64)
            lowest = torch.finfo(rows.dtype).min
            with exact_fp32(rows):
                for r in _spans(len(rows), block):
                    for c in _spans(len(columns), block):
                        made = _scores(rows, columns, r, c, scale, hidden, ceiling)
                        top = made.amax(dim=1).clamp_(min=lowest)  # where all is hidden: -inf - -inf has no value
                        total = made.sub_(top[:, None]).exp_().sum(dim=1).double().log_().add_(top)
                        result[r] = torch.logaddexp(result[r], total)
            ctx.save_for_backward(rows, columns, result)
            ctx.scale, ctx.hidden, ctx.ceiling, ctx.block = scale, hidden, ceiling, block
            return result

        @staticmethod
        @once_differentiable  # type: ignore[untyped-decorator]
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            rows, columns, result = ctx.saved_tensors
            for_rows = torch.zeros_like(rows) if ctx.needs_input_grad[0] else None
            for_columns = torch.zeros_like(columns) if ctx.needs_input_grad[1] else None
            level = result.masked_fill(result == float("-inf"), float("inf")).to(rows.dtype)  # no columns: no weight
            factor = (gradient * ctx.scale).to(rows.dtype)[:, None]
            with exact_fp32(rows):
                for r in _spans(len(rows), ctx.block):
                    pushed = rows[r] * factor[r]
                    for c in _spans(len(columns), ctx.block):
                        made = _scores(rows, columns, r, c, ctx.scale, ctx.hidden, ctx.ceiling)
                        weights = made.sub_(level[r, None]).exp_()
                        if for_rows is not None:
                            for_rows[r].addmm_(weights, columns[c])
                        if for_columns is not None:
                            for_columns[c].addmm_(weights.T, pushed)
            if for_rows is not None:
                for_rows.mul_(factor)
            return for_rows, for_columns, None, None, None, None

    return LogSumExp
