"""Pooling against loops in float64, tokenising with marks and prompts, layouts that agree, what a model lacks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_prep.errors import UserError
from train.attention_layout import attention_layout
from train.encoder import (
    EncoderConfig,
    TextEncoder,
    load_backbone,
    load_encoder,
    make_encoder,
    prompt_tokens,
    save_encoder_config,
    tokenise,
)
from train.packing import pack
from train.pooling import pool
from train.unused_head import unused_parameters

TEXTS = ["banjir di jalan", "nasi lemak sedap", "harga rumah naik " * 40, "a"]


def pooled_by_hand(states: np.ndarray, lengths: list[int], skip: list[int], kind: str) -> np.ndarray:
    rows, first = [], 0
    for length, left_out in zip(lengths, skip, strict=True):
        total, weight = np.zeros(states.shape[1]), 0.0
        for place in range(length):
            share = {"mean": 1.0, "weighted_mean": place + 1.0, "last": float(place == length - 1)}[kind]
            if place >= left_out:
                total += share * states[first + place].astype(np.float64)
                weight += share
        rows.append(total / weight)
        first += length
    return np.array(rows)


@pytest.mark.parametrize("kind", ["mean", "last", "weighted_mean"])
@pytest.mark.parametrize("skip", [None, [2, 0, 3, 0], [9, 9, 9, 9], [0, 0, 0, 0]])
def test_pooling(kind: Any, skip: list[int] | None) -> None:
    lengths = [3, 1, 5, 2]
    packed = pack([[7] * n for n in lengths], skip=skip)
    states = torch.randn(11, 6, generator=torch.Generator().manual_seed(0))
    kept = [min(s, n - 1) for s, n in zip(skip or [0] * 4, lengths, strict=True)]  # one token always stays
    np.testing.assert_allclose(
        pool(states, packed, kind).numpy(), pooled_by_hand(states.numpy(), lengths, kept, kind), rtol=1e-5, atol=1e-6
    )


def test_packing_lists_and_arrays() -> None:
    lists = [[5, 6, 7], [8], [9, 10]]
    for packed in (pack(lists), pack([np.array(s, dtype=np.int32) for s in lists])):
        assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10]]
        assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1]]
        assert packed.boundaries.tolist() == [0, 3, 4, 6] and packed.boundaries.dtype == torch.int32
        assert packed.lengths == [3, 1, 2] and packed.skip is None
    assert pack(lists, skip=[2, 3, 0]).skip.tolist() == [2, 0, 0]


@pytest.fixture(scope="module")
def tokenizer(world_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(world_folder / "model")


def test_tokens_are_cut_counted_and_keep_their_end_mark(tokenizer: Any) -> None:
    found = tokenise(tokenizer, TEXTS, EncoderConfig(max_tokens=16), "query")
    assert found.truncated == 1 and len(found.ids[2]) == 16
    assert {row[-1] for row in found.ids} == {tokenizer.eos_token_id}
    assert found.skip == [0, 0, 0, 0]
    exactly = len(found.ids[0])  # a text that just fits is not cut
    assert tokenise(tokenizer, TEXTS[:1], EncoderConfig(max_tokens=exactly), "query").truncated == 0
    assert tokenise(tokenizer, TEXTS[:1], EncoderConfig(max_tokens=exactly - 1), "query").truncated == 1
    assert tokenise(tokenizer, [], EncoderConfig(), "query").ids == []
    long = tokenise(tokenizer, ["banjir " * 200_000], EncoderConfig(max_tokens=16), "passage")
    assert long.truncated == 1 and len(long.ids[0]) == 16


def test_prompts_go_to_their_role_and_are_skipped(tokenizer: Any) -> None:
    config = EncoderConfig(max_tokens=32, query_prompt="soalan: ", mask_prompts=True)
    count = prompt_tokens(tokenizer, "soalan: ")
    assert tokenizer("soalan: ")["input_ids"][:count] == tokenizer("soalan: x")["input_ids"][:count]
    query, passage = (tokenise(tokenizer, TEXTS, config, role) for role in ("query", "passage"))
    assert query.skip == [count] * 4 and passage.skip == [0] * 4
    assert passage.ids == tokenise(tokenizer, TEXTS, EncoderConfig(max_tokens=32), "passage").ids
    unmasked = tokenise(tokenizer, TEXTS, EncoderConfig(max_tokens=32, query_prompt="soalan: "), "query")
    assert unmasked.ids == query.ids and unmasked.skip == [0] * 4


def test_a_prompt_that_leaves_no_room_is_refused(tokenizer: Any) -> None:
    config = EncoderConfig(max_tokens=4, query_prompt="soalan yang panjang sekali: ")
    with pytest.raises(UserError, match=r"encoder\.query_prompt"):
        tokenise(tokenizer, TEXTS, config, "query")
    assert len(tokenise(tokenizer, TEXTS, config, "passage").ids) == 4


def test_a_tokenizer_without_fast_backend(tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizer

    class Letters(PreTrainedTokenizer):
        vocab_size = 200

        def get_vocab(self) -> dict[str, int]:
            return {chr(i): i for i in range(200)}

        def _tokenize(self, text: str, **_: Any) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return ord(token) % 200

        def _convert_id_to_token(self, index: int) -> str:
            return chr(index)

    letters = Letters()
    assert not letters.is_fast
    found = tokenise(letters, ["abc", "abcdefgh", "abcd"], EncoderConfig(max_tokens=4), "query")
    assert [len(row) for row in found.ids] == [3, 4, 4] and found.truncated == 1


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "last", "weighted_mean"])
def test_layouts_agree_in_vectors_and_gradients(world_folder: Path, bidirectional: bool, pooling: Any) -> None:
    config = EncoderConfig(max_tokens=48, pooling=pooling, projection=12, bidirectional=bidirectional)
    sequences = [[5, 6, 7], [8], [9, 10, 11, 12, 13], [14, 15, 16]]
    results = []
    for wanted in ("packed", "padded"):
        backbone = load_backbone(world_folder / "model", bidirectional=bidirectional, precision="fp32")
        layout = attention_layout(backbone, wanted)
        assert layout == wanted
        torch.manual_seed(3)
        module = make_encoder(backbone, config, layout=layout)
        vectors = module(pack(sequences, skip=[1, 0, 2, 0]))
        (vectors * torch.linspace(-1, 1, 12)).sum().backward()
        results.append((vectors, {n: p.grad for n, p in module.named_parameters()}))
    (packed, packed_grads), (padded, padded_grads) = results
    assert packed.shape == (4, 12) and packed.dtype == torch.float32
    torch.testing.assert_close(packed.norm(dim=1), torch.ones(4))
    torch.testing.assert_close(packed, padded, atol=1e-6, rtol=1e-5)
    for name, gradient in packed_grads.items():
        torch.testing.assert_close(gradient, padded_grads[name], atol=1e-5, rtol=1e-4, msg=name)


def test_more_tokens_than_learned_positions_are_refused() -> None:
    from transformers import RobertaConfig, RobertaModel

    shape = RobertaConfig(
        vocab_size=50, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        max_position_embeddings=34,
    )  # fmt: skip
    model = RobertaModel(shape, add_pooling_layer=False)
    with pytest.raises(UserError, match="32 learned positions"):  # RoBERTa spends two on the padding id and below
        make_encoder(model, EncoderConfig(max_tokens=33))
    attention_layout(model, "packed")
    module = make_encoder(model, EncoderConfig(max_tokens=32))
    assert module(pack([[5] * 32, [6]])).shape == (2, 8)


@pytest.fixture
def projected(world_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "finetune" / "model"
    shutil.copytree(world_folder / "model", folder)
    save_encoder_config(EncoderConfig(max_tokens=48, projection=12), folder)
    save_file({"weight": torch.randn(12, 32)}, folder / "projection.safetensors")
    return folder


def test_a_projection_is_read_or_missed(projected: Path) -> None:
    encoder = load_encoder(projected)
    assert encoder.embed(TEXTS, role="query").shape == (4, 12) == (4, encoder.dimension)
    assert encoder.truncated == 1
    with pytest.raises(UserError, match="not a weight of 13 rows"):
        load_encoder(projected, config=EncoderConfig(projection=13))
    (projected / "projection.safetensors").unlink()
    with pytest.raises(UserError, match="is missing"):
        load_encoder(projected)


def test_bf16_vectors_are_near(projected: Path) -> None:
    exact = TextEncoder(projected).embed(TEXTS, role="query")
    half = TextEncoder(projected, precision="bf16").embed(TEXTS, role="query")
    assert half.dtype == np.float32
    assert 0 < abs(exact - half).max() < 3e-2


def test_saving_leaves_training_as_it_was(projected: Path, tmp_path: Path) -> None:
    """Through a group of one: what is written loads again, and the model goes on packed."""
    import torch.distributed as dist

    from train.model_folder import save_encoder

    config = EncoderConfig(max_tokens=48, projection=12)
    backbone = load_backbone(projected, bidirectional=False, precision="fp32")
    torch.manual_seed(9)
    module = make_encoder(backbone, config, attention_layout(backbone, "packed"))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        save_encoder(None, module, tmp_path / "saved")  # type: ignore[arg-type]
    finally:
        dist.destroy_process_group()
    assert backbone.config._attn_implementation == "packed"
    for file in projected.glob("tok*"):
        shutil.copyfile(file, tmp_path / "saved" / file.name)
    save_encoder_config(config, tmp_path / "saved")
    encoder = load_encoder(tmp_path / "saved")
    tokens = tokenise(encoder._tokenizer, TEXTS, config, "query")
    with torch.no_grad():
        wanted = module.eval()(pack(tokens.ids)).numpy()
    np.testing.assert_allclose(encoder.embed(TEXTS, role="query"), wanted, atol=1e-6)


def test_the_head_that_is_left_out_is_counted(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 50,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    for tied, count in ((False, 50 * 8), (True, 0)):
        LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=tied)).save_pretrained(tmp_path / str(tied))
        assert unused_parameters(tmp_path / str(tied)) == (count, 16 * count)
    BertModel(BertConfig(**shape)).save_pretrained(tmp_path / "bert")
    assert unused_parameters(tmp_path / "bert").parameters == 8 * 8 + 8
    assert str(unused_parameters(tmp_path / "False")).startswith("output head left out: 0.0 M parameters")
    assert str(unused_parameters(tmp_path / "True")) == "no output head to leave out"


def test_a_head_left_behind_is_no_news_and_a_missing_tensor_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {
        "vocab_size": 50,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=False)).save_pretrained(tmp_path)
    capfd.readouterr()
    load_backbone(tmp_path, bidirectional=False, precision="fp32")
    assert "lm_head" not in "".join(capfd.readouterr())
    state = load_file(tmp_path / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 tensors .*norm\.weight"):
        load_backbone(tmp_path, bidirectional=False, precision="fp32")


def test_an_encoder_says_how_fast_it_was(projected: Path) -> None:
    encoder = load_encoder(projected)
    encoder.embed(["banjir di jalan", "nasi"], role="passage")
    encoder.embed(["hujan"], role="query")
    speed = encoder.speed()
    assert speed["sequences"] == 3 and speed["tokens"] > 3 and speed["tokens_per_s"] > 0 and speed["padding"] == 0
    assert "trunk_mfu" not in speed, "the peak of a CPU is not known"
