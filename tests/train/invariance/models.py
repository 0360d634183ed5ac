"""Tiny models whose gradients are nowhere near zero: random weights of some size, in norms and biases too."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

HIDDEN = 32


def _shapes(vocabulary: int) -> dict[str, tuple[Any, Any]]:
    """Name → (class, config)."""
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

    common = {
        "vocab_size": vocabulary,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
    }
    decoder = common | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return {
        "llama": (LlamaModel, LlamaConfig(**decoder)),
        "qwen3": (Qwen3Model, Qwen3Config(**decoder, head_dim=8)),
        "bert": (BertModel, BertConfig(**common, **still)),
    }


def make_models(folder: Path, tokenizer: Path) -> None:
    """One folder for each model, with the tokenizer, and `projection.safetensors` for all of them."""
    import torch
    from invariance.cases import PROJECTION
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    vocabulary = len(AutoTokenizer.from_pretrained(tokenizer))
    for number, (name, (kind, config)) in enumerate(_shapes(vocabulary).items()):
        torch.manual_seed(number)
        bare = {"add_pooling_layer": False} if name == "bert" else {}
        model = kind(config, **bare)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if "word_embeddings" in parameter_name or "embed_tokens" in parameter_name:
                    parameter.normal_(std=1.0)  # texts differ in their words more than in their lengths
                elif parameter.ndim >= 2:
                    parameter.normal_(std=HIDDEN**-0.5)
                elif parameter_name.endswith("bias"):
                    parameter.normal_(std=0.2)
                else:
                    parameter.normal_(mean=1.0, std=0.2)
        model.save_pretrained(folder / name)
        for file in tokenizer.iterdir():
            if file.is_file():
                shutil.copy(file, folder / name)
    torch.manual_seed(99)
    save_file({"weight": torch.randn(PROJECTION, HIDDEN) * HIDDEN**-0.5}, folder / "projection.safetensors")


def model_folder(folder: Path, model: str) -> Path:
    """Where the model of a case is."""
    return folder / model.split()[0]
