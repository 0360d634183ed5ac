"""Repair: what it mends, and that the quick way for clean texts changes nothing."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from pathlib import Path

import ftfy
from ftfy.badness import is_bad
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus import repair
from data_prep.corpus.repair import text_cleaner

CLEAN = text_cleaner()
CONFIG = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, normalization="NFC", explain=False
)


def slow(text: str) -> str:
    """Every step for every text."""
    repaired = repair._INVISIBLE.sub("", ftfy.fix_text(text, CONFIG))
    return repair._LINE_EDGES.sub("\n", repair._SPACES.sub(" ", repaired)).strip()


def test_cleaning() -> None:
    assert (
        CLEAN("sekolah   rendah\t lama  \n\n  baris\u00a0dua\u200b\x07\r\ntiga")
        == "sekolah rendah lama\n\nbaris dua\ntiga"
    )
    assert CLEAN("dia kata â€œpergiâ€\x9d") == "dia kata “pergi”"  # mojibake of curly quotes
    assert CLEAN("e\u0301") == "é"
    assert CLEAN("你好，世界！ தமிழ் ‘ya’") == "你好，世界！ தமிழ் ‘ya’"
    assert CLEAN("kopi &amp; teh\u2028baris") == "kopi & teh\nbaris"
    CLEAN("rosak \ud83d sahaja").encode()  # a lone surrogate can be written


PIECES = [
    "a",
    "saya ",
    " ",
    "\t",
    "\n",
    "\r",
    "\x0b",
    "\x1b[31m",
    "&lt;",
    "&",
    "é",
    "e\u0301",
    "\u00a0",
    "\u2028",
    "\u3000",
    "â€œ",
    "Ã©",
    "“",
    "你",
    " த",
    "\ud83d",
    "😂",
    "\ufeff",
    "\u200b",
    "\x85",
    "\x00",
    "œ",
    "  ",
    "\u206a",
    "ﬁ",
    "\ufffc",
]


@settings(max_examples=1500, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PIECES), st.characters()), max_size=12).map("".join))
def test_the_quick_way_is_the_same(text: str) -> None:
    assert CLEAN(text) == slow(text)
    assert CLEAN(CLEAN(text)) == CLEAN(slow(text))


def test_usual_punctuation_never_looks_like_mojibake() -> None:
    for length in range(1, 5):
        for text in map("".join, itertools.product("‘’“”–—…•aA1 .$", repeat=length)):
            assert not is_bad(text)


def test_the_quick_way_is_the_same_on_real_text(shared_data: Path) -> None:
    chance = random.Random(0)
    for path in sorted((shared_data / "corpora").glob("*.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            texts = [json.loads(line)["text"] for line, _ in zip(stream, range(3000), strict=False)]
        for text in chance.sample(texts, min(150, len(texts))):
            assert CLEAN(text) == slow(text)
            broken = text.encode().decode("windows-1252", "replace")
            assert CLEAN(broken) == slow(broken)
