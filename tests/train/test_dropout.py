"""With rate 0 training mode computes what evaluation mode computes."""

from __future__ import annotations

import pytest

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "Llama", "Qwen3"])
def test_no_dropout_is_left_and_it_can_be_set(kind: str) -> None:
    import torch
    import transformers  # seconds: not while tests are collected

    from train.dropout import set_dropout

    decoder = kind in ("Llama", "Qwen3")
    more = {"attention_dropout": 0.3} if decoder else {"hidden_dropout_prob": 0.3}
    torch.manual_seed(0)
    heads = {"num_key_value_heads": 2, "head_dim": 8} if decoder else {}
    config = getattr(transformers, f"{kind}Config")(**SMALL, **more, **heads, pad_token_id=0)
    model = transformers.AutoModel.from_config(config)
    ids = torch.arange(3, 40)[None]
    quiet = model.eval()(input_ids=ids).last_hidden_state
    assert not torch.allclose(model.train()(input_ids=ids).last_hidden_state, quiet)
    assert set_dropout(model, 0.0) > 0
    assert torch.allclose(model.train()(input_ids=ids).last_hidden_state, quiet, atol=1e-6)
    set_dropout(model, 0.3)
    assert not torch.allclose(model.train()(input_ids=ids).last_hidden_state, quiet, atol=1e-3)
