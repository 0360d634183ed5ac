"""The round trip: a question is only good if a teacher finds its chunk with it, among all chunks of the run.

Invariant: a candidate passes when each of its chunks, or a chunk of the same text, is among the k nearest of the
question. Vectors lie on disk; memory holds a block of questions and what the search is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.embed.store import StoredVectors, embed_texts
from data_prep.errors import within
from data_prep.files import content_id
from data_prep.progress import Progress
from data_prep.shards import Shards
from data_prep.synth.config import SynthConfig

if TYPE_CHECKING:
    from data_prep.embed.embedder import Teacher

_BLOCK = 2048


class RoundTrip:
    """Finds chunks with questions.

    Args:
        config: k and the teacher, which is fitted on the chunks where it is TF-IDF.
        folders: shard folders with all chunks of the run, in order.
        teacher: a ready one, instead of the config's.
        scratch: where the vectors lie; what a killed run embedded is kept.
        cache: folder of all teachers' vectors.

    Raises:
        UserError: the teacher cannot be made.
    """

    def __init__(
        self,
        config: SynthConfig,
        folders: Sequence[Path],
        *,
        teacher: Teacher | None,
        seed: int,
        scratch: Path,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        assert config.filters.round_trip is not None
        self._folders, self._progress = folders, progress
        self.rows = sum(len(Shards(folder, "documents", verify=False)) for folder in folders)
        self.k = min(config.filters.round_trip, self.rows)
        self.teacher = teacher or self._fit(config, seed, scratch)
        texts = ((content_id(row["text"]), row["text"]) for row in self._chunks())
        self._vectors: StoredVectors = embed_texts(
            texts,
            self.teacher,
            role="passage",
            folder=scratch / "vectors",
            cache=cache,
            progress=progress,
            total=self.rows,
        )

    def told(self, styles: Sequence[str]) -> dict[str, Any]:
        """What the report says: the teacher, k, how many chunks were searched, which styles made the trip."""
        return {"name": self.teacher.name, "k": self.k, "chunks": self.rows, "styles": list(styles)}

    def _chunks(self) -> Iterator[dict[str, Any]]:
        for folder in self._folders:
            yield from Shards(folder, "documents", verify=False)

    def _fit(self, config: SynthConfig, seed: int, scratch: Path) -> Teacher:
        from data_prep.embed.teacher import fit_teacher

        step = max(1, self.rows // config.teacher.fit_documents)
        sample = [row["text"] for row in islice(self._chunks(), 0, None, step)]
        with within("synth.teacher"):
            return fit_teacher(config.teacher, sample, out=scratch / "teacher", seed=seed, progress=self._progress)

    def found(self, candidates: Sequence[dict[str, Any]]) -> list[bool]:
        """Whether each candidate's question finds all of its chunks."""
        from data_prep.embed.vectors import ArrayVectors
        from data_prep.neighbors.search import search

        verdicts: list[bool] = []
        for start in range(0, len(candidates), _BLOCK):
            block = candidates[start : start + _BLOCK]
            vectors = self.teacher.embed([one["query"] for one in block], role="query")
            queries = ArrayVectors(vectors, normalised=self.teacher.normalised)
            indices = search(queries, self._vectors, k=self.k).indices  # silently: the questions have a bar
            for one, nearest in zip(block, indices, strict=True):
                texts = {self._vectors.ids[row].tobytes() for row in nearest if row >= 0}
                verdicts.append(all(self._vectors.ids[row].tobytes() in texts for row in one["chunks"]))
        return verdicts
