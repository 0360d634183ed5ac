"""Loss and gradients of a pretraining step from the definition: float64, one process, one document at a time."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from invariance.reference import use_float64_norms

from data_prep.shards import Shards


def pretraining_reference(folder: Path, tokens: Path) -> dict[str, torch.Tensor]:
    """`loss`, the mean over all tokens that have a predecessor in their document, and every parameter's gradient."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    use_float64_norms(model)
    losses = []
    for row in Shards(tokens, "tokens"):
        ends = [*row["document_starts"][1:], len(row["input_ids"])]
        for start, end in zip(row["document_starts"], ends, strict=True):
            ids = torch.tensor([row["input_ids"][start:end]])
            scores = model(input_ids=ids, use_cache=False).logits[0]
            losses += [F.cross_entropy(scores[i - 1], ids[0, i]) for i in range(1, end - start)]
    loss = sum(losses) / len(losses)
    loss.backward()
    return {"loss": loss.detach(), **{f"model.{name}": p.grad for name, p in model.named_parameters()}}
