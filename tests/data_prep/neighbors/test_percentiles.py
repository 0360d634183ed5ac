from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.vectors import ArrayVectors
from data_prep.errors import UserError
from data_prep.neighbors.search import Metric, search

from .reference import all_scores, crowded, unit

PERCENTILES = [0, 0.1, 5, 37.5, 50, 90, 95, 99, 99.9, 100]


def _given(kind: str, metric: str) -> tuple[Any, Any, Any, Any]:
    corpus = crowded(kind, 4, dimension=32)
    if metric == "euclidean":
        corpus = (corpus * np.linspace(0.2, 9, len(corpus))[:, None]).astype(np.float32)
    queries = corpus[::23].copy()
    exclude = np.arange(len(corpus))[::23]
    exclude[::2] = -1
    return queries, corpus, exclude, all_scores(queries, corpus, metric, exclude)


def _vectors(array: Any, metric: str) -> ArrayVectors:
    return ArrayVectors(array, normalised=metric == "cosine")


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["random", "ties", "clusters", "near", "sorted"])
def test_levels_are_within_the_stated_error(kind: str, metric: Metric) -> None:
    queries, corpus, exclude, truth = _given(kind, metric)
    found = search(
        _vectors(queries, metric),
        _vectors(corpus, metric),
        k=30,
        metric=metric,
        percentiles=PERCENTILES,
        exclude=exclude,
    )
    assert found.levels is not None and found.level_error is not None and found.histogram is None
    expected = np.nanpercentile(truth.astype(np.float64), PERCENTILES, axis=1).T
    assert found.levels.shape == expected.shape and found.levels.dtype == np.float32
    assert found.level_error < (2.1 / 4096 if metric == "cosine" else 18.1 / 4096 + 0.05)
    assert np.abs(found.levels - expected).max() <= found.level_error
    assert np.abs(found.levels - expected).max() <= (2 if metric == "cosine" else 18.01) / 4096 * 1.1
    # among the best thirty every score is known
    exact = np.array(PERCENTILES) < 100 * 28 / len(corpus)
    exact = exact if metric == "euclidean" else np.array(PERCENTILES) > 100 - 100 * 28 / len(corpus)
    np.testing.assert_allclose(found.levels[:, exact], expected[:, exact], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("kind", ["random", "ties", "sorted"])
def test_where_a_score_stands(kind: str, metric: Metric) -> None:
    queries, corpus, exclude, truth = _given(kind, metric)
    found = search(
        _vectors(queries, metric), _vectors(corpus, metric), k=30, metric=metric, percentiles=True, exclude=exclude
    )
    told = found.histogram
    assert told is not None
    assert (told.counts.sum(axis=1) == (~np.isnan(truth)).sum(axis=1)).all()
    np.testing.assert_allclose(
        told.score_at(PERCENTILES), np.nanpercentile(truth, PERCENTILES, axis=1).T, rtol=0, atol=told.error
    )
    assert np.array_equal(told.score_at(50.0), told.score_at([50.0])[:, 0])
    asked = np.concatenate([np.nan_to_num(truth[:, ::9]), found.scores], axis=1)
    shares = told.percentile_of(asked)
    told.error = (told.high - told.low) / 4096 * 1.1  # rounding is far below its bound
    total = (~np.isnan(truth)).sum(axis=1)[:, None]

    def share(edge: Any) -> Any:
        return 100 * (truth[:, None, :] < edge[:, :, None]).sum(axis=2) / total

    assert (shares >= share(asked - told.error) - 1e-4).all()
    assert (shares <= share(asked + told.error) + 1e-4).all()
    if metric == "cosine":  # better than the last of the best: exact
        inner = found.scores > found.scores[:, -1:]
        shown = shares[:, -found.scores.shape[1] :]
        np.testing.assert_allclose(shown[inner], share(found.scores)[inner], rtol=1e-6)


def test_levels_are_those_of_the_histogram_and_bins_follow_the_budget(tmp_path: Path) -> None:
    vectors = ArrayVectors(unit(2000, 16), normalised=True)
    levels = search(vectors, vectors, k=5, percentiles=[10.0, 60.0]).levels
    kept = search(vectors, vectors, k=5, percentiles=True, scratch=tmp_path).histogram
    small = search(vectors, vectors, k=5, percentiles=True, budget_gb=0.05).histogram
    assert levels is not None and kept is not None and small is not None
    assert np.array_equal(kept.score_at([10.0, 60.0]), levels)
    assert kept.counts.shape == (2000, 4096) and small.counts.shape == (2000, 1024)
    assert np.abs(small.score_at([10.0, 60.0]) - levels).max() <= small.error + kept.error < 0.003


def test_bad_percentiles() -> None:
    vectors = ArrayVectors(unit(20, 4), normalised=True)
    for percent in (-1, 100.5, float("nan")):
        with pytest.raises(UserError, match="must be between 0 and 100"):
            search(vectors, vectors, k=2, percentiles=[50, percent])
    with pytest.raises(UserError, match="kdtree backend: sees only the nearest rows"):
        search(vectors, vectors, k=2, percentiles=[50], backend="kdtree")
