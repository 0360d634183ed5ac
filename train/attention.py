"""Attention that never crosses the sequences of a packed stream.

Registered with transformers under the name `packed`, so that unmodified Hugging Face decoders run on packed input.
transformers' own packed path (position ids alone) is exact for causal attention only: with a bidirectional model it
attends across sequences without a word. Here the boundaries are always given and always obeyed.
"""

from __future__ import annotations

import inspect
from typing import Any

NAME = "packed"


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: Any = None,
    max_length_q: int | None = None,
    packed_lengths: list[int] | None = None,
    is_causal: bool | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Block-diagonal attention.

    Args:
        query, key, value: [1, heads, T, head_dim]; key and value may have fewer heads (grouped queries).
        cu_seq_lens_q: [n + 1] cumulative lengths. packed_lengths: the same lengths on the host.
        is_causal: taken from the call first, then from the module: transformers passes `config.is_causal` here and
            leaves the module's own flag at True.

    Returns:
        [1, T, heads, head_dim] and None (no attention weights).
    """
    import torch
    import torch.nn.functional as F

    causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    lengths = packed_lengths if packed_lengths is not None else torch.diff(cu_seq_lens_q).tolist()
    # varlen kernels exist for half precision on CUDA only; fp32 there takes the exact loop below
    if query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        return _varlen_cuda(query, key, value, cu_seq_lens_q, max_length_q, scaling, causal), None
    pieces = [
        F.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=scaling, dropout_p=dropout, enable_gqa=query.shape[1] != key.shape[1]
        )
        for q, k, v in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


def _varlen_cuda(
    query: Any, key: Any, value: Any, boundaries: Any, longest: int | None, scaling: float | None, causal: bool
) -> Any:
    """PyTorch's own variable-length flash attention; its keywords moved between 2.10 and 2.13, hence the look."""
    from torch.nn.attention.varlen import varlen_attn

    known = inspect.signature(varlen_attn).parameters
    q, k, v = (x.transpose(1, 2).squeeze(0).contiguous() for x in (query, key, value))
    if k.shape[1] != q.shape[1]:
        repeat = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    options: dict[str, Any] = (
        {"window_size": (-1, 0) if causal else (-1, -1)} if "window_size" in known else {"is_causal": causal}
    )
    if scaling is not None and "scale" in known:
        options["scale"] = scaling
    kernel: Any = varlen_attn
    return kernel(q, k, v, boundaries, boundaries, longest, longest, **options).unsqueeze(0)


def use_packed_attention(model: Any) -> None:
    """Switch a Hugging Face model to packed attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    # no mask is built: the boundaries say it all, and an all-ones mask would switch packing off silently
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    model.set_attn_implementation(NAME)
