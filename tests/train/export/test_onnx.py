"""ONNX Runtime gives the training model's vectors, in batches and alone, at every length."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.progress import Progress
from train.encoder import EncoderConfig, save_encoder_config
from train.export import ExportConfig, export_model, onnx_file

TEXTS = ["banjir di jalan", "nasi lemak sedap", "harga rumah naik " * 40]


@pytest.fixture
def finetuned(world_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "finetune" / "model"
    shutil.copytree(world_folder / "model", folder)
    return folder


@pytest.mark.slow
def test_onnx_runtime_agrees(finetuned: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    save_encoder_config(
        EncoderConfig(max_tokens=48, bidirectional=True, projection=12, pooling="weighted_mean"), finetuned
    )
    save_file({"weight": torch.randn(12, 32)}, finetuned / "projection.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    export_model(ExportConfig(onnx=True), model=finetuned, texts=TEXTS, out=out, progress=Progress())
    found = read_json(out / "parity.json")["against"]
    assert found.keys() == {"sentence-transformers", "transformers", "onnx"}
    assert 0 < found["onnx"]["max_abs_difference"] < 1e-5
    assert [p.name for p in (out / "model" / "onnx").iterdir()] == ["model.onnx"]


def test_missing_packages_are_named_before_anything_is_written(
    finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_encoder_config(EncoderConfig(max_tokens=48), finetuned)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        onnx_file.importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find("json")
    )
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"needs the packages onnxruntime. Fix: pip install 'rumpun\[onnx\]'"):
        export_model(ExportConfig(onnx=True), model=finetuned, texts=TEXTS, out=out, progress=Progress())
    assert not list(out.iterdir())
