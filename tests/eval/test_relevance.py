"""Near copies against the definition, pair by pair; what the judgements say and what is added to them."""

from __future__ import annotations

import dataclasses
import random

import pytest

from data_prep.corpus.signatures import NearConfig
from data_prep.corpus.words import words_of
from data_prep.evaluation_sets import EvaluationSet, SetFacts
from eval.relevance import judge, near_copies


def shingles(text: str, size: int) -> set[tuple[str, ...]]:
    """Runs of words, as text and not as hashes."""
    found = words_of(text)
    words = [found.shown(i, i + 1) for i in range(len(found.hashes))]
    width = min(size, len(words))
    return {tuple(words[i : i + width]) for i in range(len(words) - width + 1)} if words else set()


@pytest.mark.parametrize(("threshold", "size"), [(0.8, 3), (0.5, 2), (0.8, 1), (1.0, 3)])
def test_near_copies_equal_the_definition(threshold: float, size: int) -> None:
    """Texts of a few words each of which many share, copied with edits: similarities on both sides of the threshold."""
    rng = random.Random(f"{threshold} {size}")
    texts: list[str] = []
    for _ in range(20):
        words = [f"w{rng.randrange(30)}" for _ in range(rng.randrange(1, 40))]
        texts.append(" ".join(words))
        for _ in range(3):
            edited = list(words)
            for _ in range(rng.randrange(4)):
                edited[rng.randrange(len(edited))] = f"w{rng.randrange(30)}"
            texts.append(" ".join(edited).upper())
    config = NearConfig(threshold=threshold, shingle_words=size)
    found = near_copies(range(len(texts)), texts, config)
    runs = [shingles(text, size) for text in texts]
    expected = {
        i: {j for j, b in enumerate(runs) if j != i and len(a & b) >= threshold * len(a | b) - 1e-12}
        for i, a in enumerate(runs)
    }
    assert found == expected
    assert 10 < sum(map(len, expected.values())) < len(texts) * (len(texts) - 1)
    assert near_copies([3, 7], texts, config) == {3: expected[3], 7: expected[7]}


def test_texts_without_words_are_copies_of_the_same_text_only() -> None:
    assert near_copies([0, 2], ["!!", "a b c", "", "??", "!!", " "]) == {0: {4}, 2: {5}}
    assert near_copies([], []) == {}


TEXT = " ".join(f"kata{i}" for i in range(60))
TASK = EvaluationSet(
    name="s",
    document_ids=["a", "b", "c", "d", "e"],
    documents=[TEXT, TEXT.upper(), TEXT.replace("kata30", "lain"), "sesuatu yang lain sama sekali", TEXT + " x"],
    query_ids=["q0", "q1", "q2"],
    queries=["satu", "dua", "tiga"],
    relevant={"all": {"q0": {"a"}, "q1": {"d"}, "q2": {"a", "b"}}, "hard": {"q1": {"d"}, "q0": {"c"}}},
    irrelevant={"q2": {"e"}},
)


def test_judgements_as_they_stand() -> None:
    judged = judge(TASK)
    assert judged.rows == {"all": [0, 1, 2], "hard": [0, 1]}
    assert judged.relevant == {"all": [{0}, {3}, {0, 1}], "hard": [{2}, {3}]}
    assert judged.added == {"all": 0, "hard": 0}


def test_near_copies_are_added_where_the_set_asks_but_not_against_a_judgement() -> None:
    judged = judge(dataclasses.replace(TASK, facts=SetFacts(near_duplicates=True)))
    assert judged.relevant == {"all": [{0, 1, 2, 4}, {3}, {0, 1, 2}], "hard": [{0, 1, 2, 4}, {3}]}
    assert judged.added == {"all": 3 + 0 + 1, "hard": 3}
    assert TASK.relevant["all"]["q0"] == {"a"}  # the set itself is as it was
