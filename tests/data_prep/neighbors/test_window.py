from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from data_prep.embed.vectors import ArrayVectors
from data_prep.errors import UserError
from data_prep.neighbors.blocks import Computer, Inputs, Plan
from data_prep.neighbors.search import Metric, in_window

from .reference import all_scores, crowded, unit


@pytest.mark.parametrize("compiled", [True, False], ids=["numba", "torch"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["random", "ties", "clusters", "near", "sorted"])
def test_membership_is_exact(kind: str, metric: str, compiled: bool) -> None:
    """Bounds that are scores of rows themselves, so that float32 decides wrongly where it may."""
    corpus = crowded(kind, 8)
    queries = corpus[::31]
    exclude = np.arange(len(corpus))[::31]
    truth = all_scores(queries, corpus, metric, exclude)
    ordered = np.sort(truth, axis=1)
    low, high = ordered[:, len(corpus) // 3].copy(), ordered[:, len(corpus) // 3 + 60].copy()
    low[0], high[1], low[2], high[3] = -np.inf, np.inf, np.inf, -np.inf
    inside = (truth >= low[:, None]) & (truth <= high[:, None])
    plan = Plan(task="window", k=25, euclidean=metric == "euclidean", corpus_norm=1.001, seed=3)
    vectors = [ArrayVectors(v, normalised=True) for v in (queries, corpus)]
    inputs = Inputs(exclude=exclude, low=low, high=high)
    found = Computer(vectors[0], vectors[1], plan, inputs, budget_gb=1, device="cpu", compiled=compiled).compute(
        0, len(queries)
    )
    np.testing.assert_array_equal(found["available"], inside.sum(axis=1))
    for row in range(len(queries)):
        drawn = found["indices"][row]
        kept = drawn[drawn >= 0]
        assert len(kept) == len(set(kept.tolist())) == min(25, inside[row].sum())
        assert inside[row][kept].all()
        np.testing.assert_array_equal(found["scores"][row][: len(kept)], truth[row][kept])
        best_first = np.diff(truth[row][kept])
        assert (best_first >= 0).all() if metric == "euclidean" else (best_first <= 0).all()
        assert np.isnan(found["scores"][row][len(kept) :]).all() and (drawn[len(kept) :] == -1).all()


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_draw_depends_on_nothing_but_seed_and_rows(metric: str) -> None:
    corpus = unit(3000, 20)
    queries = corpus[:1100]
    low, high = (np.full(len(queries), edge, dtype=np.float32) for edge in (-0.1, 1.3))
    vectors = [ArrayVectors(v, normalised=True) for v in (queries, corpus)]
    plan = Plan(task="window", k=12, euclidean=metric == "euclidean", corpus_norm=1.001, seed=2**64 - 5)
    results: list[Any] = []
    for given in (
        {"compiled": True},
        {"compiled": False},
        {"compiled": True, "panel_rows": 700, "block_rows": 3},
        {"compiled": False, "panel_rows": 1600, "block_rows": 600},
    ):
        computer = Computer(*vectors, plan, Inputs(low=low, high=high), budget_gb=1, device="cpu", **given)  # type: ignore[arg-type]
        halves = [computer.compute(0, 512), computer.compute(512, 1100)]
        results.append({name: np.concatenate([half[name] for half in halves]) for name in halves[0]})
    for other in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(array, other[name])


def test_the_draw_is_uniform() -> None:
    """Every row of the window is drawn as often, by every query and under every seed: chi-square with 99 degrees."""
    corpus = np.repeat(unit(1, 6), 100, axis=0)
    corpus = np.concatenate([corpus, -corpus])
    queries = corpus[:400]
    low, high = (np.full(200, edge, dtype=np.float32) for edge in (0.5, 1.5))
    times = np.zeros(100)
    pairs = np.zeros(100)
    for seed in range(25):
        vectors = ArrayVectors(queries, normalised=True), ArrayVectors(corpus, normalised=True)
        found = in_window(*vectors, low=low, high=high, count=10, seed=seed)
        upper = found.indices[:100]
        times += np.bincount(upper.ravel(), minlength=100)
        pairs += np.bincount((np.diff(np.sort(upper, axis=1), axis=1)).ravel(), minlength=100)[:100]
        assert (found.available == 100).all()
    expected = 25 * 100 * 10 / 100
    assert 55 < ((times - expected) ** 2 / expected / 0.9).sum() < 160
    # gaps between ten of a hundred drawn without order: neighbours are drawn together in a tenth of the cases
    assert abs(pairs[1] / pairs.sum() - 0.1) < 0.01


def test_seeds_and_queries_draw_apart() -> None:
    corpus = ArrayVectors(unit(500, 8), normalised=True)
    low, high = np.full(500, -2, dtype=np.float32), np.full(500, 2, dtype=np.float32)
    first, again, other = (in_window(corpus, corpus, low=low, high=high, count=5, seed=s).indices for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert (first == other).mean() < 0.05 and (first[0] == first[1]).mean() < 1


def test_bad_windows() -> None:
    vectors = ArrayVectors(unit(20, 4), normalised=True)
    low, high = np.zeros(20, dtype=np.float32), np.ones(20, dtype=np.float32)
    with pytest.raises(UserError, match="0 rows a window: must be at least 1"):
        in_window(vectors, vectors, low=low, high=high, count=0, seed=0)
    with pytest.raises(ValueError, match="one bound for each of 20 queries"):
        in_window(vectors, vectors, low=low[:3], high=high, count=1, seed=0)
    low[7] = np.nan
    with pytest.raises(UserError, match="the window of query 7: has a bound that is NaN"):
        in_window(vectors, vectors, low=low, high=high, count=1, seed=0)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_an_empty_window_finds_nothing(metric: Metric) -> None:
    vectors = ArrayVectors(unit(20, 4), normalised=True)
    low, high = np.full(20, 5, dtype=np.float32), np.full(20, 6, dtype=np.float32)
    found = in_window(vectors, vectors, low=low, high=high, count=3, seed=0, metric=metric)
    assert found.available is not None and (found.available == 0).all() and (found.indices == -1).all()
