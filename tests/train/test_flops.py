"""Counted operations against torch's own counter, and peaks against the data sheets."""

from __future__ import annotations

from typing import Any

import pytest

from train.flops import Flops, Work, peak_flops

TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def _config(name: str) -> Any:
    import transformers

    grouped = {"num_key_value_heads": 2}
    own = {"LlamaConfig": grouped, "MistralConfig": grouped, "Qwen3Config": {**grouped, "head_dim": 16}}
    return getattr(transformers, name)(**TINY, **own.get(name, {}))


@pytest.mark.parametrize("name", ["LlamaConfig", "Qwen3Config", "MistralConfig", "BertConfig", "XLMRobertaConfig"])
def test_the_trunk_equals_what_torch_counts(name: str) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModel

    config = _config(name)
    flops = Flops.of(config, bidirectional=True)  # eager attention computes the whole square
    config._attn_implementation = "eager"
    model = AutoModel.from_config(config)
    with FlopCounterMode(display=False) as mode, torch.no_grad():
        model(input_ids=torch.randint(3, 90, (5, 17)))
    counted = mode.get_flop_counts()
    pooler = sum(sum(ops.values()) for where, ops in counted.items() if where.endswith(".pooler"))
    assert flops is not None
    assert flops.forward(5 * 17, 5 * 17**2) == sum(counted["Global"].values()) - pooler


def test_training_is_three_forwards_and_causal_attention_half() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForCausalLM

    config = _config("LlamaConfig")
    both, causal = Flops.of(config, bidirectional=True), Flops.of(config, bidirectional=False)
    assert both is not None and causal is not None
    assert (causal.per_token, causal.per_squared_token) == (both.per_token, both.per_squared_token / 2)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config)
    with FlopCounterMode(display=False) as mode:
        embedded = model.get_input_embeddings()(torch.randint(3, 90, (2, 11))).detach().requires_grad_()
        model(inputs_embeds=embedded).logits.sum().backward()
    work = Work.of([11, 11], head_tokens=22)
    assert both.hardware(work) == mode.get_total_flops()
    assert both.model(work) == 3 * both.forward(22, 2 * 121)
    assert both.model(work, training=False) == both.forward(22, 2 * 121)


def test_padding_and_second_forwards_count_as_hardware_work_only() -> None:
    flops = Flops(per_token=10.0, per_squared_token=1.0, head_per_token=100.0)
    work = Work.of([2, 4], pairs=1, computed=[4, 4], again=[4])
    assert work == Work(6, 2, 1, 20, 8, 32, 4, 16, 0)
    assert flops.model(work) == 3 * (60 + 20)
    assert flops.hardware(work) == 3 * (80 + 32) + (40 + 16)
    assert flops.hardware(work, training=False) == (80 + 32) + (40 + 16)


def test_work_adds_up_and_travels_as_numbers() -> None:
    one, two = Work.of([3, 5], pairs=1), Work.of([7], pairs=1, head_tokens=7)
    assert one + two == Work.of([3, 5, 7], pairs=2, head_tokens=7)
    assert Work(*(one + two).values()) == one + two
    assert one + Work() == one


def test_a_mixture_of_experts_claims_nothing() -> None:
    from transformers import MixtralConfig

    assert Flops.of(MixtralConfig(**TINY, num_key_value_heads=2), bidirectional=False) is None


def test_a_list_of_layers_counts_the_layers_that_are_there() -> None:
    config = _config("LlamaConfig")
    three = Flops.of(config, bidirectional=False)
    config.num_hidden_layers = 1
    one = Flops.of(config, bidirectional=False)
    assert three is not None and one is not None
    assert (three.per_token, three.per_squared_token) == (3 * one.per_token, 3 * one.per_squared_token)


@pytest.mark.parametrize(
    ("device", "bf16", "tf32", "fp32"),
    [
        ("NVIDIA H200", 989.4, 494.7, 66.9),
        ("NVIDIA H100 80GB HBM3", 989.4, 494.7, 66.9),
        ("NVIDIA GH200 480GB", 989.4, 494.7, 66.9),
        ("NVIDIA H200 NVL", 835.5, 417.5, 60.0),
        ("NVIDIA H100 PCIe", 756.0, 378.0, 51.2),
        ("NVIDIA B200", 2250.0, 1100.0, 75.0),
        ("NVIDIA A100-SXM4-80GB", 312.0, 156.0, 19.5),
        ("NVIDIA A100 80GB PCIe", 312.0, 156.0, 19.5),
        ("NVIDIA A10", 125.0, 62.5, 31.2),
        ("NVIDIA A10G", 70.0, 35.0, 35.0),
        ("NVIDIA L40S", 362.05, 183.0, 91.6),
        ("NVIDIA L4", 121.0, 60.0, 30.3),
        ("NVIDIA GeForce RTX 4090", 165.2, 82.6, 82.6),
        ("NVIDIA GeForce RTX 3090", 71.0, 35.6, 35.6),
        ("Tesla V100-SXM2-32GB", None, None, 15.7),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None, None, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None, None, None),
        ("cpu", None, None, None),
    ],
)
def test_peaks(device: str, bf16: float | None, tf32: float | None, fp32: float | None) -> None:
    def found(precision: str, *, tf32: bool = False) -> Any:
        peak = peak_flops(device, precision, tf32=tf32)
        return None if peak is None else pytest.approx(peak / 1e12)

    assert (found("bf16"), found("fp32", tf32=True), found("fp32")) == (bf16, tf32, fp32)
    assert peak_flops(device, "fp8") is None
