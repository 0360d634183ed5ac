"""What the searches must find, the slow way: every score in float64, sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.embed.embedder import unit_rows


def unit(count: int, dimension: int, seed: int = 0) -> NDArray[np.float32]:
    """Random unit rows."""
    return unit_rows(np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float32))


def all_scores(queries: Any, corpus: Any, metric: str, exclude: Any = None) -> NDArray[np.float32]:
    """[q, n] float32, rounded once from float64; NaN where excluded."""
    wide = corpus.astype(np.float64)
    if metric == "euclidean":
        rows = [np.sqrt(((wide - query) ** 2).sum(1)) for query in queries.astype(np.float64)]
    else:
        rows = [(wide * query).sum(1) for query in queries.astype(np.float64)]
    scores = np.stack(rows).astype(np.float32)
    if exclude is not None:
        for row, column in enumerate(exclude):
            if column >= 0:
                scores[row, column] = np.nan
    return scores


def best(scores: NDArray[np.float32], k: int, metric: str) -> NDArray[np.int64]:
    """[q, k] columns: best score first, then the lower column, excluded ones last."""
    sign = 1 if metric == "euclidean" else -1
    order = [np.lexsort((np.arange(len(row)), np.where(np.isnan(row), np.inf, sign * row)))[:k] for row in scores]
    return np.stack(order)


def crowded(kind: str, seed: int, dimension: int = 24) -> NDArray[np.float32]:
    """Unit rows that make exactness hard."""
    draw = np.random.default_rng(seed)
    if kind == "ties":  # nine vectors, many times each
        return unit(9, dimension, seed)[draw.integers(0, 9, 700)]
    if kind == "clusters":  # tight groups: thousands of scores within the rounding of float32 of each other
        centres = unit(5, dimension, seed)[draw.integers(0, 5, 800)]
        return unit_rows((centres + draw.normal(size=centres.shape) * 1e-7).astype(np.float32))
    if kind == "near":  # one vector, each copy changed in its last bits
        row = unit(1, dimension, seed)
        copies = np.repeat(row, 600, axis=0)
        for number in range(600):
            place = draw.integers(0, dimension)
            copies[number, place] = np.nextafter(copies[number, place], np.float32(2), dtype=np.float32)
        return copies
    if kind == "sorted":  # every row nearer to the first than those before it
        angle = np.linspace(1.5, 0.0, 900)
        rows = np.zeros((900, dimension), dtype=np.float32)
        rows[:, 0], rows[:, 1] = np.cos(angle), np.sin(angle)
        return rows
    return unit(650, dimension, seed)
