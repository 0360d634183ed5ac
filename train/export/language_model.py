"""A pretrained language model as it is published: plain transformers must predict what the training model predicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LOG_PROBABILITY_TOLERANCE = 1e-3
"""Largest difference of any log-probability in fp32, in nats: logits are sums over the whole width and lie near 10,
where unit vectors lie near 0.1."""
_LONGEST = 512


def language_parity(trained: Path, exported: Path, texts: Sequence[str]) -> dict[str, Any]:
    """Compare next-token predictions of the training model (fp32, packed attention) with those of plain transformers.

    Returns:
        like `train.export.parity.parity`, of log-probabilities [token, vocabulary]; cosines are those of the logits.

    Raises:
        ValueError: transformers finds tensors missing from the exported folder.
    """
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from train.attention_layout import attention_layout, token_states
    from train.packing import pack

    tokenizer: Any = AutoTokenizer.from_pretrained(exported, local_files_only=True)
    rows = [tokenizer(text, truncation=True, max_length=_LONGEST)["input_ids"] for text in texts]
    rows = [row for row in rows if row]
    ours: Any = AutoModelForCausalLM.from_pretrained(trained, dtype=torch.float32, local_files_only=True).eval()
    layout = attention_layout(ours.get_decoder(), "packed")
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        exported, dtype="auto", use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    theirs, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"{exported} lacks {sorted(info['missing_keys'])}")
    theirs.eval()
    differences, cosines = [], []
    with torch.inference_mode():
        for row in rows:
            # beside another text: what is packed together must not show
            states = token_states(ours.get_decoder(), pack([row, rows[0]]), layout)[: len(row)]
            a: torch.Tensor = ours.get_output_embeddings()(states).double()
            b: torch.Tensor = theirs(input_ids=torch.tensor([row])).logits[0].double()
            differences.append((F.log_softmax(a, -1) - F.log_softmax(b, -1)).abs().max())
            cosines.append(F.cosine_similarity(a, b, dim=-1).min())
    worst, least = float(torch.stack(differences).max()), float(torch.stack(cosines).min())
    against = {"transformers": {"max_abs_difference": worst, "min_cosine": least}}
    return {
        "max_abs_difference": worst,
        "texts": len(rows),
        "dimension": int(ours.config.vocab_size),
        "against": against,
    }
