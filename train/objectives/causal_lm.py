"""Next-token cross-entropy over a large vocabulary, without the whole matrix of logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def causal_lm_sum(
    hidden: torch.Tensor, head: Any, targets: torch.Tensor, *, z_loss: float = 0.0, chunk_tokens: int = 8192
) -> torch.Tensor:
    """Summed next-token cross-entropy, plus `z_loss` times the summed square of log Z.

    Args:
        hidden: [T, H] states that predict. head: the output projection, [*, H] → [*, V].
        targets: [T] int64, the token to predict, -100 where there is none (the last token of a document).
        z_loss: weight of (log Z)², Z being the sum of e^logit: keeps logits from drifting away in long bf16 runs
            (PaLM: Chowdhery et al., 2022, arXiv 2204.02311, with 1e-4). 0 leaves the plain cross-entropy.
        chunk_tokens: logits exist for so many tokens at a time; with more than one chunk each is recomputed in the
            backward pass, so that a [T, V] matrix of a 32k-150k vocabulary never exists whole.

    Returns:
        A scalar: the sum over predicted tokens, in fp32.
    """
    import torch
    import torch.nn.functional as F
    from torch.utils.checkpoint import checkpoint

    def summed(states: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        logits = head(states).float()
        if not z_loss:
            return F.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum")
        log_z = logits.logsumexp(dim=-1)
        score = logits.gather(1, wanted.clamp(min=0)[:, None])[:, 0]
        losses = log_z - score + z_loss * log_z.square()
        return torch.where(wanted >= 0, losses, 0).sum()

    if len(hidden) <= chunk_tokens:
        return summed(hidden, targets)
    total = hidden.new_zeros((), dtype=torch.float32)
    for states, wanted in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True):
        total = total + checkpoint(summed, states, wanted, use_reentrant=False)
    return total
