"""Correlations and their intervals against scipy; constant and broken embedders."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from data_prep.errors import UserError
from data_prep.progress import Progress
from data_prep.similarity_sets import SimilaritySet
from eval import metrics
from eval.sts import correlations, cosines, similarity_row

RNG = np.random.default_rng(4)
SCORES = RNG.integers(0, 6, size=120).astype(float)  # a scale of six steps: many ties
FOUND = np.round(SCORES / 10 + RNG.normal(0, 0.1, size=120), 2)
PAIRS = SimilaritySet("s", [f"a{i}" for i in range(120)], [f"b{i}" for i in range(120)], SCORES.tolist())


def test_correlations_equal_scipy() -> None:
    found = correlations(np.stack([FOUND, -FOUND]), np.stack([SCORES, SCORES]))
    for row, sign in zip(found, (1, -1), strict=True):
        assert row[0] == pytest.approx(stats.spearmanr(sign * FOUND, SCORES).statistic, abs=1e-12)
        assert row[1] == pytest.approx(stats.pearsonr(sign * FOUND, SCORES).statistic, abs=1e-12)


def test_intervals_equal_resampling_by_hand() -> None:
    row = similarity_row("x", PAIRS, FOUND, samples=200, seed=3)
    drawn = metrics.generator(3, "sts", "s").integers(0, 120, size=(200, 120))
    by_hand = [stats.spearmanr(FOUND[chosen], SCORES[chosen]).statistic for chosen in drawn]
    told = row["metrics"]["spearman"]
    assert (row["pairs"], row["set"], row["system"]) == (120, "s", "x")
    assert told["mean"] == pytest.approx(stats.spearmanr(FOUND, SCORES).statistic, abs=1e-6)
    assert (told["low"], told["high"]) == pytest.approx(tuple(np.quantile(by_hand, [0.025, 0.975])), abs=1e-6)


class Planted:
    """Vectors of a table, one for each text."""

    name = "planted"

    def __init__(self, vectors: dict[str, list[float]]) -> None:
        self.vectors = vectors
        self.dimension = 2

    def embed(self, texts: Sequence[str], *, role: str, progress: Progress | None = None) -> NDArray[np.float32]:
        return np.array([self.vectors[text] for text in texts], dtype=np.float32)


def test_cosines_of_vectors_of_any_length() -> None:
    pairs = SimilaritySet("s", ["a", "b", "c"], ["b", "c", "zero"], [1.0, 0.0, 0.5])
    table = {"a": [3.0, 0.0], "b": [1.0, 1.0], "c": [0.0, 2.0], "zero": [0.0, 0.0]}
    np.testing.assert_allclose(cosines(Planted(table), pairs, name="x"), [0.5**0.5, 0.5**0.5, 0.0], atol=1e-9)
    table["c"] = [float("nan"), 0.0]
    with pytest.raises(UserError, match=r"system x: the embedding of the .*'c'.* holds NaN or infinity \(1 of 3"):
        cosines(Planted(table), pairs, name="x")


def test_a_model_that_says_the_same_of_all_pairs_tells_nothing() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=2).tolist()
    pairs = SimilaritySet("s", ["a", "b", "c"], ["d", "e", "f"], [0.1, 0.5, 0.9])
    found = cosines(Planted(dict.fromkeys("abcdef", one)), pairs, name="x")
    row = similarity_row("x", pairs, found, samples=100, seed=0)
    assert row["metrics"]["spearman"] == row["metrics"]["pearson"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
