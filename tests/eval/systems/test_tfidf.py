"""TF-IDF against its formula, in scripts with and without spaces, and where there is nothing to find."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.evaluation_sets import load_set
from eval.metrics import per_query
from eval.systems.tfidf import TfidfRanker


def grams(text: str) -> list[str]:
    """Character 3- to 5-grams inside words, each word with a space before and after it."""
    found = []
    for word in text.lower().split():
        padded = f" {word} "
        for size in (3, 4, 5):
            found += [padded[i : i + size] for i in range(max(1, len(padded) - size + 1))]
            if len(padded) <= size:
                break  # a short word is one term
    return found


def naive(documents: list[list[str]], query: list[str]) -> list[float]:
    """Cosines by the textbook: (1 + ln tf) · (1 + ln((1 + n) / (1 + df)))."""
    idf = {
        term: 1 + math.log((1 + len(documents)) / (1 + sum(term in d for d in documents)))
        for term in {t for d in documents for t in d}
    }

    def vector(terms: list[str]) -> dict[str, float]:
        weights = {t: (1 + math.log(n)) * idf[t] for t, n in Counter(terms).items() if t in idf}
        norm = math.sqrt(sum(w * w for w in weights.values())) or 1.0
        return {t: w / norm for t, w in weights.items()}

    asked = vector(query)
    return [sum(w * asked.get(t, 0.0) for t, w in vector(document).items()) for document in documents]


@pytest.fixture(scope="module")
def texts() -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    words = [f"{stem}{end}" for stem in ("hujan", "padi", "ikan", "guru") for end in ("", "an", "kan", "ku")]
    documents = [" ".join(rng.choice(words, size=int(rng.integers(3, 20)))) for _ in range(40)]
    return documents, [" ".join(rng.choice(words, size=4)) for _ in range(70)]  # more than a block of queries


@pytest.mark.parametrize("terms", ["word", "char", "both"])
def test_it_equals_its_formula(texts: tuple[list[str], list[str]], terms: str) -> None:
    documents, queries = texts
    indices, scores = TfidfRanker(terms).rank(documents, queries, len(documents))  # type: ignore[arg-type]
    for row, query in enumerate(queries):
        by_word = np.array(naive([d.split() for d in documents], query.split()))
        by_char = np.array(naive([grams(d) for d in documents], grams(query)))
        expected = {"word": by_word, "char": by_char, "both": (by_word + by_char) / 2}[terms]
        np.testing.assert_allclose(scores[row], expected[indices[row]], atol=1e-6)
        assert sorted(indices[row].tolist()) == list(range(len(documents)))
        assert (np.diff(scores[row]) <= 0).all()


def test_spelling_is_forgiven_by_characters_and_not_by_words() -> None:
    documents = ["kerajaan memberi bantuan", "harga ikan di pasar", "guru sekolah rendah"]
    assert TfidfRanker("char").rank(documents, ["bntuan krajaan"], 1)[0].tolist() == [[0]]
    assert not TfidfRanker("word").rank(documents, ["bntuan krajaan"], 3)[1].any()


def test_scripts_without_spaces_are_found() -> None:
    documents = ["ภาษาไทย", "我们走了", "nasi lemak"]
    for terms in ("word", "char", "both"):
        found = TfidfRanker(terms).rank(documents, ["ภาษา", "我们走"], 1)[0]  # type: ignore[arg-type]
        assert found.tolist() == [[0], [1]], terms


def test_ties_and_nothing_to_find() -> None:
    indices, scores = TfidfRanker().rank(["satu dua", "tiga", "satu dua"], ["satu", "zzz", ""], 3)
    assert indices.tolist() == [[0, 2, 1], [0, 1, 2], [0, 1, 2]]
    assert scores[0, 0] == scores[0, 1] and not scores[1:].any()
    assert TfidfRanker().rank(["", "…"], ["apa"], 5)[0].tolist() == [[0, 1]]
    assert TfidfRanker("word").rank(["…", "!!"], ["apa"], 5)[0].tolist() == [[0, 1]]


def test_on_real_text_it_is_a_fair_baseline(shared_data: Path) -> None:
    task = load_set(shared_data / "eval_dev" / "research_title_abstract")
    position = {d: i for i, d in enumerate(task.document_ids)}
    relevant = [{position[d] for d in task.relevant["all"][q]} for q in task.query_ids]
    ranked, _ = TfidfRanker().rank(task.documents, task.queries, 10)
    assert per_query(ranked, relevant, ks=[10]).mean(axis=0)[0] > 0.9
