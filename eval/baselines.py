"""Rankers: anything that puts the documents of a set in order for each query.

Invariant: a ranking is a pure function of the texts. Best first, no document twice, equal scores by the lower index:
the same as `data_prep.neighbors.top_k`, so a system cannot gain by the order in which a library breaks ties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from data_prep.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder
    from data_prep.progress import Progress

BM25_K1 = 1.2
BM25_B = 0.75
PACKAGE_PREFIX = "package:"


class Ranker(Protocol):
    """Orders documents for queries."""

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The best `min(k, len(documents))` documents of each query.

        Returns:
            indices: int64 [queries, k], best first.
            scores: float32 [queries, k], never rising along a row.
        """


def ordered_top_k(scores: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and scores of the `k` highest of `scores` [documents], best first, ties by the lower index."""
    import numpy as np

    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k] if k < len(scores) else -np.inf
    candidates = np.flatnonzero(scores >= threshold)  # ascending, so a stable sort keeps the lower index first
    best = candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
    return best.astype(np.int64), scores[best]


@cache
def _word_pattern() -> Any:
    import regex

    # Letters with their combining marks: the standard library's \w ends a Tamil or Thai word at every vowel sign.
    unspaced = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Han}\p{Hiragana}\p{Katakana}]"
    spaced = rf"(?!{unspaced})[\p{{L}}\p{{N}}_]"
    return regex.compile(rf"(?P<unspaced>(?:{unspaced}\p{{M}}*)+)|(?P<word>(?:{spaced}\p{{M}}*)+)")


def bm25_tokens(text: str) -> list[str]:
    """Lower-cased words of a text; runs of scripts without spaces (Thai, Chinese …) become character 2- and 3-grams."""
    return list(_tokens(text.lower()))


def _tokens(text: str) -> Iterator[str]:
    for match in _word_pattern().finditer(text):
        piece = match.group()
        if match.lastgroup == "word" or len(piece) == 1:
            yield piece
            continue
        for size in (2, 3):
            yield from (piece[i : i + size] for i in range(len(piece) - size + 1))


class BM25Ranker:
    """BM25 (Robertson and Zaragoza 2009) over the documents it is given, by bm25s; k1 = 1.2, b = 0.75.

    A word counts once however often the query repeats it: a stronger baseline on long, chatty queries.
    """

    def __init__(self, *, k1: float = BM25_K1, b: float = BM25_B) -> None:
        self.k1, self.b = k1, b

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Ranker.rank`. A query that shares no word with any document scores 0 everywhere."""
        import bm25s
        import numpy as np

        tokens = [bm25_tokens(document) for document in documents]
        index = bm25s.BM25(k1=self.k1, b=self.b)
        vocabulary: dict[str, int] = {}
        if any(tokens):  # bm25s cannot index documents without a single word
            index.index(tokens, show_progress=False)
            vocabulary = index.vocab_dict
        rows = []
        for query in queries:
            known = [t for t in dict.fromkeys(bm25_tokens(query)) if t in vocabulary]
            scores = np.zeros(len(documents), dtype=np.float32) if not known else index.get_scores(known)
            rows.append(ordered_top_k(np.asarray(scores, dtype=np.float32), k))
        return np.stack([indices for indices, _ in rows]), np.stack([scores for _, scores in rows])


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

    def _embed(self, texts: Sequence[str], role: Literal["query", "passage"]) -> NDArray[np.float32]:
        import numpy as np

        vectors = self.embedder.embed(texts, role=role)
        if vectors.shape != (len(texts), self.embedder.dimension):
            raise RuntimeError(
                f"{self.name}: embeddings have shape {vectors.shape}, not {(len(texts), self.embedder.dimension)}"
            )
        bad = ~np.isfinite(vectors).all(axis=1)
        if bad.any():
            first = int(bad.argmax())
            shown = texts[first] if len(texts[first]) <= 80 else texts[first][:79] + "…"
            raise UserError(
                f"system {self.name}: the embedding of the {role} {shown!r}",
                f"holds NaN or infinity ({int(bad.sum())} of {len(texts)} {role} texts do)",
                "the model has diverged: lower the learning rate and train again, or leave the system out of [eval]",
            )
        return vectors

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """See `Ranker.rank`. Raises `UserError` naming system and text where an embedding is not finite."""
        from data_prep.neighbors.search import top_k

        # Sets often ask the same documents: those of the set before are embedded once.
        if self._last is None or self._last[0] != list(documents):
            self._last = list(documents), self._embed(documents, "passage")
        asked = self._embed(queries, "query")
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
