"""No token of one sequence reaches another, and packed states are those of each sequence alone.

The reference is transformers' eager attention in float64 on one sequence at a time, so nothing of ours is in it. Its
decoders take norms and softmax in fp32 all the same, which bounds how closely they can be met.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from train.attention import use_packed_attention
from train.attention_layout import attention_layout, token_states
from train.attention_runs import Reach, window_mask
from train.packing import equal_runs, pack

SHAPE: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
DECODER = {**SHAPE, "num_key_value_heads": 2}
DECODERS = ["llama", "mistral", "qwen2", "qwen3"]
ENCODERS = ["bert", "roberta", "xlm-roberta"]
# equal neighbours make a run, the single token is the smallest sequence, 12 is longer than the windows
SEQUENCES = [[5, 6, 7], [8], [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20], [21, 22, 23], [24, 25, 26]]


def make(kind: str, *, bidirectional: bool = False, dtype: torch.dtype = torch.float64) -> Any:
    import transformers as t

    torch.manual_seed(4)
    configs: dict[str, Any] = {
        "llama": lambda: t.LlamaConfig(**DECODER),
        "mistral": lambda: t.MistralConfig(**DECODER, sliding_window=4),
        "qwen2": lambda: t.Qwen2Config(**DECODER, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "qwen3": lambda: t.Qwen3Config(
            **DECODER, head_dim=16, use_sliding_window=True, sliding_window=4, max_window_layers=1
        ),
        "bert": lambda: t.BertConfig(**SHAPE),
        "roberta": lambda: t.RobertaConfig(**SHAPE),
        "xlm-roberta": lambda: t.XLMRobertaConfig(**SHAPE),
    }
    config = configs[kind]()
    if bidirectional:
        config.is_causal = False
    options = {"add_pooling_layer": False} if kind in ENCODERS else {}
    model = t.AutoModel.from_config(config, attn_implementation="eager", **options).to(dtype).eval()
    with torch.no_grad():  # random weights of std 0.02 would hide a leak under the tolerance
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return model


def alone(model: Any, sequence: list[int]) -> torch.Tensor:
    return model(input_ids=torch.tensor([sequence])).last_hidden_state[0]


CASES = [(k, b) for k in DECODERS for b in (False, True)] + [(k, False) for k in ENCODERS]


@pytest.mark.parametrize(("kind", "bidirectional"), CASES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_states_and_gradients_are_those_of_each_sequence_alone(kind: str, bidirectional: bool, layout: Any) -> None:
    model = make(kind, bidirectional=bidirectional)
    wanted = torch.cat([alone(model, s) for s in SEQUENCES])
    direction = torch.linspace(-1, 1, wanted.numel(), dtype=wanted.dtype).view_as(wanted).cos()
    parameters = list(model.parameters())
    expected = torch.autograd.grad((wanted * direction).sum(), parameters, allow_unused=True)
    assert attention_layout(model, layout) == layout
    got = token_states(model, pack(SEQUENCES), layout)
    close = 1e-10 if kind in ENCODERS else 3e-6
    torch.testing.assert_close(got, wanted, atol=close, rtol=close)
    found = torch.autograd.grad((got * direction).sum(), parameters, allow_unused=True)
    for a, b in zip(found, expected, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, atol=close * float(b.abs().max().clamp(min=1)), rtol=close)


@pytest.mark.parametrize(("kind", "bidirectional"), CASES)
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_changed_token_moves_its_own_sequence_only(kind: str, bidirectional: bool, layout: Any) -> None:
    model = make(kind, bidirectional=bidirectional)
    attention_layout(model, layout)
    changed = [list(s) for s in SEQUENCES]
    changed[2][6] = 70
    lengths = [len(s) for s in SEQUENCES]
    with torch.no_grad():
        before, after = (token_states(model, pack(s), layout).split(lengths) for s in (SEQUENCES, changed))
    for i in (0, 1, 3, 4):
        torch.testing.assert_close(after[i], before[i], atol=1e-12, rtol=0)
    moved = (after[2] - before[2]).abs().amax(1) > 1e-6
    sees_later = bidirectional or kind in ENCODERS
    assert moved[5].item() == sees_later
    assert moved[6:8].all()
    if not sees_later:
        assert not moved[:6].any()


def test_a_sliding_window_is_obeyed() -> None:
    model = make("mistral")  # two layers of window 4 reach back 2 * 3 tokens
    use_packed_attention(model)
    changed = [[70, *SEQUENCES[2][1:]]]
    with torch.no_grad():
        before, after = (token_states(model, pack(s), "packed") for s in ([SEQUENCES[2]], changed))
    moved = (after - before).abs().amax(1) > 1e-9
    assert moved.tolist() == [True] * 7 + [False] * 5


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 3, 7])
def test_window_masks_are_those_of_transformers(causal: bool, window: int) -> None:
    from transformers.masking_utils import (
        sliding_window_bidirectional_mask_function,
        sliding_window_causal_mask_function,
    )

    reach = Reach(causal, window)
    sees = (sliding_window_causal_mask_function if causal else sliding_window_bidirectional_mask_function)(window)
    for length in range(1, 10):
        mask = window_mask(length, reach, torch.device("cpu"))
        wanted = [[bool(sees(0, 0, torch.tensor(q), torch.tensor(k))) for k in range(length)] for q in range(length)]
        assert mask.tolist() == wanted
        full = torch.ones(length, length, dtype=torch.bool)
        assert reach.cuts(length) == (not torch.equal(mask, full.tril() if causal else full))


def test_a_window_mask_of_an_evaluation_serves_training() -> None:
    model = make("mistral", dtype=torch.float32)
    use_packed_attention(model)
    window_mask.cache_clear()
    with torch.inference_mode():
        token_states(model, pack(SEQUENCES), "packed")
    token_states(model, pack(SEQUENCES), "packed").sum().backward()


def test_runs_are_equal_neighbours() -> None:
    assert equal_runs([5, 5, 3, 5]) == [(5, 2), (3, 1), (5, 1)]


def test_dropout_of_attention_stays_inside_its_sequence() -> None:
    import transformers as t

    torch.manual_seed(0)
    config = t.BertConfig(**SHAPE, attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.0)
    model = t.BertModel(config, add_pooling_layer=False).train()
    use_packed_attention(model)
    changed = [[70, 71, 72], *SEQUENCES[1:]]
    states = []
    for sequences in (SEQUENCES, changed):
        torch.manual_seed(1)
        states.append(token_states(model, pack(sequences), "packed").split([len(s) for s in sequences]))
    torch.testing.assert_close(states[0][2], states[1][2])
    assert not torch.equal(states[0][0], states[1][0])


def test_what_cannot_be_packed_is_padded_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model = make("llama", dtype=torch.float32)
    inner = model.forward
    # an architecture that passes nothing on to its attention: boundaries are lost and the stream is one text
    model.forward = lambda input_ids, position_ids=None, attention_mask=None, use_cache=None, **_: inner(
        input_ids=input_ids, position_ids=position_ids, attention_mask=attention_mask, use_cache=use_cache,
        cu_seq_lens_q=torch.tensor([0, input_ids.numel()]),
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert attention_layout(model, "packed") == "padded"
    assert len(caplog.records) == 1
    assert "LlamaModel cannot be packed" in caplog.text and "padded" in caplog.text
    with torch.no_grad():
        got = token_states(model, pack(SEQUENCES), "padded")
        torch.testing.assert_close(got, torch.cat([alone(model, s) for s in SEQUENCES]), atol=1e-5, rtol=1e-4)


def test_the_proof_leaves_mode_and_random_numbers_alone() -> None:
    model = make("bert", dtype=torch.float32).train()
    state = torch.get_rng_state()
    assert attention_layout(model, "packed") == "packed"
    assert model.training and torch.equal(torch.get_rng_state(), state)
