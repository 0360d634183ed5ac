"""Activation checkpointing really computes the layers again, and changes no gradient."""

from __future__ import annotations


def test_every_layer_runs_twice_with_the_same_gradient() -> None:
    import torch
    from transformers import LlamaConfig, LlamaModel

    from train.recompute import recompute_layers

    torch.manual_seed(0)
    size = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    model = LlamaModel(LlamaConfig(**size, num_attention_heads=4)).train()
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    for layer in model.layers:
        layer.self_attn.q_proj.register_forward_hook(count)
    found = []
    for wanted in (3, 6):
        calls[0] = 0
        model.zero_grad()
        model(input_ids=torch.arange(20)[None], use_cache=False).last_hidden_state.square().sum().backward()
        assert calls[0] == wanted
        found.append([p.grad.clone() for p in model.parameters()])
        recompute_layers(model)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
