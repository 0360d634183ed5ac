"""What goes up and what stays: by kind, by place, by content; and when a folder counts as the trained model."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from data_prep.errors import UserError
from tests.train.hub.fake_hub import TOKEN
from tests.train.hub.model_lab import write_model
from train.hub.files import list_files, parity_trouble, read_file, text_file


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "export" / "model")


def reasons(model: Path) -> dict[str, str]:
    return dict(list_files(model).refused)


def test_digests_are_those_of_sha256_and_git(model: Path) -> None:
    for file in list_files(model).files:
        assert file.path is not None
        data = file.path.read_bytes()
        assert (file.size, file.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        git = subprocess.run(["git", "hash-object", "--no-filters", file.path], capture_output=True, text=True)
        assert git.returncode != 0 or file.blob_id == git.stdout.strip()
    note = text_file("NOTICE", "é\n")
    (model / "note").write_bytes("é\n".encode())
    read = read_file(model / "note", "note")
    assert (note.size, note.sha256, note.blob_id) == (read.size, read.sha256, read.blob_id)


def test_only_kinds_that_nobody_must_trust_go_up(model: Path) -> None:
    whole = {file.name for file in list_files(model).files}
    stay = ("pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl", "modeling_own.py", "run.sh", "data.parquet")
    states = ("optimizer.safetensors", "trainer_state.json", "training_args.json", "rng_state_0.json", "stage.json")
    for name in (*stay, *states, ".env", "README.md"):
        (model / name).write_bytes(b"x")
    (model / ".cache").mkdir()
    (model / ".cache" / "config.json").write_text("{}")
    (model / "\x1b[31m.json").write_text("{}")
    for name in ("LICENSE", "USE_POLICY.md", "vocab.txt", "chat_template.jinja", "model.onnx"):
        (model / name).write_text("x")
    listing = list_files(model)
    added = {"LICENSE", "USE_POLICY.md", "vocab.txt", "chat_template.jinja", "model.onnx"}
    assert {file.name for file in listing.files} == whole | added
    assert {name for name, _ in listing.refused} == {*stay, *states, "\x1b[31m.json", ".env", "README.md", ".cache/"}


def test_links_that_lead_out_stay(model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (model / "out.json").symlink_to(tmp_path / "secret.json")
    (model / "up.json").symlink_to("../parity.json")
    (model / "gone.json").symlink_to("nowhere.json")
    (model / "round.json").symlink_to("round.json")
    (model / "dir").symlink_to(tmp_path / "folder")
    (model / "same.json").symlink_to("config.json")
    os.mkfifo(model / "pipe.json")
    why = reasons(model)
    assert set(why) == {"out.json", "up.json", "gone.json", "round.json", "dir", "pipe.json"}
    assert "leads out" in why["out.json"]
    assert "same.json" in {file.name for file in list_files(model).files}


def test_a_snapshot_of_links_is_named_as_such(model: Path, tmp_path: Path) -> None:
    for path in [p for p in model.iterdir() if p.is_file() and p.name != "modules.json"]:
        path.rename(tmp_path / f"blob-{path.name}")
        path.symlink_to(tmp_path / f"blob-{path.name}")
    with pytest.raises(UserError, match="its files are links that lead out of it"):
        list_files(model)


def test_optimizer_state_in_safetensors_stays(model: Path) -> None:
    save_file({"exp_avg.embed.weight": np.zeros(4, dtype="float32")}, model / "extra.safetensors")
    assert "optimizer state" in reasons(model)["extra.safetensors"]


@pytest.mark.parametrize("content", [b"", b"\x80\x04pickle", b"\xff" * 8, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_safetensors_is_refused(model: Path, content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        list_files(model)


def test_weights_that_are_cut_off_or_missing_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        list_files(model)
    weights.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        list_files(model)
    save_file({"a": np.zeros(4, dtype="float32")}, model / "model-00001-of-00002.safetensors")
    parts = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    with pytest.raises(UserError, match=r"lacks model-00002-of-00002.safetensors, named in"):
        list_files(model)


def test_a_token_in_a_file_is_found(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"auth": "hf_" + "a1" * 17}))
    with pytest.raises(UserError, match=r"config.json: holds an access token"):
        list_files(model)
    (model / "config.json").write_text("{}")
    (model / "tokenizer.json").write_text(TOKEN)
    with pytest.raises(UserError, match=r"tokenizer\.json") as caught:
        list_files(model, secret=TOKEN)
    assert TOKEN not in str(caught.value)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no embedding model"):
        list_files(tmp_path)


def test_parity_counts_only_where_it_is_proven(run: Path) -> None:
    model = run / "export" / "model"
    files = list_files(model).files
    proof = run / "export" / "parity.json"
    assert parity_trouble(model, files) is None
    good = json.loads(proof.read_text())
    for bad in ({"max_abs_difference": 1e-3}, {"max_abs_difference": float("nan")}, {"tolerance": None}):
        proof.write_text(json.dumps(good | bad))
        assert "tells of a difference" in (parity_trouble(model, files) or "")
    half = good | {"dtype": "bf16", "max_abs_difference": 3e-3, "min_cosine": 0.999}
    for cosine, fine in ((0.9999, True), (0.99, False), (float("nan"), False), (None, False)):
        proof.write_text(json.dumps(half | {"against": {"transformers": {"min_cosine": cosine}}}))
        assert (parity_trouble(model, files) is None) is fine, cosine
    proof.write_text(json.dumps(half))
    assert "compares nothing" in (parity_trouble(model, files) or "")
    proof.unlink()
    assert "no parity.json" in (parity_trouble(model, files) or "")
    proof.write_text(json.dumps(good))
    (model / "config.json").write_text('{"hidden_size": 8}')
    assert "config.json was changed after the export" in (parity_trouble(model, list_files(model).files) or "")
