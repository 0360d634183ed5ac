from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data_prep.mine.hubness import k_occurrence
from data_prep.mine.policy import Policy
from data_prep.mine.sampling import capped, chances, draw
from data_prep.mine.sides import shared_words, sketch_of

KEYS = np.arange(1, 4001, dtype=np.uint64)


def _draw(scores: np.ndarray, usable: np.ndarray | None = None, *, spare: int = 0, seed: int = 0, **policy: Any):
    rows, columns = scores.shape
    usable = np.ones(scores.shape, dtype=bool) if usable is None else usable
    chance = chances(KEYS[:rows, None], KEYS[None, :columns], seed=seed)
    return draw(
        Policy(**policy), usable, scores.astype(np.float32), chance, spare=spare, seed=seed,
        query_ids=[f"{n:032x}" for n in range(rows)],
    )  # fmt: skip


def test_chances_are_uniform_independent_and_the_same_everywhere() -> None:
    found = chances(KEYS[:, None], KEYS[None, :200], seed=5)
    assert np.abs(np.histogram(found, bins=20, range=(0, 1))[0] / found.size - 0.05).max() < 0.001
    assert abs(np.corrcoef(found[:, 0], found[:, 1])[0, 1]) < 0.05
    part = chances(KEYS[100:200, None], KEYS[None, 50:60], seed=5)
    assert np.array_equal(part, found[100:200, 50:60])
    assert not np.array_equal(part, chances(KEYS[100:200, None], KEYS[None, 50:60], seed=6))


def test_hardest_takes_the_first_that_pass() -> None:
    usable = np.array([[False, True, True, False, True], [False] * 5])
    drawn = _draw(np.zeros((2, 5)), usable, sampling="hardest", negatives_per_query=2, spare=2)
    assert drawn.tolist() == [[1, 2, 4, -1], [-1, -1, -1, -1]]


def test_uniform_draws_everything_equally_often_and_names_spares() -> None:
    drawn = _draw(np.zeros((4000, 10)), sampling="uniform", negatives_per_query=3, spare=7)
    assert all(sorted(row) == list(range(10)) for row in drawn[:50].tolist())  # the spares are all the others
    share = np.bincount(drawn[:, :3].ravel(), minlength=10) / 12000
    assert np.abs(share - 0.1).max() < 0.015


def test_temperature_draws_by_the_exponential_of_the_score() -> None:
    scores = np.tile([0.5, 0.45, 0.4, 0.2], (4000, 1))
    drawn = _draw(scores, sampling="temperature", temperature=0.1, negatives_per_query=1)
    share = np.bincount(drawn[:, 0], minlength=4) / 4000
    expected = np.exp(scores[0] / 0.1) / np.exp(scores[0] / 0.1).sum()
    assert np.abs(share - expected).max() < 0.025


@pytest.mark.parametrize("passing", [12, 11, 3])
def test_stages_draw_one_from_each(passing: int) -> None:
    usable = np.zeros((500, 20), dtype=bool)
    usable[:, 4 : 4 + passing] = True
    drawn = _draw(np.tile(np.linspace(1, 0, 20), (500, 1)), usable, sampling="stages", negatives_per_query=4)
    wanted = min(4, passing)
    for row in drawn.tolist():
        taken = [n - 4 for n in row if n >= 0]
        assert len(taken) == wanted and sorted(n * 4 // passing for n in taken) == [
            n * 4 // passing for n in sorted(taken)
        ]
        assert len({n * 4 // passing for n in taken}) == wanted
    assert len(np.unique(drawn)) > 3


def test_the_cap_keeps_the_earliest_uses() -> None:
    generator = np.random.default_rng(0)
    drawn = generator.integers(0, 15, (300, 4))
    left, taken = capped(drawn, KEYS[:300], KEYS, most=20, seed=1)
    uses = np.bincount(left[left >= 0], minlength=15)
    wanted = np.minimum(np.bincount(drawn.ravel(), minlength=15), 20)
    assert np.array_equal(uses, wanted) and taken == drawn.size - wanted.sum()
    for text in range(15):
        gone, kept = np.nonzero((drawn == text) & (left < 0))[1], np.nonzero(left == text)[1]
        if len(gone):
            assert kept.max() <= gone.min()
    backwards, _ = capped(drawn[::-1], KEYS[:300][::-1], KEYS, most=20, seed=1)
    assert np.array_equal(backwards[::-1], left)  # the order of the queries decides nothing


def test_sketches_estimate_shared_words() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{n}" for n in range(400)]
    errors = []
    for overlap in (0, 10, 20, 30, 40):
        for _ in range(40):
            drawn = generator.permutation(words)
            one, other = set(drawn[:40]), {*drawn[:overlap], *drawn[100 : 140 - overlap]}
            sketches = np.frombuffer(sketch_of(" ".join(one)) + sketch_of(" ".join(other).upper()), dtype=np.uint64)
            errors.append(float(shared_words(sketches[:2], sketches[2:])) - len(one & other) / len(one | other))
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.09  # 1 bit of 128 hashes: 0.088 at nothing in common


def test_k_occurrence_and_its_skewness() -> None:
    from scipy.stats import skew

    rows = np.random.default_rng(0).geometric(0.1, (500, 4)) % 40
    rows[0] = -1
    counts, skewness = k_occurrence(rows, size=50)
    assert counts.tolist() == np.bincount(rows[rows >= 0], minlength=50).tolist()
    assert skewness == pytest.approx(skew(counts))
    assert k_occurrence(np.full((3, 2), -1), size=5)[1] == 0.0
