"""A ready model as teacher or baseline, through sentence-transformers.

Texts are batched by length, longest first (little padding, and the largest batch comes first, so a model that does not
fit fails at once), and the vectors are returned in the order of the texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from data_prep.embed.embedder import unit_rows
from data_prep.embed.teacher import model_path
from data_prep.errors import UserError
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Role
    from data_prep.embed.teacher import TeacherConfig

_CALL_BATCHES = 16


class SentenceTransformersEmbedder:
    """A sentence-transformers model; an `Embedder`. Runs on the GPU where there is one.

    Raises:
        UserError: the model cannot be loaded (no such folder or id, no network, a model that needs its own code).
    """

    def __init__(self, config: TeacherConfig) -> None:
        from sentence_transformers import SentenceTransformer

        model = config.model or ""
        path = model_path(model)
        try:
            self._model = SentenceTransformer(path, trust_remote_code=False)
        except Exception as error:  # the hub client, transformers and torch each raise their own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise UserError(
                f"model {model!r}", f"cannot be loaded ({reason})", "give a model folder or a Hugging Face id"
            ) from error
        if config.max_tokens is not None:
            self._model.max_seq_length = config.max_tokens
        self.name = model
        self.dimension = int(self._model.get_embedding_dimension() or 0)
        self._batch_size = config.batch_size
        self._prefix: dict[Role, str] = {"query": config.query_prefix, "passage": config.passage_prefix}

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """[len(texts), dimension], rows L2-normalised."""
        import numpy as np

        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda row: (-len(texts[row]), row))
        if progress:
            progress.begin("embed", len(texts), "texts")
        step = self._batch_size * _CALL_BATCHES
        for start in range(0, len(order), step):
            rows = order[start : start + step]
            vectors[rows] = self._model.encode(
                [self._prefix[role] + texts[row] for row in rows],
                batch_size=self._batch_size,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            if progress:
                progress.advance(len(rows))
        return unit_rows(vectors)
