"""Next-token cross-entropy over a large vocabulary, without the whole matrix of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def causal_lm_sum(hidden: torch.Tensor, head: Any, targets: torch.Tensor, *, chunk_tokens: int = 8192) -> torch.Tensor:
    """Summed next-token cross-entropy.

    Args:
        hidden: [T, H] states that predict. head: the output projection, [*, H] → [*, V].
        targets: [T] int64, the token to predict, -100 where there is none (the last token of a document).
        chunk_tokens: logits exist for so many tokens at a time; with more than one chunk each is recomputed in the
            backward pass, so that a [T, V] matrix of a 32k-150k vocabulary never exists whole.

    Returns:
        A scalar: the sum over predicted tokens, in fp32.
    """
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    def summed(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(head(states).float(), wanted, ignore_index=-100, reduction="sum")

    if len(hidden) <= chunk_tokens:
        return summed(hidden, targets)
    total = hidden.new_zeros((), dtype=torch.float32)
    for states, wanted in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
        total = total + checkpoint(summed, states, wanted, use_reentrant=False)
    return total
