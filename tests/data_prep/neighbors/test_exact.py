from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_prep.embed.vectors import ArrayVectors
from data_prep.neighbors.blocks import Computer, Inputs, Plan
from data_prep.neighbors.search import Metric, search

from .reference import all_scores, best, crowded, unit

KINDS = ("random", "ties", "clusters", "near", "sorted")


def _compute(
    queries: NDArray[Any],
    corpus: NDArray[Any],
    *,
    k: int,
    metric: str,
    exclude: Any = None,
    bins: int = 0,
    **settings: Any,
) -> dict[str, Any]:
    reach = [float(np.linalg.norm(v.astype(np.float64), axis=1).max()) * 1.001 for v in (queries, corpus)]
    euclidean = metric == "euclidean"
    high = sum(reach) if euclidean else reach[0] * reach[1]
    plan = Plan(
        task="top",
        k=k,
        euclidean=euclidean,
        corpus_norm=reach[1],
        bins=bins,
        low=0.0 if euclidean else -high,
        high=high,
        keep_counts=bins > 0,
    )
    asked, searched = (ArrayVectors(v, normalised=False) for v in (queries, corpus))
    settings = {"budget_gb": 1.0, "device": "cpu", **settings}
    return Computer(asked, searched, plan, Inputs(exclude=exclude), **settings).compute(0, len(queries))


@pytest.mark.parametrize("compiled", [True, False], ids=["numba", "torch"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_float64_brute_force(kind: str, metric: str, compiled: bool) -> None:
    corpus = crowded(kind, 3)
    queries = np.concatenate([corpus[::17], unit(20, corpus.shape[1], 9)])
    exclude = np.where(np.arange(len(queries)) % 3 == 0, np.arange(len(queries)) * 7 % len(corpus), -1)
    truth = all_scores(queries, corpus, metric, exclude)
    for k in (1, 7, 100, len(corpus) - 1):
        found = _compute(queries, corpus, k=k, metric=metric, exclude=exclude, compiled=compiled)
        expected = best(truth, k, metric)
        np.testing.assert_array_equal(found["indices"], expected)
        np.testing.assert_array_equal(found["scores"], np.take_along_axis(truth, expected, 1))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 3e4, 1e12])
def test_any_length_of_vectors(scale: float, metric: str) -> None:
    """Products that underflow or are large, lengths that differ by orders."""
    draw = np.random.default_rng(5)
    corpus = (draw.normal(size=(400, 20)) * 10 ** draw.uniform(-2, 2, (400, 1)) * scale).astype(np.float32)
    corpus[17] = 0.0
    queries = np.concatenate([corpus[:30], np.zeros((1, 20), np.float32)])
    truth = all_scores(queries, corpus, metric)
    for compiled in (True, False):
        found = _compute(queries, corpus, k=25, metric=metric, compiled=compiled)
        np.testing.assert_array_equal(found["indices"], best(truth, 25, metric))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 150),
    corpus_rows=st.integers(2, 1300),
    dimension=st.integers(1, 40),
    distinct=st.integers(1, 300),
    seed=st.integers(0, 10**6),
    metric=st.sampled_from(["cosine", "euclidean"]),
    data=st.data(),
)
def test_any_shape(
    rows: int, corpus_rows: int, dimension: int, distinct: int, seed: int, metric: str, data: st.DataObject
) -> None:
    draw = np.random.default_rng(seed)
    base = unit(distinct, dimension, seed)
    corpus, queries = base[draw.integers(0, distinct, corpus_rows)], base[draw.integers(0, distinct, rows)]
    k = data.draw(st.integers(1, corpus_rows - 1))
    exclude = draw.integers(-1, corpus_rows, rows)
    expected = best(all_scores(queries, corpus, metric, exclude), k, metric)
    found = [
        _compute(queries, corpus, k=k, metric=metric, exclude=exclude, bins=64, compiled=compiled, panel_rows=panel)
        for compiled, panel in ((True, 200), (False, 5000))
    ]
    for one in found:
        np.testing.assert_array_equal(one["indices"], expected)
        assert (one["counts"].sum(axis=1) == corpus_rows - (exclude >= 0)).all()
    np.testing.assert_array_equal(found[0]["counts"], found[1]["counts"])
    np.testing.assert_array_equal(found[0]["scores"], found[1]["scores"])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_blocks_threads_and_budgets_change_no_bit(metric: str) -> None:
    corpus = np.concatenate([unit(1500, 37), crowded("near", 1, 37), crowded("ties", 2, 37)])
    queries = corpus[5:1300]
    given_threads = torch.get_num_threads()
    results = []
    try:
        for threads, blocks in (
            (1, {}),
            (2, {"panel_rows": 600, "block_rows": 700}),
            (3, {"panel_rows": 512, "block_rows": 1}),
            (1, {"compiled": False, "panel_rows": 1100}),
            (2, {"compiled": False, "block_rows": 900}),
            (2, {"budget_gb": 0.11}),
        ):
            torch.set_num_threads(threads)
            results.append(_compute(queries, corpus, k=40, metric=metric, bins=4096, **{"compiled": True, **blocks}))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(given_threads)
    for other in results[1:]:
        for name, array in results[0].items():
            assert np.array_equal(array, other[name]), name


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["near", "ties", "ascending"])
def test_candidates_wait_over_many_panels(kind: str, metric: str) -> None:
    """Rows that rounding cannot tell apart, more than may wait, spread over all panels; and ever better ones."""
    draw = np.random.default_rng(3)
    centre, rest = unit(1, 24, 1), unit(11_000, 24, 2)
    if kind == "ascending":
        corpus = rest[np.argsort(rest @ centre[0], kind="stable")]
    else:
        noise = 3e-7 * draw.standard_normal((11_000, 24)) * (kind == "near")
        corpus = np.where(draw.random((11_000, 1)) < 0.2, centre + noise, rest).astype(np.float32)
    queries = np.concatenate([centre, unit(9, 24, 4), corpus[::1400]])
    truth = all_scores(queries, corpus, metric)
    for k in (1, 30, 300):
        expected = best(truth, k, metric)
        for more in ({"panel_rows": 2048}, {"panel_rows": 4096}, {"compiled": False, "panel_rows": 2048}, {}):
            found = _compute(queries, corpus, k=k, metric=metric, bins=64, **{"compiled": True, **more})
            np.testing.assert_array_equal(found["indices"], expected)
            np.testing.assert_array_equal(found["scores"], np.take_along_axis(truth, expected, 1))


def test_float16_vectors_read_as_they_are() -> None:
    corpus = unit(300, 40).astype(np.float16)
    vectors = ArrayVectors(corpus, normalised=True)
    found = search(vectors, vectors, k=9)
    wide = corpus.astype(np.float32)
    np.testing.assert_array_equal(found.indices, best(all_scores(wide, wide, "cosine"), 9, "cosine"))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("backend", ["kdtree", "faiss"])
def test_other_backends_find_the_same(backend: Any, metric: Metric) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    corpus, exclude = unit(700, 12), np.arange(50)
    asked, searched = ArrayVectors(corpus[:50], normalised=True), ArrayVectors(corpus, normalised=True)
    expected = search(asked, searched, k=20, metric=metric, exclude=exclude)
    found = search(asked, searched, k=20, metric=metric, exclude=exclude, backend=backend)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert found.recall == (1.0 if backend == "faiss" else None)


def test_kdtree_finds_every_near_tie() -> None:
    for kind in KINDS:
        corpus = crowded(kind, 6, dimension=8)
        vectors = ArrayVectors(corpus, normalised=True)
        for metric in ("cosine", "euclidean"):
            found = search(vectors, vectors, k=11, metric=metric, backend="kdtree")  # type: ignore[arg-type]
            np.testing.assert_array_equal(found.indices, best(all_scores(corpus, corpus, metric), 11, metric))
