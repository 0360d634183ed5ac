"""From documents to what mining searches: who embeds, the vectors, and the facts that the rules read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.embed.store import embed_texts
from data_prep.embed.teacher import TeacherConfig, fit_teacher
from data_prep.embed.vectors import ArrayVectors, Vectors
from data_prep.errors import UserError
from data_prep.mine.config import MineConfig
from data_prep.mine.sides import RowsOf, Side, language_number, side_of
from data_prep.progress import Progress
from data_prep.text_store import TextStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Role, Teacher

_IN_MEMORY_BYTES = 1 << 30
"""TF-IDF vectors up to this size stay in memory as float32: to make them again costs less than to store them."""


@dataclass
class Pool:
    """The texts that are searched.

    Attributes:
        store: all documents. numbers: [n] the row of the store of each searched text. side: their facts.
        teachers: the teacher and, where there is one, the second. zero_vectors: texts left out for a zero vector.
    """

    store: TextStore
    numbers: NDArray[np.int64]
    side: Side
    teachers: list[Teacher]
    zero_vectors: int

    def texts(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The texts of some rows of the side."""
        return self.store.texts(self.numbers[rows])


def drawn_rows(total: int, most: int | None, seed: int | list[int]) -> NDArray[np.int64]:
    """At most `most` of `total` rows, sorted."""
    import numpy as np

    if most is None or most >= total:
        return np.arange(total, dtype=np.int64)
    return np.sort(np.random.default_rng(seed).choice(total, most, replace=False)).astype(np.int64)


def needs_sketches(config: MineConfig) -> bool:
    """Whether a rule will compare words."""
    return config.policy.on("near_copy") and config.policy.negatives_per_query > 0


class Embedding:
    """Embeds texts with every teacher of the config; vectors that are large or dear go to files.

    Args:
        out: `out/teacher` (and `out/second_teacher`) get the fitted teachers.
        folder: for the vectors. cache: of all teachers' vectors; None keeps none.
    """

    def __init__(
        self, config: MineConfig, *, out: Path, folder: Path, cache: Path | None, seed: int, progress: Progress
    ) -> None:
        self._config, self._out, self._folder, self._cache = config, out, folder, cache
        self._seed, self._progress = seed, progress
        self.teachers: list[Teacher] = []

    def _configs(self) -> list[TeacherConfig]:
        second = self._config.second_teacher
        return [self._config.teacher] + ([second] if second and self._config.policy.on("second_teacher") else [])

    def fit(self, texts: Callable[[int], list[str]]) -> None:
        """Make the teachers. `texts(most)` gives at most so many texts of the corpus, to learn from."""
        for name, config in zip(("teacher", "second_teacher"), self._configs(), strict=False):
            sample = texts(config.fit_documents) if config.kind == "tfidf" else []
            self.teachers.append(
                fit_teacher(config, sample, out=self._out / name, seed=self._seed, progress=self._progress)
            )

    def vectors(self, texts: Sequence[str] | _Texts, ids: Sequence[str], *, role: Role, name: str) -> list[Vectors]:
        """The vectors of texts by every teacher."""
        import numpy as np

        found: list[Vectors] = []
        for number, (teacher, config) in enumerate(zip(self.teachers, self._configs(), strict=True)):
            if config.kind == "tfidf" and len(texts) * teacher.dimension * 4 <= _IN_MEMORY_BYTES:
                array = np.zeros((len(texts), teacher.dimension), dtype=np.float32)
                step = 1 << 15
                for start in range(0, len(texts), step):
                    part = texts[start : start + step]
                    array[start : start + len(part)] = teacher.embed(part, role=role, progress=self._progress)
                found.append(ArrayVectors(array, normalised=teacher.normalised))
                continue
            stored = embed_texts(
                ((ids[row], texts[row : row + 1][0]) for row in range(len(texts))), teacher, role=role,
                folder=self._folder / f"{name}-{number}", cache=self._cache, progress=self._progress, total=len(texts),
            )  # fmt: skip
            found.append(stored)
        return found


class _Texts:
    """Some texts of a store as a sequence."""

    def __init__(self, store: TextStore, rows: NDArray[np.int64]) -> None:
        self._store, self._rows = store, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, part: slice) -> list[str]:
        return self._store.texts(self._rows[part])


class _Ids:
    """The ids of some texts of a store as a sequence."""

    def __init__(self, store: TextStore, rows: NDArray[np.int64]) -> None:
        self._store, self._rows = store, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> str:
        return self._store.id(int(self._rows[row]))


def make_pool(
    config: MineConfig, store: TextStore, embedding: Embedding, *, seed: int, rows: NDArray[np.int64] | None = None
) -> Pool:
    """Embed the searched documents; texts without a vector (no known word) are left out.

    Args:
        rows: the rows of the store to search; None draws `max_documents`.

    Raises:
        UserError: fewer texts than the neighbours that are asked for.
    """
    import numpy as np

    chosen = drawn_rows(len(store), config.max_documents, [seed, 1]) if rows is None else rows
    needed = config.depth + 1
    if len(chosen) < needed:
        raise UserError(
            f"mine.neighbors = {config.neighbors}"
            + (
                f", mine.policy.negative_ranks = {config.policy.negative_ranks}" if config.policy.negative_ranks else ""
            ),
            f"needs at least {needed} documents, there are {len(chosen)}",
            "lower mine.neighbors and the last rank of mine.policy.negative_ranks, or give [corpus] more text",
        )

    def sample(most: int) -> list[str]:
        return store.texts(chosen[drawn_rows(len(chosen), most, seed)])

    embedding.fit(sample)
    vectors = embedding.vectors(_Texts(store, chosen), _Ids(store, chosen), role="passage", name="vectors")  # type: ignore[arg-type]
    known = _with_vector(vectors[0])
    if len(known) < needed:
        raise UserError(
            f"mine.teacher on {len(chosen)} documents",
            f"knows words of only {len(known)} of them, mine.neighbors and the last rank need {needed}",
            "lower mine.teacher.min_documents or mine.neighbors, or give [corpus] more text",
        )
    if len(known) < len(chosen):
        vectors = [RowsOf(found, known) for found in vectors]
    numbers = chosen[known]
    codes = np.asarray([language_number(name) for name in store.languages], dtype=np.int64)
    side = side_of(
        (store.text(int(row)) for row in numbers), vectors[0], documents=store.documents[numbers],
        languages=codes[store.language_codes[numbers]], sketches=needs_sketches(config),
        second=vectors[1] if len(vectors) > 1 else None,
    )  # fmt: skip
    return Pool(store, numbers, side, embedding.teachers, len(chosen) - len(known))


def _with_vector(vectors: Vectors) -> NDArray[np.int64]:
    """Rows that are not all zero."""
    import numpy as np

    step = 1 << 15
    parts = [
        start + np.flatnonzero(vectors.read(start, min(start + step, vectors.rows)).any(axis=1))
        for start in range(0, vectors.rows, step)
    ]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)
