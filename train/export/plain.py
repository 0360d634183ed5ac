"""Vectors from an exported folder with nothing but transformers and torch: what the model card tells a reader to type.

Invariant: everything comes from the published files; nothing of this project is called, so that agreement with it means
something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

Forward = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]
"""(token ids [n, L], mask [n, L]) → token states [n, L, H]."""


def plain_model(folder: Path) -> Forward:
    """The forward pass of an exported folder in plain transformers, in the type of its weights."""
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    told = logging.get_verbosity()
    logging.set_verbosity_error()  # a pooler that nobody uses is no news
    try:
        model: Any = AutoModel.from_pretrained(
            folder, dtype="auto", use_safetensors=True, local_files_only=True, trust_remote_code=False
        ).eval()
    finally:
        logging.set_verbosity(told)

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            states: torch.Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    return forward


def plain_vectors(
    folder: Path, forward: Forward, texts: Sequence[str], *, role: Literal["query", "document"], batch: int = 16
) -> NDArray[np.float32]:
    """Unit vectors [len(texts), D] of an exported folder: prompt, pooling, projection and norm written out.

    Args:
        forward: of the same folder; `plain_model`, or another runtime's.
    """
    import numpy as np
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    def read(name: str) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
        return settings

    pooling, prompt = read("1_Pooling/config.json"), read("config_sentence_transformers.json")["prompts"][role]
    longest = read("sentence_bert_config.json")["max_seq_length"]
    dense = folder / "2_Dense" / "model.safetensors"
    projection = load_file(dense)["linear.weight"].float() if dense.exists() else None
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True, padding_side="right")
    alone = tokenizer(prompt)["input_ids"] if prompt else []
    skip = len(alone) - (bool(alone) and alone[-1] in tokenizer.all_special_ids)  # an end mark is not the prompt's
    rows = []
    for first in range(0, len(texts), batch):
        written = [prompt + text for text in texts[first : first + batch]]
        tokens = tokenizer(written, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        seen = tokens["attention_mask"]
        states = forward(tokens["input_ids"], seen).float()
        weights = seen.float()
        if not pooling["include_prompt"]:
            weights[:, :skip] = 0
        if pooling["pooling_mode_weightedmean_tokens"]:
            weights = weights * torch.arange(1, weights.shape[1] + 1)
        if pooling["pooling_mode_lasttoken"]:
            weights = F.one_hot(seen.sum(1) - 1, seen.shape[1]).float()
        vectors = (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
        if projection is not None:
            vectors = vectors @ projection.T
        rows.append(F.normalize(vectors, dim=-1).numpy())
    return np.concatenate(rows)
