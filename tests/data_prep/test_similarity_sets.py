"""Files of sentence pairs: read whole, refused where a line is no pair, and kept out of training as sets are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from data_prep.corpus.decontaminate import Gate
from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.similarity_sets import find_similarity_sets, load_similarity_set

PAIRS: list[dict[str, Any]] = [
    {"sentence1": "Harga minyak naik lima sen esok pagi", "sentence2": "Minyak naik lima sen mulai esok", "score": 0.9},
    {"sentence1": "Kucing tidur di atas meja", "sentence2": "Hujan lebat di utara", "score": 0},
    {"sentence1": "Dia pergi ke pasar", "sentence2": "Dia ke pasar", "score": 0.8, "id": 3},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_load_and_find(tmp_path: Path) -> None:
    packed, plain = write(tmp_path / "sts_a.jsonl.gz", PAIRS), write(tmp_path / "sts_b.jsonl", PAIRS)
    (tmp_path / "sts_c.txt").write_text("x")
    assert find_similarity_sets([str(tmp_path / "*"), str(plain)]) == [packed, plain]
    loaded = load_similarity_set(packed)
    assert (loaded.name, loaded.scores) == ("sts_a", [0.9, 0.0, 0.8])
    assert (loaded.first[1], loaded.second[1]) == ("Kucing tidur di atas meja", "Hujan lebat di utara")
    with pytest.raises(UserError, match=r"eval\.sts = .*matches no file"):
        find_similarity_sets([str(tmp_path / "none*")])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"sentence2": " "}, r"line 2: sentence2 is empty"),
        ({"sentence1": None}, r"line 2: 'sentence1' is a NoneType"),
        ({"score": "0.5"}, r"line 2: its score is '0\.5', which is no number"),
        ({"score": float("nan")}, r"line 2: its score is nan"),
        ({"score": True}, r"line 2: its score is True"),
    ],
)
def test_a_line_that_is_no_pair_is_refused(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    path = write(tmp_path / "x.jsonl", [PAIRS[0], {**PAIRS[1], **change}, PAIRS[2]])
    with pytest.raises(UserError, match=says):
        load_similarity_set(path)


def test_what_no_correlation_can_be_taken_of_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 2 pairs: no correlation"):
        load_similarity_set(write(tmp_path / "x.jsonl", PAIRS[:2]))
    with pytest.raises(UserError, match="has one score on all its pairs"):
        load_similarity_set(write(tmp_path / "y.jsonl", [{**pair, "score": 1} for pair in PAIRS]))
    missing = [{k: v for k, v in pair.items() if k != "score"} for pair in PAIRS]
    with pytest.raises(UserError, match="line 1: its score is missing"):
        load_similarity_set(write(tmp_path / "z.jsonl", missing))


def test_both_sentences_are_kept_out_of_training(tmp_path: Path) -> None:
    path = write(tmp_path / "sts_a.jsonl", PAIRS)
    assert len(load_set(path).queries) == len(load_set(path).documents) == 3
    gate = Gate([path])
    for text in ("HARGA minyak naik lima sen esok pagi!", "minyak naik lima sen mulai esok"):
        found = gate.find(text)
        assert found is not None and found.set == "sts_a"
    assert gate.find("Sesuatu yang lain sama sekali ditulis di sini") is None
