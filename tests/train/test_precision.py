"""bf16 keeps fp32 master weights: small updates add up, although each alone is lost in bf16."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 3])
def test_updates_that_bf16_would_lose_add_up_in_the_master_copy(stage: int, forks: Any, tmp_path: Path) -> None:
    import torch

    script = Path(__file__).with_name("precision_job.py")
    forks.run(script, stage, tmp_path / "facts.json", ranks=2, log=tmp_path / "log")
    facts = json.loads((tmp_path / "facts.json").read_text())
    assert facts["dtype"] == "torch.float32"
    assert facts["min"] == pytest.approx(1 - 30e-4, abs=1e-6)
    assert facts["max"] == pytest.approx(1 - 30e-4, abs=1e-6)
    one = torch.ones((), dtype=torch.bfloat16)
    assert one - 1e-4 == one, "each update alone is below bf16"
    assert facts["working"][10] == 1.0, "the working copy has not moved yet"
    assert facts["working"][-1] == pytest.approx(float(torch.tensor(1 - 29e-4).bfloat16()))


def test_norms_biases_and_embeddings_do_not_decay() -> None:
    import torch
    from transformers import BertConfig, BertModel, Qwen2Config, Qwen2ForCausalLM

    from train.engine import parameter_groups

    size = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    }  # fmt: skip
    for tied in (True, False):
        model = Qwen2ForCausalLM(Qwen2Config(**size, num_key_value_heads=2, tie_word_embeddings=tied))
        _check_groups(model, torch.nn.Embedding)
    _check_groups(BertModel(BertConfig(**size), add_pooling_layer=False), torch.nn.Embedding)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    trained = {id(p) for group in parameter_groups(model, 0.1) for p in group["params"]}
    assert id(model.model.layers[0].mlp.up_proj.weight) not in trained


def _check_groups(model: object, embedding: type) -> None:
    import torch

    from train.engine import parameter_groups

    assert isinstance(model, torch.nn.Module)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: g["weight_decay"] for g in parameter_groups(model, 0.1) for p in g["params"]}
    assert found.keys() == set(names.values()), "every parameter in one group"
    for name, decay in found.items():
        plain = name.endswith("bias") or "norm" in name.lower() or "embed" in name
        assert decay == (0.0 if plain else 0.1), name
    assert {0.0, 0.1} == set(found.values())
