"""Groups of queries: what they are called, what is in them, and that their means are those of their queries."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from eval import breakdown
from eval.breakdown import PASSAGE_WORDS, QUERY_WORDS, bucket, buckets, group_rows, labels, language_of, word_count
from eval.relevance import judge
from tests.eval.test_relevance import TASK


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 0),
        ("  Berapa harga, minyak?\n", 3),
        ("马来西亚", 4),
        ("harga 马来", 3),
        ("ราคาน้ำมัน", 2),  # ten characters, vowel signs counted
        ("ราคา น้ำมัน oil", 4),
        ("விலை என்ன", 2),
    ],
)
def test_words_are_counted(text: str, words: int) -> None:
    assert word_count(text) == words


def test_buckets_cover_every_length() -> None:
    assert buckets(QUERY_WORDS) == ["0-4 words", "5-9 words", "10-19 words", "20-49 words", "50+ words"]
    assert buckets(PASSAGE_WORDS)[0] == "0-24 words" and buckets(PASSAGE_WORDS)[-1] == "250+ words"
    assert [bucket(n, QUERY_WORDS) for n in (4, 5, 9, 10, 50, 900)] == [
        "0-4 words", "5-9 words", "5-9 words", "10-19 words", "50+ words", "50+ words",
    ]  # fmt: skip


def test_what_the_set_says_goes_before_what_is_detected() -> None:
    queries = ["Berapakah harga minyak masak di pasar sekarang", "How much does cooking oil cost today", "x"]
    task = dataclasses.replace(TASK, queries=queries, languages=[None, "en-MY", None], sources=["forum", None, None])
    found = labels(judge(task))
    assert found["language"][:2] == ["ms", "en"]
    assert found["source"] == ["forum", None, None]
    assert found["length"] == ["5-9 words", "5-9 words", "0-4 words"]
    assert found["passage_length"] == ["25-99 words", "0-24 words", "25-99 words"]


@pytest.mark.parametrize(
    ("text", "given", "language"),
    [
        ("ราคาน้ำมันวันนี้เท่าไหร่", None, "th"),
        ("ராசி பலன் இன்று", None, "ta"),
        ("?!", None, "und"),
        ("ສະບາຍດີ", None, "und"),
        ("Berapakah harga minyak masak sekarang", "zsm_Latn", "ms"),
        ("Berapakah harga minyak masak sekarang", " iba ", "iba"),
    ],
)
def test_languages_are_given_or_detected(text: str, given: str | None, language: str) -> None:
    assert language_of(text, given) == language


def test_groups_pool_the_queries_of_all_sets() -> None:
    rng = np.random.default_rng(0)
    values = {(s, t): rng.random((n, 2)) for s in ("a", "b") for t, n in (("x", 5), ("y", 3))}
    told = {
        "x": {by: ["ms", "ms", "id", None, "ms"] for by in breakdown.BY if by in ("language", "source")},
        "y": {by: ["id", "ms", "en"] for by in breakdown.BY if by in ("language", "source")},
    }
    for task, count in (("x", 5), ("y", 3)):
        told[task] |= {"length": ["50+ words", *["0-4 words"] * (count - 1)], "passage_length": [None] * count}
    rows = group_rows(["a", "b"], values, told, names=["m", "n"], samples=200, seed=1)
    assert [(r["by"], r["group"], r["queries"]) for r in rows if r["system"] == "a"] == [
        ("language", "ms", 4), ("language", "id", 2), ("language", "en", 1),
        ("length", "0-4 words", 6), ("length", "50+ words", 2),
        ("source", "ms", 4), ("source", "id", 2), ("source", "en", 1),
    ]  # fmt: skip
    malay = next(r for r in rows if r["system"] == "b" and r["group"] == "ms" and r["by"] == "language")["metrics"]
    expected = np.concatenate([values["b", "x"][[0, 1, 4]], values["b", "y"][[1]]])
    assert malay["n"]["mean"] == pytest.approx(expected[:, 1].mean(), abs=1e-6)
    assert expected[:, 1].min() <= malay["n"]["low"] <= malay["n"]["mean"] <= malay["n"]["high"]
