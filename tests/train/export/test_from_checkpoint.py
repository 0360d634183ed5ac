"""A checkpoint becomes the folder that transformers writes for the same model, whoever saved it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from data_prep.errors import UserError
from train.encoder import EncoderConfig, load_backbone, make_encoder, save_encoder_config
from train.export import checkpoint_to_model

SIZES: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64,
}  # fmt: skip


def same_files(one: Path, other: Path, names: tuple[str, ...]) -> None:
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


class Wrapped(torch.nn.Module):
    """What pretraining hands to its engine."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize(
    "encoder",
    [EncoderConfig(max_tokens=48), EncoderConfig(max_tokens=48, bidirectional=True, projection=12)],
    ids=["plain", "bidirectional projection"],
)
def test_an_encoder_is_the_folder_that_training_writes(
    world_folder: Path, tmp_path: Path, save_checkpoint: Callable[..., Path], ranks: int, encoder: EncoderConfig
) -> None:
    torch.manual_seed(3)
    module: Any = make_encoder(
        load_backbone(world_folder / "model", bidirectional=encoder.bidirectional, precision="fp32"), encoder
    )
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))  # the base's weights must not come out
    checkpoint = save_checkpoint(module, ranks=ranks)
    counts = checkpoint_to_model(checkpoint, world_folder / "model", _new(tmp_path / "out"), encoder=encoder)
    assert (counts["step"], counts["ranks"], counts["files"]) == (7, ranks, 1)

    wanted = tmp_path / "wanted"
    module.backbone.set_attn_implementation("sdpa")
    module.backbone.save_pretrained(wanted)
    save_encoder_config(encoder, wanted)
    same_files(tmp_path / "out", wanted, ("config.json", "model.safetensors", "encoder.json"))
    same_files(tmp_path / "out", world_folder / "model", ("tokenizer.json", "tokenizer_config.json"))
    if encoder.projection:
        found = load_file(tmp_path / "out" / "projection.safetensors")
        assert torch.equal(found["weight"], module.projection.weight)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_tied_head_is_saved_once_and_loads_tied(
    tmp_path: Path, save_checkpoint: Callable[..., Path], kind: str, tied: bool
) -> None:
    torch.manual_seed(4)
    model: Any = (
        LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied))
        if kind == "llama"
        else Qwen3ForCausalLM(Qwen3Config(**SIZES, tie_word_embeddings=tied))
    )
    base = tmp_path / "base"
    model.save_pretrained(base)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    checkpoint = save_checkpoint(Wrapped(model), ranks=2)
    out, wanted = _new(tmp_path / "out"), tmp_path / "wanted"
    checkpoint_to_model(checkpoint, base, out)
    model.save_pretrained(wanted)
    same_files(out, wanted, ("config.json", "generation_config.json", "model.safetensors"))
    assert ("lm_head.weight" in load_file(out / "model.safetensors")) is not tied
    loaded: Any = AutoModelForCausalLM.from_pretrained(out)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) is tied
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    ids = torch.arange(9)[None]
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_shards_load_with_every_weight_cast_once(
    tmp_path: Path, save_checkpoint: Callable[..., Path], dtype: Any
) -> None:
    torch.manual_seed(5)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    model.save_pretrained(tmp_path / "base")
    out = _new(tmp_path / "out")
    counts = checkpoint_to_model(
        save_checkpoint(Wrapped(model), ranks=3), tmp_path / "base", out, dtype=dtype, shard_gb=3e-6
    )
    files = sorted(out.glob("model-*.safetensors"))
    assert len(files) == counts["files"] > 2
    assert {file.name for file in files} == {
        f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)
    }
    kind = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    loaded, info = AutoModelForCausalLM.from_pretrained(out, dtype="auto", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.dtype == kind
    for (name, a), b in zip(loaded.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b.to(kind)), name


def test_a_damaged_checkpoint_is_refused(
    world_folder: Path, tmp_path: Path, save_checkpoint: Callable[..., Path]
) -> None:
    encoder = EncoderConfig(max_tokens=48)
    module = make_encoder(load_backbone(world_folder / "model", bidirectional=False, precision="fp32"), encoder)
    checkpoint = save_checkpoint(module, ranks=2)
    part = sorted(checkpoint.glob("state-*"))[1]
    good = part.read_bytes()
    part.write_bytes(good[:-3] + bytes([good[-3] ^ 1]) + good[-2:])
    with pytest.raises(UserError, match=r"state-0001.*its checksum differs"):
        checkpoint_to_model(checkpoint, world_folder / "model", _new(tmp_path / "out"), encoder=encoder)
    part.unlink()
    with pytest.raises(UserError, match=r"state-0001.*is missing"):
        checkpoint_to_model(checkpoint, world_folder / "model", _new(tmp_path / "out2"), encoder=encoder)
    shutil.rmtree(checkpoint)
    with pytest.raises(UserError, match=r"is damaged \(manifest.json is missing\)"):
        checkpoint_to_model(checkpoint, world_folder / "model", _new(tmp_path / "out3"), encoder=encoder)


def test_another_model_is_refused(world_folder: Path, tmp_path: Path, save_checkpoint: Callable[..., Path]) -> None:
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES))
    checkpoint = save_checkpoint(Wrapped(model))
    with pytest.raises(UserError, match="was saved from another model"):
        checkpoint_to_model(checkpoint, world_folder / "model", _new(tmp_path / "out"))
    assert not list((tmp_path / "out").iterdir())


def _new(folder: Path) -> Path:
    folder.mkdir()
    return folder
