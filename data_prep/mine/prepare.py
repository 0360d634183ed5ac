"""From documents to what mining searches: who embeds, the vectors, and the facts that the rules read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.embed.documents import embed_documents
from data_prep.embed.store import embed_texts
from data_prep.embed.teacher import TeacherConfig, fit_teacher
from data_prep.embed.vectors import ArrayVectors, Vectors
from data_prep.errors import UserError, within
from data_prep.fanout import Fanout
from data_prep.mine.config import MineConfig
from data_prep.mine.sides import RowsOf, Side, language_number, side_of
from data_prep.progress import Progress
from data_prep.text_store import TextStore

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Role, Teacher

_STEP = 1 << 15
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
        place: outlives a crash: what is embedded there is not embedded again.
        cache: of all teachers' vectors; None keeps none. fanout: shares the embedding of documents.
        table: of the recipe that names the teachers, for messages.
    """

    def __init__(
        self,
        config: MineConfig,
        *,
        out: Path,
        place: Path,
        cache: Path | None,
        fanout: Fanout | None,
        seed: int,
        progress: Progress,
        table: str = "mine",
    ) -> None:
        self._config, self._out, self._place, self._cache, self._fanout = config, out, place, cache, fanout
        self._table = table
        self._seed, self._progress = seed, progress
        self.teachers: list[Teacher] = []

    def _configs(self) -> list[tuple[str, TeacherConfig]]:
        second = self._config.second_teacher
        named = [("teacher", self._config.teacher)]
        return [*named, ("second_teacher", second)] if second and self._config.policy.on("second_teacher") else named

    def fit(self, texts: Callable[[int], list[str]]) -> None:
        """Make the teachers. `texts(most)` gives at most so many texts of the corpus, to learn from."""
        for name, config in self._configs():
            sample = texts(config.fit_documents) if config.kind == "tfidf" else []
            with within(f"{self._table}.{name}"):
                made = fit_teacher(
                    config,
                    sample,
                    out=self._out / name,
                    seed=self._seed,
                    progress=self._progress,
                    log=self._place / "requests",
                )
            self.teachers.append(made)

    def _in_memory(self, teacher: Teacher, config: TeacherConfig, count: int) -> bool:
        return config.kind == "tfidf" and count * teacher.dimension * 4 <= _IN_MEMORY_BYTES

    def _here(self, texts: Callable[[int, int], list[str]], count: int, teacher: Teacher, role: Role) -> Vectors:
        """Vectors in memory; `texts(start, stop)` gives them piece by piece."""
        import numpy as np

        array = np.zeros((count, teacher.dimension), dtype=np.float32)
        for start in range(0, count, _STEP):
            stop = min(start + _STEP, count)
            array[start:stop] = teacher.embed(texts(start, stop), role=role, progress=self._progress)
        return ArrayVectors(array, normalised=teacher.normalised)

    def texts(self, texts: Sequence[str], ids: Sequence[str], *, role: Role, name: str) -> list[Vectors]:
        """The vectors of texts by every teacher."""
        found: list[Vectors] = []
        for (label, config), teacher in zip(self._configs(), self.teachers, strict=True):
            if self._in_memory(teacher, config, len(texts)):
                found.append(self._here(lambda start, stop: list(texts[start:stop]), len(texts), teacher, role))
                continue
            folder = self._place / "vectors" / f"{name}-{label}"
            items = zip(ids, texts, strict=True)
            found.append(
                embed_texts(
                    items, teacher, role=role, folder=folder, cache=self._cache, progress=self._progress,
                    total=len(texts),
                )
            )  # fmt: skip
        return found

    def rows(self, store: TextStore, rows: NDArray[np.int64], *, role: Role, name: str) -> list[Vectors]:
        """The vectors of some rows of a store by every teacher."""
        found: list[Vectors] = []
        for (label, config), teacher in zip(self._configs(), self.teachers, strict=True):
            if self._in_memory(teacher, config, len(rows)):
                found.append(self._here(lambda start, stop: store.texts(rows[start:stop]), len(rows), teacher, role))
                continue
            found.append(
                embed_documents(
                    store.folder, self._out / label, role=role, folder=self._place / "vectors" / f"{name}-{label}",
                    fanout=self._fanout, scratch=self._place / "embedding" / f"{name}-{label}", cache=self._cache,
                    progress=self._progress, rows=rows, texts=store, teacher=teacher,
                )
            )  # fmt: skip
        return found


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
    vectors = embedding.rows(store, chosen, role="passage", name="corpus")
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
