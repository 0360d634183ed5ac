"""Sides with known vectors: clustered, in three languages, some of one document, some near copies."""

from __future__ import annotations

import numpy as np

from data_prep.embed.vectors import ArrayVectors
from data_prep.mine.sides import Side, side_of

LANGUAGES = ("ms", "en", "zh")


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_side(count: int, *, seed: int = 0, dimension: int = 8, second: bool = False) -> tuple[Side, list[str]]:
    """Texts of shared words with clustered unit vectors, three languages, some of one document, some near copies."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(6, dimension))
    vectors = unit(centres[generator.integers(0, 6, count)] + 0.6 * generator.normal(size=(count, dimension)))
    words = [f"kata{n}" for n in range(60)]
    texts = [" ".join(generator.choice(words, 12)) + f" {n}" for n in range(count)]
    for row in range(5, count, 11):
        texts[row] = texts[row - 1] + " lagi"
    other = unit(vectors + 0.3 * generator.normal(size=vectors.shape)) if second else None
    side = side_of(
        texts,
        ArrayVectors(vectors, normalised=True),
        documents=(generator.integers(1, count // 3, count)).astype(np.uint64),
        languages=[LANGUAGES[n] for n in generator.integers(0, 3, count)],
        sketches=True,
        second=None if other is None else ArrayVectors(other, normalised=True),
    )
    return side, texts
