"""Windows by percentile, score, share and distance: everything drawn lies inside, everything inside is drawn from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_prep.mine.policy import RULES, Policy
from data_prep.mine.select import Mined
from data_prep.mine.sides import Side
from tests.data_prep.mine.random_sides import random_side

BASE: dict[str, Any] = {"positive_min_score": 0.5, "negatives_per_query": 200, "pool": 200, "without": list(RULES)}


@pytest.fixture(scope="module")
def world() -> tuple[Side, list[str]]:
    return random_side(150, seed=2)


@pytest.mark.parametrize(
    "window",
    [
        {"negative_percentiles": [60.0, 95.0]},
        {"negative_scores": [0.1, 0.45]},
        {"negative_relative": [0.2, 0.7]},
        {"negative_distances": [0.9, 1.2]},
        {"negative_scores": [0.0, 0.6], "negative_percentiles": [50.0, 90.0]},
        {"negative_ranks": [10, 60], "negative_scores": [0.1, 0.45]},
    ],
)
@pytest.mark.parametrize("languages", ["any", "query"])
def test_a_window_holds_what_it_says(
    world: Any, mine_side: Callable[..., Mined], window: dict[str, Any], languages: Any
) -> None:
    side, texts = world
    mined = mine_side(side, texts, Policy(**BASE, **window, languages=languages))
    vectors = side.vectors.read(0, 150).astype(np.float64)
    cosine = vectors @ vectors.T
    found = 0
    for query in np.flatnonzero(mined.kept).tolist():
        others = np.flatnonzero(np.arange(150) != query)
        if languages == "query":
            others = others[side.languages[others] == side.languages[query]]
        scores = cosine[query, others]
        worst = min(s for s in mined.positive_scores[query].tolist() if np.isfinite(s))
        inside = np.ones(len(others), dtype=bool)
        slack = np.zeros(len(others), dtype=bool)  # so near a percentile that the width of a bin decides
        if "negative_ranks" in window:
            first, last = window["negative_ranks"]
            inside &= np.isin(np.arange(len(others)), np.argsort(-scores)[first - 1 : last])
        if "negative_percentiles" in window:
            low, high = np.percentile(scores, window["negative_percentiles"])
            inside &= (scores >= low) & (scores <= high)
            slack |= (np.abs(scores - low) < 2e-3) | (np.abs(scores - high) < 2e-3)
        if "negative_scores" in window:
            inside &= (scores >= window["negative_scores"][0]) & (scores <= window["negative_scores"][1])
        if "negative_relative" in window:
            inside &= (scores >= window["negative_relative"][0] * worst) & (
                scores <= window["negative_relative"][1] * worst
            )
        if "negative_distances" in window:
            distances = np.sqrt(2 - 2 * scores)
            inside &= (distances > window["negative_distances"][0]) & (distances <= window["negative_distances"][1])
        positives = set(mined.positives[query].tolist())
        drawn = {n for n in mined.negatives[query].tolist() if n >= 0}
        must = set(others[inside & ~slack].tolist()) - positives
        may = set(others[inside | slack].tolist())
        assert must <= drawn <= may
        found += len(drawn)
    assert found > 500


def test_negatives_are_stored_hardest_first_or_easiest_first(world: Any, mine_side: Callable[..., Mined]) -> None:
    for sampling, sign in (("uniform", -1), ("hardest", -1), ("temperature", -1), ("stages", 1)):
        policy = Policy(**{**BASE, "negatives_per_query": 5}, negative_ranks=[1, 80], sampling=sampling)
        mined = mine_side(*world, policy)
        for row, scores in zip(mined.negatives, mined.negative_scores, strict=True):
            there = scores[row >= 0]
            assert (np.diff(sign * there) >= 0).all()
    spread = mined.negative_scores[(mined.negatives >= 0).all(axis=1)]
    assert len(spread) and (spread[:, -1] - spread[:, 0]).min() > 0  # from easy to hard, over the whole window


def test_a_pool_is_drawn_evenly_from_the_whole_window(world: Any, mine_side: Callable[..., Mined]) -> None:
    side, texts = world
    policy = Policy(**{**BASE, "pool": 4, "negatives_per_query": 4}, negative_percentiles=[0.0, 80.0])
    uses = np.zeros(150)
    for seed in range(30):
        mined = mine_side(side, texts, policy, seed=seed)
        uses += np.bincount(mined.negatives[mined.negatives >= 0], minlength=150)
    query = int(np.flatnonzero(mined.kept)[0])
    assert (uses > 0).mean() > 0.95 and mined.kept[query]
    assert uses.max() < 3.5 * uses.mean()  # nobody is everyone's negative by the draw alone


def test_positives_by_percentile_rank_and_draw(world: Any, mine_side: Callable[..., Mined]) -> None:
    side, texts = world
    vectors = side.vectors.read(0, 150).astype(np.float64)
    cosine = vectors @ vectors.T
    base = {"positives_per_query": 3, "negatives_per_query": 0, "positive_min_score": -1.0, "without": list(RULES)}
    best = mine_side(side, texts, Policy(**base, positive_min_percentile=98.0, positive_last_rank=2))
    drawn = mine_side(side, texts, Policy(**base, positive_min_percentile=90.0, positive_sampling="uniform"))
    for query in range(150):
        others = np.flatnonzero(np.arange(150) != query)
        scores = cosine[query, others]
        near = others[np.argsort(-scores)]
        level = np.percentile(scores, 98)
        wanted = [n for n in near[:2].tolist() if cosine[query, n] > level + 1e-3]
        assert [n for n in best.positives[query].tolist() if n >= 0][: len(wanted)] == wanted
        level = np.percentile(scores, 90)
        assert all(cosine[query, n] > level - 2e-3 for n in drawn.positives[query].tolist() if n >= 0)
    assert len({tuple(row) for row in drawn.positives.tolist()}) > 100
