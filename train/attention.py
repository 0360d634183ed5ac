"""Attention that never crosses the sequences of a packed stream.

Registered with transformers under the name `packed`, so that unmodified Hugging Face models run on packed input.
transformers' own packed path (position ids alone) is exact for causal attention only: with a bidirectional model it
attends across sequences without a word. Here the boundaries are always given and always obeyed, and so are sliding
windows, which transformers would express by a mask that is not built here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.attention_runs import Reach, attend_runs
from train.packing import equal_runs

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
    packed_runs: Sequence[tuple[int, int]] | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Any, None]:
    """Block-diagonal attention.

    Args:
        query, key, value: [1, heads, T, head_dim]; key and value may have fewer heads (grouped queries).
        cu_seq_lens_q: [n + 1] cumulative lengths, int32.
        packed_runs: the same lengths on the host, as (length, how many in a row).
        is_causal: taken from the call first, then from the module: transformers passes `config.is_causal` here and
            leaves the module's own flag at True.
        sliding_window: how far a token sees back, itself included (Mistral, Qwen).

    Returns:
        [1, T, heads, head_dim] and None (no attention weights).
    """
    import torch

    reach = Reach(bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal, sliding_window)
    q, k, v = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
    # the kernels for streams exist for half precision on CUDA only, and they draw no dropout
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16) and dropout == 0.0:
        from train.attention_cuda import choose_backend

        attend = choose_backend(q, k, reach)
        if attend is not None:
            return attend(q, k, v, cu_seq_lens_q, max_length_q, reach=reach, scaling=scaling).unsqueeze(0), None
    if packed_runs is None:
        packed_runs = equal_runs(torch.diff(cu_seq_lens_q).tolist())
    return attend_runs(q, k, v, packed_runs, reach=reach, scaling=scaling, dropout=dropout).unsqueeze(0), None


def use_packed_attention(model: Any) -> None:
    """Switch a Hugging Face model to packed attention."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    # no mask is built: the boundaries say it all, and an all-ones mask would switch packing off silently
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    model.set_attn_implementation(NAME)
