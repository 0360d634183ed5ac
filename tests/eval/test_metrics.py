"""Metrics against a naive float64 reference and trec_eval; intervals against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from eval import metrics


def naive(ranked: list[int], relevant: set[int], k: int) -> tuple[float, float, float]:
    """Recall, nDCG and reciprocal rank at k, straight from their definitions."""
    top = ranked[:k]
    recall = sum(d in relevant for d in top) / len(relevant)
    gained = sum(1 / math.log2(r + 1) for r, d in enumerate(top, start=1) if d in relevant)
    ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(relevant)) + 1))
    reciprocal = next((1 / r for r, d in enumerate(top, start=1) if d in relevant), 0.0)
    return recall, gained / ideal, reciprocal


def random_task(
    seed: int, queries: int = 80, documents: int = 50, depth: int = 30
) -> tuple[NDArray[np.int64], list[set[int]]]:
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(documents)[:depth] for _ in range(queries)])
    relevant = [
        set(rng.choice(documents, size=int(rng.integers(1, 15)), replace=False).tolist()) for _ in range(queries)
    ]
    return ranked, relevant


@pytest.mark.parametrize("k", [1, 3, 5, 10, 30, 100])
def test_metrics_equal_the_definitions(k: int) -> None:
    ranked, relevant = random_task(k)
    expected = np.array([naive(row.tolist(), found, k) for row, found in zip(ranked, relevant, strict=True)])
    np.testing.assert_allclose(metrics.recall_at_k(ranked, relevant, k=k), expected[:, 0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(metrics.ndcg_at_k(ranked, relevant, k=k), expected[:, 1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(metrics.mrr_at_k(ranked, relevant, k=k), expected[:, 2], rtol=0, atol=1e-15)


def test_metrics_equal_trec_eval() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranked, relevant = random_task(0)
    qrels = {f"q{i}": {f"d{d}": 1 for d in found} for i, found in enumerate(relevant)}
    run = {f"q{i}": {f"d{d}": float(-r) for r, d in enumerate(row.tolist())} for i, row in enumerate(ranked)}
    names = {"recall.1,3,5,10", "ndcg_cut.10"}
    judged = pytrec_eval.RelevanceEvaluator(qrels, names).evaluate(run)
    ours = metrics.per_query(ranked, relevant, ks=[1, 3, 5, 10])
    for i in range(len(ranked)):
        theirs = [judged[f"q{i}"][n] for n in ("recall_1", "recall_3", "recall_5", "recall_10", "ndcg_cut_10")]
        np.testing.assert_allclose(ours[i, :5], theirs, atol=1e-9)


def test_columns_are_named_in_order() -> None:
    ranked, relevant = random_task(1)
    assert metrics.metric_names([1, 10]) == ["recall@1", "recall@10", "ndcg@10", "mrr@10"]
    values = metrics.per_query(ranked, relevant, ks=[1, 10])
    np.testing.assert_array_equal(values[:, 1], metrics.recall_at_k(ranked, relevant, k=10))
    np.testing.assert_array_equal(values[:, 3], metrics.mrr_at_k(ranked, relevant))


def test_a_query_without_relevant_documents_is_refused() -> None:
    with pytest.raises(ValueError, match="query 1 has no relevant"):
        metrics.recall_at_k(np.array([[0], [1]]), [{0}, set()], k=1)


def test_bootstrap_centre_and_spread_are_those_of_the_mean() -> None:
    rng = np.random.default_rng(0)
    values = rng.random((400, 2))
    means = metrics.bootstrap_means(values, samples=4000, rng=metrics.generator(0, "x"))
    assert means.shape == (4000, 2)
    error = values.std(axis=0) / math.sqrt(400)
    np.testing.assert_allclose(means.mean(axis=0), values.mean(axis=0), atol=float(error.max()) / 10)
    np.testing.assert_allclose(means.std(axis=0), error, rtol=0.06)
    low, high = metrics.interval(means)
    np.testing.assert_allclose((high - low) / 2, 1.96 * error, rtol=0.08)


def test_bootstrap_equals_resampling_by_hand() -> None:
    values = np.random.default_rng(1).random((7, 3))
    drawn = metrics.generator(5, "set", "all").integers(0, 7, size=(50, 7))
    by_hand = values[drawn].mean(axis=1)
    means = metrics.bootstrap_means(values, samples=50, rng=metrics.generator(5, "set", "all"))
    np.testing.assert_allclose(means, by_hand, atol=1e-15)


def test_blocks_do_not_lose_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_BLOCK_CELLS", 30)
    means = metrics.bootstrap_means(np.ones((7, 1)), samples=23, rng=metrics.generator(0))
    np.testing.assert_allclose(means, np.ones((23, 1)))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(200):
        values = (rng.random((150, 1)) < 0.7).astype(np.float64)
        low, high = metrics.interval(metrics.bootstrap_means(values, samples=300, rng=metrics.generator(trial)))
        covered += bool(low[0] <= 0.7 <= high[0])
    assert 0.88 <= covered / 200 <= 0.99


def test_draws_depend_on_seed_and_names_only() -> None:
    def draw(*names: str) -> list[int]:
        drawn: list[int] = metrics.generator(3, *names).integers(0, 1000, 5).tolist()
        return drawn

    assert draw("a", "all") == draw("a", "all")
    assert draw("a", "all") != draw("a", "hard")
