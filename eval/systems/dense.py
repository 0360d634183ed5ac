"""Dense retrieval: any embedder's vectors searched exactly, and published sentence-transformers models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_prep.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder
    from data_prep.progress import Progress

PACKAGE_PREFIX = "package:"


def finite_vectors(
    embedder: Embedder, texts: Sequence[str], *, role: Literal["query", "passage"], name: str
) -> NDArray[np.float32]:
    """The vectors [len(texts), dimension] of an embedder, looked through.

    Args:
        name: what errors call the system.

    Raises:
        UserError: an embedding is not finite; names the system and the first such text.
    """
    import numpy as np

    vectors = embedder.embed(texts, role=role)
    if vectors.shape != (len(texts), embedder.dimension):
        raise RuntimeError(f"{name}: embeddings have shape {vectors.shape}, not {(len(texts), embedder.dimension)}")
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        shown = texts[first] if len(texts[first]) <= 80 else texts[first][:79] + "…"
        raise UserError(
            f"system {name}: the embedding of the {role} {shown!r}",
            f"holds NaN or infinity ({int(bad.sum())} of {len(texts)} {role} texts do)",
            "the model has diverged: lower the learning rate and train again, or leave the system out of [eval]",
        )
    return vectors


class DenseRanker:
    """Cosine similarity of an embedder's vectors, searched exactly.

    Args:
        embedder: any `Embedder`.
        name: what errors call the system (default: the embedder's name).
    """

    def __init__(self, embedder: Embedder, *, name: str | None = None) -> None:
        self.embedder = embedder
        self.name = name or embedder.name
        self._last: tuple[list[str], NDArray[np.float32]] | None = None

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Ranker.rank`. Raises `UserError` naming system and text where an embedding is not finite."""
        from data_prep.neighbors.search import top_k

        # Sets often ask the same documents: those of the set before are embedded once.
        if self._last is None or self._last[0] != list(documents):
            self._last = list(documents), finite_vectors(self.embedder, documents, role="passage", name=self.name)
        asked = finite_vectors(self.embedder, queries, role="query", name=self.name)
        scores, indices = top_k(asked, self._last[1], k=min(k, len(documents)), backend="exact")
        return indices, scores


class SentenceTransformerEmbedder:
    """A published sentence-transformers model behind the `Embedder` protocol, asked as its authors meant it.

    Unlike the teacher, which takes its prefixes from the recipe, a baseline uses the prompts for queries and documents
    that the model itself was saved with.

    Args:
        model: a folder, a Hugging Face id, or `package:NAME` for a model that an installed Python package carries.
        max_length: cut texts after this many tokens (None: the model's own limit).
        batch_size: texts in one forward pass.

    Raises:
        UserError: no such package, folder or model.
    """

    def __init__(self, model: str, *, max_length: int | None = None, batch_size: int = 32) -> None:
        from sentence_transformers import SentenceTransformer

        from data_prep.embed.teacher import model_path

        self.name = model.removeprefix(PACKAGE_PREFIX)
        place = Path(model_path(model)).expanduser()
        try:
            self._model = SentenceTransformer(str(place) if place.is_dir() else model, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"eval.baselines: {model!r}",
                f"cannot be loaded as a sentence-transformers model ({str(error).splitlines()[0][:160]})",
                "give a folder, a model id of the Hugging Face Hub (and a network), or package:NAME",
            ) from error
        if max_length is not None:
            self._model.max_seq_length = min(max_length, self._model.max_seq_length or max_length)
        self._batch_size = batch_size
        dimension = self._model.get_embedding_dimension()
        if dimension is None:
            raise UserError(f"eval.baselines: {model!r}", "does not say its dimension", "use a dense embedding model")
        self.dimension = int(dimension)

    def embed(
        self, texts: Sequence[str], *, role: Literal["query", "passage"], progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """See `data_prep.embed.Embedder`."""
        import numpy as np

        encode = self._model.encode_query if role == "query" else self._model.encode_document
        vectors = encode(
            list(texts),
            batch_size=self._batch_size,
            show_progress_bar=False,
            convert_to_numpy=True,
            normalize_embeddings=True,
        )
        if progress is not None:
            progress.advance(len(texts))
        return np.asarray(vectors, dtype=np.float32).reshape(len(texts), self.dimension)
