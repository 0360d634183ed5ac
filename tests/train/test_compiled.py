"""Compiled token-wise parts give the eager result and gradient at any number of tokens."""

from __future__ import annotations

import copy
import shutil

import pytest


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_compiled_equals_eager() -> None:
    import torch
    from transformers import Qwen3Config, Qwen3Model

    from train.attention import use_packed_attention
    from train.compiled import compile_token_wise
    from train.packing import pack

    torch.manual_seed(0)
    eager = Qwen3Model(
        Qwen3Config(
            vocab_size=96,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
        )
    ).train()
    use_packed_attention(eager)
    compiled = copy.deepcopy(eager)
    names = [n for n, _ in compiled.named_parameters()]
    # in each layer the feed-forward block and four norms (two of them of queries and keys), and the last norm
    assert compile_token_wise(compiled) == 2 * 5 + 1
    assert [n for n, _ in compiled.named_parameters()] == names
    torch._dynamo.reset()
    for lengths in ([5, 9], [3], [7, 7, 20], [11, 2]):
        stream = pack([[(13 * i + n) % 90 for i in range(n)] for n in lengths])
        results = []
        for model in (eager, compiled):
            model.zero_grad()
            states = model(**stream.model_inputs()).last_hidden_state
            states.square().mean().backward()
            results.append([states.detach(), *(p.grad for p in model.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    frames = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert frames <= 8, "another number of tokens must not compile again"


def test_a_cpu_is_left_alone_and_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    import torch

    from train.compiled import compile_where_it_pays

    class TinyMLP(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(2, 2)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = torch.nn.Sequential(TinyMLP())
    compile_where_it_pays(model)
    assert model[0]._compiled_call_impl is None
    assert "left out" in caplog.text
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    compile_where_it_pays(model)
    assert model[0]._compiled_call_impl is not None
