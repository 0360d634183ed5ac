"""Metrics against a naive float64 reference and trec_eval, ties and cut-off lists included; intervals against what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from eval import metrics
from eval.systems.ranker import ordered_top_k


def naive(ranked: list[int], relevant: set[int], k: int) -> tuple[float, float, float]:
    """Recall, nDCG and reciprocal rank at k, straight from their definitions."""
    top = ranked[:k]
    recall = sum(d in relevant for d in top) / len(relevant)
    gained = sum(1 / math.log2(r + 1) for r, d in enumerate(top, start=1) if d in relevant)
    ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(relevant)) + 1))
    reciprocal = next((1 / r for r, d in enumerate(top, start=1) if d in relevant), 0.0)
    return recall, gained / ideal, reciprocal


def random_task(
    seed: int, queries: int = 80, documents: int = 50, depth: int = 30, most: int = 15
) -> tuple[NDArray[np.int64], list[set[int]]]:
    rng = np.random.default_rng(seed)
    ranked = np.stack([rng.permutation(documents)[:depth] for _ in range(queries)])
    relevant = [
        set(rng.choice(documents, size=int(rng.integers(1, most)), replace=False).tolist()) for _ in range(queries)
    ]
    return ranked, relevant


@pytest.mark.parametrize("k", [1, 3, 5, 10, 30, 100])
def test_metrics_equal_the_definitions(k: int) -> None:
    ranked, relevant = random_task(k)
    expected = np.array([naive(row.tolist(), found, k) for row, found in zip(ranked, relevant, strict=True)])
    np.testing.assert_allclose(metrics.recall_at_k(ranked, relevant, k=k), expected[:, 0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(metrics.ndcg_at_k(ranked, relevant, k=k), expected[:, 1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(metrics.mrr_at_k(ranked, relevant, k=k), expected[:, 2], rtol=0, atol=1e-15)


KS = [1, 3, 5, 10, 100]
TREC = {
    **{f"recall@{k}": f"recall_{k}" for k in KS},
    **{f"success@{k}": f"success_{k}" for k in KS},
    "ndcg@10": "ndcg_cut_10",
    "mrr@10": "recip_rank",
    "map": "map",
    "r_precision": "Rprec",
}
MEASURES = {"recall.1,3,5,10,100", "success.1,3,5,10,100", "ndcg_cut.10", "recip_rank", "map", "Rprec"}


def judged_by_trec_eval(
    run: dict[str, dict[str, float]], relevant: list[set[int]], name: Callable[[int], str]
) -> NDArray[np.float64]:
    """All metrics of every query by trec_eval, columns as ours; reciprocal ranks are cut at 10 as ours are."""
    pytrec_eval = pytest.importorskip("pytrec_eval")
    qrels = {f"q{i}": {name(d): 1 for d in found} for i, found in enumerate(relevant)}
    judged = pytrec_eval.RelevanceEvaluator(qrels, MEASURES).evaluate(run)
    rows = [[judged[f"q{i}"][TREC[m]] for m in metrics.all_metric_names(KS)] for i in range(len(relevant))]
    values = np.array(rows)
    reciprocal = metrics.all_metric_names(KS).index("mrr@10")
    values[:, reciprocal] = np.where(values[:, reciprocal] > 1 / 10.5, values[:, reciprocal], 0.0)
    return values


@pytest.mark.parametrize(("documents", "depth"), [(50, 50), (50, 30), (300, 120), (8, 8)])
def test_metrics_equal_trec_eval(documents: int, depth: int) -> None:
    """Lists that hold the corpus, lists cut off above some relevant documents, and a corpus smaller than k."""
    ranked, relevant = random_task(depth, documents=documents, depth=depth, most=min(15, documents))
    run = {f"q{i}": {f"d{d}": float(-r) for r, d in enumerate(row.tolist())} for i, row in enumerate(ranked)}
    theirs = judged_by_trec_eval(run, relevant, lambda d: f"d{d}")
    np.testing.assert_allclose(metrics.per_query(ranked, relevant, ks=KS), theirs, rtol=0, atol=1e-9)


def test_tied_scores_equal_trec_eval_once_its_ties_are_broken_as_ours() -> None:
    """trec_eval puts equal scores in descending order of the document id, our rankers in rising order of the index.

    So ids that fall as indices rise make its order ours, and the figures must agree on scores with many ties.
    """
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 4, size=(60, 40)).astype(np.float32)  # about ten documents on each score
    relevant = [set(rng.choice(40, size=int(rng.integers(1, 9)), replace=False).tolist()) for _ in range(60)]
    ranked = np.stack([ordered_top_k(row, 40)[0] for row in scores])
    assert all((np.diff(order)[np.diff(row[order]) == 0] > 0).all() for order, row in zip(ranked, scores, strict=True))
    run = {f"q{i}": {f"{900 - d}": float(s) for d, s in enumerate(row.tolist())} for i, row in enumerate(scores)}
    ours = metrics.per_query(ranked, relevant, ks=KS)
    np.testing.assert_allclose(ours, judged_by_trec_eval(run, relevant, lambda d: f"{900 - d}"), rtol=0, atol=1e-9)
    rising = {f"q{i}": {f"{900 + d}": float(s) for d, s in enumerate(row.tolist())} for i, row in enumerate(scores)}
    other = judged_by_trec_eval(rising, relevant, lambda d: f"{900 + d}")
    assert np.abs(ours - other).max() > 0.1  # the order of ties does matter here


def test_success_is_recall_where_one_document_is_relevant_and_not_elsewhere() -> None:
    ranked, relevant = random_task(3)
    one = [{min(found)} for found in relevant]
    for k in (1, 10):
        success = metrics.success_at_k(ranked, one, k=k)
        np.testing.assert_array_equal(success, metrics.recall_at_k(ranked, one, k=k))
    assert (metrics.success_at_k(ranked, relevant, k=10) > metrics.recall_at_k(ranked, relevant, k=10)).any()


def test_a_list_cut_off_tells_what_it_can() -> None:
    """Three relevant documents, two in a list of four at ranks 1 and 3: by hand."""
    ranked, relevant = np.array([[7, 1, 8, 2]]), [{7, 8, 9}]
    assert metrics.average_precision(ranked, relevant)[0] == pytest.approx((1 + 2 / 3) / 3)
    assert metrics.r_precision(ranked, relevant)[0] == pytest.approx(2 / 3)
    assert metrics.r_precision(ranked[:, :2], relevant)[0] == pytest.approx(1 / 3)  # shorter than R: a lower bound


def test_columns_are_named_in_order() -> None:
    ranked, relevant = random_task(1)
    assert metrics.metric_names([1, 10]) == ["recall@1", "recall@10", "ndcg@10", "mrr@10"]
    more = ["success@1", "success@10", "map", "r_precision"]
    assert metrics.all_metric_names([1, 10]) == [*metrics.metric_names([1, 10]), *more]
    values = metrics.per_query(ranked, relevant, ks=[1, 10])
    np.testing.assert_array_equal(values[:, 1], metrics.recall_at_k(ranked, relevant, k=10))
    np.testing.assert_array_equal(values[:, 3], metrics.mrr_at_k(ranked, relevant))
    np.testing.assert_array_equal(values[:, 5], metrics.success_at_k(ranked, relevant, k=10))
    np.testing.assert_array_equal(values[:, 6], metrics.average_precision(ranked, relevant))
    np.testing.assert_array_equal(values[:, 7], metrics.r_precision(ranked, relevant))


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
