"""Whatever JSON a row holds, it is parsed or refused: nothing else may come out of a mistyped file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from data_prep.pairs.files import PairsConfig, import_pairs
from data_prep.pairs.formats import FORMATS, Candidate, Refused, parse
from data_prep.progress import Progress
from data_prep.shards import Shards

COLUMNS = (
    "query", "anchor", "question", "sentence1", "sentence2", "left", "ms", "en", "set", "answer", "answers", "pos",
    "positive", "positives", "positive_2", "neg", "negative", "negatives", "negative_1", "negative_x", "score", "scores",
    "pos_scores", "neg_scores", "positive_scores", "negative_scores", "label", "labels", "source", "lang", "language",
    "query_document", "positive_documents", "negative_documents", "prompt", "", "id",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 10**400, 0.5, 1e308, float("nan"), float("inf"), "", "teks", "[", "[]", '["a", "b"]',
    "['a', 'b']", "[1, 2]", "[1e999]", "0.5", "nan", "1" * 5000, "[" * 3000, [], ["a"], ["a", "b"], [1, 0], [None],
    [["a"]], [10**400], ["a", 3], {}, {"a": 1}, b"\xff", "\ud800", "teks " * 100,
)  # fmt: skip


def _value(rng: random.Random) -> Any:
    return rng.choice(VALUES)


@pytest.mark.parametrize("typed", [True, False])
def test_rows_of_any_content(typed: bool) -> None:
    rng = random.Random(5)
    parsed = refused = 0
    for number in range(20_000):
        if number % 10 == 0:
            row: Any = _value(rng) if number % 20 else [_value(rng) for _ in range(rng.randrange(4))]
        else:
            row = {name: _value(rng) for name in rng.sample(COLUMNS, rng.randrange(1, 7))}
            if number % 2:
                row |= {"query": "soalan", "pos": rng.choice((["a", "b"], "a"))}
        try:
            found, candidates = parse(row, rng.choice((None, None, *FORMATS)), typed=typed)
            for candidate in candidates:
                _check(candidate)
            assert found in FORMATS
            parsed += 1
        except Refused as error:
            assert error.reason.isidentifier()
            assert str(error)
            refused += 1
    assert min(parsed, refused) > 1000


def test_halves_of_surrogates_reach_no_file(tmp_path: Path) -> None:
    row = (
        '{"query": "so\\ud800alan", "pos": ["jawab\\udfff"], "source": "s\\ud800", "lang": "\\ud800", '
        '"query_document": "d\\ud800", "positive_documents": ["d\\udc00"]}'
    )
    (tmp_path / "p.jsonl").write_text(row + '\n{"\\ud800": 1}\n{"query": "\\ud800", "pos": []}\n')
    config = PairsConfig(files=[str(tmp_path / "p.jsonl")], max_refused_share=1.0)
    counts = import_pairs(config, evaluation_sets=[], out=tmp_path / "o", progress=Progress())
    assert (counts["kept"], counts["refused_unknown_columns"]) == (1, 1)
    assert next(iter(Shards(tmp_path / "o", "pairs")))["source"] == "s?"


def _check(candidate: Candidate) -> None:
    assert isinstance(candidate.query, str)
    for texts, scores, documents in (
        (candidate.positives, candidate.positive_scores, candidate.positive_documents),
        (candidate.negatives, candidate.negative_scores, candidate.negative_documents),
    ):
        assert all(isinstance(text, str) for text in texts)
        assert scores is None or (len(scores) == len(texts) and all(isinstance(s, float) for s in scores))
        assert documents is None or len(documents) == len(texts)
