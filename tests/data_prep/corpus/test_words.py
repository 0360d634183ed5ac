from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus.word_kernels import grams
from data_prep.corpus.words import words_of


def cut(text: str) -> list[str]:
    words = words_of(text)
    return [words.normal[a:b] for a, b in zip(words.starts, words.ends, strict=True)]


@pytest.mark.parametrize(
    "text,expected",
    [
        ("", []),
        ("  \n\t", []),
        ("😂😂!?", []),
        ("Harga-minyak  NAIK\n5 sen.", ["harga", "minyak", "naik", "5", "sen"]),
        ("ｈａｒｇａ　ﬁve", ["harga", "five"]),
        ("我们爱你 ok", ["我", "们", "爱", "你", "ok"]),
        ("வணக்கம் நண்பர்களே", ["வணக்கம்", "நண்பர்களே"]),  # vowel signs belong to their word
        ("a\u200bb\u00adc", ["a\u200bb\u00adc"]),
        ("x\ud800y", ["x", "y"]),
    ],
)
def test_words_are_cut_as_people_read_them(text: str, expected: list[str]) -> None:
    assert cut(text) == expected


@pytest.mark.parametrize(
    "first,second",
    [("Harga minyak", "harga, MINYAK!"), ("a\u200bb", "ab"), ("ｈarga", "harga"), ("cafe\u0301", "caf\u00e9")],
)
def test_what_carries_no_meaning_does_not_count(first: str, second: str) -> None:
    assert np.array_equal(words_of(first).hashes, words_of(second).hashes)
    assert words_of(first).letters == words_of(second).letters != 0


def test_letters_do_not_see_spaces() -> None:
    assert words_of("ke tua").letters == words_of("ketua").letters
    assert words_of("ke tua").letters != words_of("tua ke").letters
    assert words_of("!!").letters == 0


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abcABC é我ங்12 \n.,-_😂\u200b", max_size=40))
def test_equal_words_have_equal_hashes_and_others_do_not(text: str) -> None:
    words = words_of(text)
    visible = [w.replace("\u200b", "") for w in cut(text)]
    by_hash = dict(zip(words.hashes.tolist(), visible, strict=True))
    assert [by_hash[h] for h in words.hashes.tolist()] == visible
    assert len(by_hash) == len(set(visible))


def test_grams_are_those_of_each_run() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 40, np.uint64)
    hashes[20:33] = hashes[2:15]
    runs = grams(hashes, 13)
    assert len(runs) == 28 and len(set(runs.tolist())) == 27
    assert runs[20] == runs[2]
    for i in (0, 7, 27):
        assert grams(hashes[i : i + 13], 13)[0] == runs[i]
    assert len(grams(hashes, 41)) == 0 and len(grams(hashes, 40)) == 1


def test_hashes_are_the_same_in_every_process() -> None:
    assert [hex(h) for h in words_of("Harga 我").hashes.tolist()] == ["0x95821d7a4ca7a6ef", "0x1a93c96761fa4b0"]
