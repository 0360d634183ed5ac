"""Kernels for packed half-precision streams on CUDA, and the choice between them.

Which kernels exist depends on torch (`varlen_attn` since 2.10, its keywords changed until 2.13), on the flash-attn
package and on Triton. Each candidate is tried once per process and head layout on a small stream of uneven sequences,
forward and backward; those that fail or disagree with the exact runs are dropped, and the fastest of the rest is kept.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from train.attention_runs import Reach, attend_runs
from train.packing import equal_runs

if TYPE_CHECKING:
    import torch

Attend = Callable[..., Any]
"""(query, key, value [T, heads, head_dim], boundaries [n + 1] int32, longest, *, reach, scaling) -> as query."""

_log = logging.getLogger(__name__)


def varlen(
    query: Any, key: Any, value: Any, boundaries: Any, longest: int, *, reach: Reach, scaling: float | None
) -> Any:
    """PyTorch's own variable-length flash attention."""
    from torch.nn.attention.varlen import varlen_attn

    kernel: Any = varlen_attn
    known = inspect.signature(kernel).parameters
    options: dict[str, Any] = {}
    if "window_size" in known:
        options["window_size"] = reach.sides()
    elif reach.window is None:
        options["is_causal"] = reach.causal
    else:
        raise NotImplementedError("this torch's varlen_attn has no sliding window")
    if scaling is not None and "scale" in known:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * query.shape[-1] ** 0.5)
    if key.shape[1] != query.shape[1]:
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        else:
            repeat = query.shape[1] // key.shape[1]
            key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    q, k, v = (x.contiguous() for x in (query, key, value))
    return kernel(q, k, v, boundaries, boundaries, longest, longest, **options)


def flash(
    query: Any, key: Any, value: Any, boundaries: Any, longest: int, *, reach: Reach, scaling: float | None
) -> Any:
    """The flash-attn package, where it is installed."""
    from flash_attn import flash_attn_varlen_func

    return flash_attn_varlen_func(
        query,
        key,
        value,
        boundaries,
        boundaries,
        longest,
        longest,
        softmax_scale=scaling,
        causal=reach.causal,
        window_size=reach.sides() if reach.window is not None else (-1, -1),
    )


def flex(
    query: Any, key: Any, value: Any, boundaries: Any, longest: int, *, reach: Reach, scaling: float | None
) -> Any:
    """FlexAttention with a block mask of the sequences, compiled by Triton."""
    import torch

    attend, make_mask = _compiled_flex()
    tokens = query.shape[0]
    owner = torch.repeat_interleave(
        torch.arange(len(boundaries) - 1, device=query.device), torch.diff(boundaries).long(), output_size=tokens
    )
    before, after = (tokens if side < 0 else side for side in reach.sides())

    def sees(batch: Any, head: Any, row: Any, column: Any) -> Any:
        distance = row - column
        return (owner[row] == owner[column]) & (distance <= before) & (distance >= -after)

    mask = make_mask(sees, None, None, tokens, tokens, device=query.device)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (query, key, value))
    seen = attend(q, k, v, block_mask=mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1])
    return seen.squeeze(0).transpose(0, 1)


@lru_cache(maxsize=1)
def _compiled_flex() -> tuple[Any, Any]:
    import torch
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    return torch.compile(flex_attention, dynamic=True), create_block_mask


CANDIDATES: dict[str, Attend] = {"varlen": varlen, "flash": flash, "flex": flex}


def choose_backend(query: torch.Tensor, key: torch.Tensor, reach: Reach) -> Attend | None:
    """The fastest kernel that is right for streams of this device, dtype, head layout and reach; found once.

    None where a call for each run of equal lengths (train/attention_runs.py) is faster or alone works.
    """
    return _choose(query.device, query.dtype, query.shape[1], key.shape[1], query.shape[2], reach)


def _runs(query: Any, key: Any, value: Any, boundaries: Any, _: int, *, reach: Reach, scaling: float | None) -> Any:
    lengths = equal_runs([b - a for a, b in pairwise(boundaries.tolist())])
    return attend_runs(query, key, value, lengths, reach=reach, scaling=scaling)


@lru_cache(maxsize=16)
def _choose(
    device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, width: int, reach: Reach
) -> Attend | None:
    import torch

    times: dict[str, float] = {}
    refused: dict[str, str] = {}
    # the first call may come from an evaluation
    with torch.inference_mode(False), torch.enable_grad():
        # uneven on purpose; a generator of its own leaves the training's random numbers alone
        boundaries = torch.tensor([0, 512, 640, 700, 733, 740, 741], dtype=torch.int32, device=device)
        draw = torch.Generator(device).manual_seed(0)
        stream = [
            torch.randn(741, n, width, device=device, dtype=dtype, generator=draw)
            for n in (heads, key_heads, key_heads)
        ]
        for name, attend in {**CANDIDATES, "runs": _runs}.items():
            try:
                worst = _error(attend, stream, boundaries, reach)
                if worst < 0.05:
                    times[name] = _seconds(attend, stream, boundaries, reach)
                else:
                    refused[name] = f"differs by {worst:.1e}"
            except Exception as error:  # a missing package, an old torch, a head size that a kernel does not know
                refused[name] = (str(error).strip() or type(error).__name__).splitlines()[0][:120]
    best = min(times, key=times.__getitem__, default="runs")
    _log.info(
        "packed attention on %s, %s, %s: %s (%s%s)",
        device,
        dtype,
        reach,
        best,
        ", ".join(f"{name} {seconds * 1e3:.2f} ms" for name, seconds in times.items()),
        "".join(f"; {name} left out: {why}" for name, why in refused.items()),
    )
    return CANDIDATES.get(best)


def _both_ways(attend: Attend, stream: list[Any], boundaries: Any, reach: Reach) -> list[Any]:
    """The output and the three gradients of its square sum."""
    import torch

    leaves = [x.detach().requires_grad_() for x in stream]
    seen = attend(*leaves, boundaries, 512, reach=reach, scaling=None)
    return [seen.detach(), *torch.autograd.grad(seen.float().square().sum(), leaves)]


def _error(attend: Attend, stream: list[Any], boundaries: Any, reach: Reach) -> float:
    """Largest difference from the exact runs in fp32, relative to the largest value of each tensor."""
    exact = _both_ways(_runs, [x.float() for x in stream], boundaries, reach)
    found = _both_ways(attend, stream, boundaries, reach)
    return max(float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True))


def _seconds(attend: Attend, stream: list[Any], boundaries: Any, reach: Reach) -> float:
    """Median of five forward and backward passes."""
    import torch

    found = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        _both_ways(attend, stream, boundaries, reach)
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return sorted(found)[2]
