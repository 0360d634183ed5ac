"""With rate 0 training mode computes what evaluation mode computes."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, BertConfig, LlamaConfig, Qwen3Config, RobertaConfig

from train.dropout import set_dropout

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 50}


@pytest.mark.parametrize("kind", [BertConfig, RobertaConfig, LlamaConfig, Qwen3Config])
def test_no_dropout_is_left_and_it_can_be_set(kind: type) -> None:
    more = {"attention_dropout": 0.3} if kind in (LlamaConfig, Qwen3Config) else {"hidden_dropout_prob": 0.3}
    torch.manual_seed(0)
    heads = {} if kind in (BertConfig, RobertaConfig) else {"num_key_value_heads": 2, "head_dim": 8}
    model = AutoModel.from_config(kind(**SMALL, **more, **heads, pad_token_id=0))
    ids = torch.arange(3, 40)[None]
    quiet = model.eval()(input_ids=ids).last_hidden_state
    assert not torch.allclose(model.train()(input_ids=ids).last_hidden_state, quiet)
    assert set_dropout(model, 0.0) > 0
    assert torch.allclose(model.train()(input_ids=ids).last_hidden_state, quiet, atol=1e-6)
    set_dropout(model, 0.3)
    assert not torch.allclose(model.train()(input_ids=ids).last_hidden_state, quiet, atol=1e-3)
