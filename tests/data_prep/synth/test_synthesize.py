from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.progress import Progress
from data_prep.shards import Shards
from data_prep.synth.rules import cloze, contains, cut_words, keywords, split_document
from data_prep.synth.synthesize import SynthConfig, synthesize_pairs

ARTICLE = (
    "Khasiat daun ketum\nDaun ini tumbuh liar di utara semenanjung. Orang kampung merebusnya untuk demam.\n"
    "Kajian baharu mendapati kesan sampingan yang berat. Penggunaannya dikawal undang-undang."
)
QUESTION = (
    "Soal jawab cukai\nSoalan: Bilakah tarikh akhir borang cukai?\n"
    "Jawapan: Borang dihantar sebelum 30 April setiap tahun melalui laman web.\nDenda dikenakan selepas itu."
)


def _make(folder: Path, name: str = "synth", *, seed: int = 0, **config: Any) -> dict[str, int | float]:
    return synthesize_pairs(
        SynthConfig(**config), documents=folder / "documents", out=folder / name, seed=seed, progress=Progress()
    )


def test_split_a_question() -> None:
    parts = split_document(QUESTION)
    assert parts.title == "Soal jawab cukai" and parts.questions == ("Bilakah tarikh akhir borang cukai?",)
    assert (
        parts.body == "Borang dihantar sebelum 30 April setiap tahun melalui laman web.\nDenda dikenakan selepas itu."
    )


@pytest.mark.parametrize(
    ("line", "question"),
    [
        ("Soalan: apa?", "apa?"),
        ("SOALAN 12 : apa?", "apa?"),
        ("- Tanya: apa?", "apa?"),
        ("Q: what?", "what?"),
        ("Question:\n\nwhat?", "what?"),
        ("Soalannya mudah: apa?", None),
        ("Qatar: negara kecil", None),
    ],
)
def test_question_lines(line: str, question: str | None) -> None:
    parts = split_document(f"{line}\nJawab: begini dan begitu.")
    assert parts.questions == ((question,) if question else ())
    assert parts.body.endswith("begini dan begitu.")


@pytest.mark.parametrize(
    ("first", "is_title"),
    [
        ("Khasiat daun", True),
        (" ".join(["kata"] * 20), True),
        (" ".join(["kata"] * 21), False),
        ("(b) bagi maksud ini", False),
        ("3. Akta ini", False),
        ("dan, jika perlu,", False),
        ("2021 tahun mencabar", True),
    ],
)
def test_titles(first: str, is_title: bool) -> None:
    parts = split_document(f"{first}\nTeks di bawah.\n{first.upper()}\nTeks lagi.")
    assert (parts.title == first) is is_title
    if is_title:
        assert parts.body == "Teks di bawah.\nTeks lagi."  # a repeated title is gone as well
    assert split_document(first).title is None  # a single line is no title


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.booleans(), st.integers(0, 999))
def test_cloze_takes_one_sentence_and_leaves_the_rest(lengths: list[int], lines: bool, seed: int) -> None:
    sentences = [" ".join(f"s{n}w{i}" for i in range(size)) + "." for n, size in enumerate(lengths)]
    body = ("\n" if lines else " ").join(sentences)
    made = cloze(body, np.random.default_rng(seed), min_words=3, max_words=7)
    fitting = [s for s in sentences if 3 <= len(s.split()) <= 7]
    if len(sentences) < 2 or not fitting:
        assert made is None
    else:
        assert made is not None and made[0] in fitting
        rest = [s for s in sentences if s != made[0]]
        assert made[1].split() == " ".join(rest).split()
        assert ("\n" in made[1]) is (lines and len(rest) > 1)


def test_keywords_are_the_rarest_in_order() -> None:
    frequency = {"kereta": 50, "api": 40, "ekspres": 3, "padang": 2, "besar": 30, "salah": 1, "2021": 2}
    assert keywords("Kereta api ekspres ke Padang Besar 2021 salah", frequency, count=3) == "ekspres padang besar"
    assert keywords("kereta api", frequency, count=3) is None


def test_small_helpers() -> None:
    assert cut_words("satu dua\ntiga  empat", 3) == "satu dua\ntiga" and cut_words("satu", 3) == "satu"
    assert contains("Ini  Tajuk\nBesar sekali", "tajuk besar") and not contains("Ini tajuk", "tajuk besar")


def test_pairs_of_every_style(tmp_path: Path, write_documents: Any) -> None:
    extra = [ARTICLE.replace("ketum", f"ketum{n}").replace("demam", f"demam{n}") for n in range(3)]
    write_documents(tmp_path / "documents", [ARTICLE, QUESTION, *extra])
    styles = ["question", "title", "cloze", "keywords"]
    counts = _make(tmp_path, styles=styles, cloze_share=1.0, keywords_share=1.0, max_pairs_per_document=4)
    rows = list(Shards(tmp_path / "synth", "pairs"))
    assert counts["pairs"] == len(rows) == sum(counts[style] for style in styles)
    assert all(counts[style] for style in styles) and counts["documents"] == 5
    by_query = {row["query"]: row for row in rows}
    answer = by_query["Bilakah tarikh akhir borang cukai?"]
    assert answer["source"] == "synth:question" and answer["positives"][0].startswith("Borang dihantar")
    assert by_query["Khasiat daun ketum"]["positives"] == [ARTICLE.partition("\n")[2]]
    for row in rows:
        assert row["negatives"] == [] and len(row["positives"]) == 1 and row["language"] == "ms"
        assert not contains(row["positives"][0], row["query"])


def test_limits(tmp_path: Path, write_documents: Any, topics: Any) -> None:
    write_documents(tmp_path / "documents", topics(40))
    counts = _make(tmp_path, styles=["title", "cloze"], cloze_share=1.0, max_pairs_per_document=1, max_passage_words=12)
    rows = list(Shards(tmp_path / "synth", "pairs"))
    assert counts["pairs"] == counts["title"] == len({row["query"] for row in rows}) == 40
    assert all(len(row["positives"][0].split()) <= 12 for row in rows)
    none = _make(tmp_path, "half", styles=["title", "cloze"], title_share=0.5, cloze_share=0.0)
    assert 8 < none["title"] < 32 and none["cloze"] == 0
    assert none["documents_without_pair"] == 40 - none["pairs"]
    assert _make(tmp_path, "few", styles=["title"], max_documents=7)["documents"] == 7


def test_a_heading_that_many_documents_share_is_no_title(tmp_path: Path, write_documents: Any, topics: Any) -> None:
    bodies = [text.partition("\n")[2] for text in topics(10)]
    headed = [f"Pengenalan umum\n{body}" for body in bodies[:5]]
    write_documents(tmp_path / "documents", [*headed, *(f"Tajuk {n} sendiri\n{b}" for n, b in enumerate(bodies[5:]))])
    counts = _make(tmp_path, styles=["title"])
    assert counts["refused_common_title"] == 5 and counts["title"] == 5


def test_seed_and_place(tmp_path: Path, write_documents: Any, topics: Any) -> None:
    texts = topics(30)
    write_documents(tmp_path / "documents", texts)
    write_documents(tmp_path / "other" / "documents", texts[::-1])
    for folder, name, seed in (
        (tmp_path, "a", 0),
        (tmp_path, "b", 0),
        (tmp_path, "c", 1),
        (tmp_path / "other", "a", 0),
    ):
        _make(folder, name, seed=seed, styles=["cloze"])
    a, b, c = (list(Shards(tmp_path / n, "pairs")) for n in "abc")
    assert a == b != c
    reversed_rows = list(Shards(tmp_path / "other" / "a", "pairs"))
    assert sorted(r["query_id"] for r in a) == sorted(r["query_id"] for r in reversed_rows)


def test_no_pair_is_an_error(tmp_path: Path, write_documents: Any) -> None:
    write_documents(tmp_path / "documents", ["Satu baris sahaja tanpa tajuk"])
    with pytest.raises(UserError, match=r"synth.styles = .*finds no pair in 1 documents"):
        _make(tmp_path)
    assert not (tmp_path / "synth" / "manifest.json").exists()


@pytest.mark.parametrize(
    "bad",
    [
        {"styles": ["poem"]},
        {"styles": []},
        {"styles": ["title", "title"]},
        {"title_share": -0.1},
        {"max_pairs_per_document": -1},
        {"min_query_words": 0},
    ],
)
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SynthConfig(**bad)
