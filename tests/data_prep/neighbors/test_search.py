from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_prep.embed.embedder import unit_rows
from data_prep.errors import UserError
from data_prep.neighbors.search import top_k


def _unit(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    return unit_rows(np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32))


def _brute(queries: Any, corpus: Any, k: int, *, exclude_self: bool = False) -> tuple[Any, Any]:
    """All products in float64, rounded to float32, sorted by score and then index."""
    scores = np.stack([(corpus.astype(np.float64) * q).sum(1) for q in queries.astype(np.float64)]).astype(np.float32)
    if exclude_self:
        np.fill_diagonal(scores, -np.inf)
    order = np.stack([np.lexsort((np.arange(len(corpus)), -row))[:k] for row in scores])
    return np.take_along_axis(scores, order, 1), order


def _same(found: tuple[Any, Any], expected: tuple[Any, Any]) -> None:
    assert found[0].dtype == np.float32 and found[1].dtype == np.int64
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("backend", ["exact", "kdtree"])
@pytest.mark.parametrize("dimension", [3, 64, 384])
def test_against_brute_force(backend: Any, dimension: int) -> None:
    queries, corpus = _unit(37, dimension), _unit(500, dimension, seed=1)
    _same(top_k(queries, corpus, k=25, backend=backend), _brute(queries, corpus, 25))


@pytest.mark.parametrize("backend", ["exact", "kdtree"])
def test_ties_go_to_the_lower_index(backend: Any) -> None:
    """Groups of equal vectors larger than any margin, scattered over the corpus."""
    groups = _unit(6, 32)
    corpus = groups[np.random.default_rng(0).integers(0, 6, 400)]
    for k in (1, 5, 70, 400):
        _same(top_k(groups, corpus, k=k, backend=backend, block_columns=64), _brute(groups, corpus, k))


@pytest.mark.parametrize("backend", ["exact", "kdtree"])
def test_block_sizes_change_nothing(backend: Any) -> None:
    corpus = _unit(301, 48)
    corpus[200:230] = corpus[3]  # a group of copies across block borders
    expected = top_k(corpus, corpus, k=10, backend=backend, exclude_self=True)
    _same(expected, _brute(corpus, corpus, 10, exclude_self=True))
    for rows, columns in ((1, 7), (64, 64), (300, 301), (1000, 10_000)):
        sizes = {"block_rows": rows, "block_columns": columns}
        found = top_k(corpus, corpus, k=10, backend=backend, exclude_self=True, **sizes)
        assert np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(2, 60),
    dimension=st.integers(1, 8),
    distinct=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    exclude=st.booleans(),
    columns=st.integers(1, 70),
    data=st.data(),
)
def test_any_shape(
    count: int, dimension: int, distinct: int, seed: int, exclude: bool, columns: int, data: st.DataObject
) -> None:
    base = _unit(distinct, dimension, seed)
    corpus = base[np.random.default_rng(seed).integers(0, distinct, count)]
    k = data.draw(st.integers(1, count - exclude))
    expected = _brute(corpus, corpus, k, exclude_self=exclude)
    for backend in ("exact", "kdtree"):
        found = top_k(corpus, corpus, k=k, backend=backend, exclude_self=exclude, block_rows=9, block_columns=columns)
        _same(found, expected)


def test_vectors_need_not_be_unit_for_exact() -> None:
    generator = np.random.default_rng(3)
    queries = generator.normal(size=(11, 20)).astype(np.float32) * 100
    corpus = generator.normal(size=(90, 20)).astype(np.float32)
    corpus[13] = 0
    queries[4] = 0  # everything ties at zero
    found = top_k(queries, corpus, k=90)
    expected = _brute(queries, corpus, 90)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)


def test_exclude_self_with_copies_of_itself() -> None:
    corpus = np.repeat(_unit(1, 8), 5, axis=0)
    scores, indices = top_k(corpus, corpus, k=4, exclude_self=True)
    assert indices.tolist() == [[j for j in range(5) if j != i] for i in range(5)]
    assert np.allclose(scores, 1, atol=1e-6)


def test_low_precision_elsewhere_does_not_matter() -> None:
    import torch

    corpus = _unit(200, 64)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        _same(top_k(corpus, corpus, k=5), _brute(corpus, corpus, 5))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("k", [-1, 0, 10, 11])
def test_bad_k(k: int) -> None:
    corpus = _unit(10, 4)
    with pytest.raises(UserError, match=f"{k} neighbours: must be between 1 and 9 for 10 texts"):
        top_k(corpus, corpus, k=k, exclude_self=True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_refused_with_its_row(value: float) -> None:
    corpus = _unit(10, 4)
    bad = corpus.copy()
    bad[7, 2] = value
    with pytest.raises(UserError, match="corpus vector of row 7"):
        top_k(corpus, bad, k=2)
    with pytest.raises(UserError, match="query vector of row 7"):
        top_k(bad, corpus, k=2)


def test_kdtree_needs_unit_vectors() -> None:
    corpus = _unit(10, 4)
    corpus[6] = 0
    with pytest.raises(UserError, match=r"corpus vector of row 6: has length 0.0000"):
        top_k(_unit(2, 4), corpus, k=2, backend="kdtree")


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="are not"):
        top_k(_unit(3, 4), _unit(3, 5), k=1)
    with pytest.raises(ValueError, match="exclude_self"):
        top_k(_unit(3, 4), _unit(5, 4), k=1, exclude_self=True)
    with pytest.raises(ValueError, match="positive"):
        top_k(_unit(3, 4), _unit(5, 4), k=1, block_rows=-1)
