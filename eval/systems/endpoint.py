"""An OpenAI-compatible embedding endpoint as a system.

Invariant: the key stays in the environment; no name, detail, log or file holds it. What was paid for is kept by model,
prefix and texts, so that neither a killed evaluation nor a second one pays again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from data_prep.embed.digest import digest_of
from data_prep.embed.endpoint import EndpointEmbedder
from data_prep.errors import UserError
from data_prep.files import disk_errors
from eval.systems.dense import DenseRanker

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from data_prep.progress import Progress
    from eval.systems.config import EndpointSystemConfig

_VECTORS = "vectors"


@contextmanager
def _of(title: str) -> Iterator[None]:
    """Say which endpoint a mistake is about: the client below knows its own table alone."""
    try:
        yield
    except UserError as error:
        value = error.value.removeprefix("endpoint").lstrip(":. ")
        raise UserError(f"eval.endpoints, {title}: {value}", error.rule, error.fix) from error


class StoredAnswers:
    """An endpoint's embedder that keeps the vectors of every call, exact (float32).

    Args:
        embedder: asks the endpoint.
        title: what errors call it.
        folder: of the kept vectors, one safetensors file a call; None keeps nothing.
    """

    def __init__(self, embedder: EndpointEmbedder, *, title: str, folder: Path | None) -> None:
        self._embedder, self._title, self._folder = embedder, title, folder
        self.name = embedder.name
        self._dimension: int | None = None

    @property
    def dimension(self) -> int:
        """Length of a vector; of kept ones where there are some, else the server is asked."""
        if self._dimension is None:
            with _of(self._title):
                self._dimension = self._embedder.dimension
        return self._dimension

    def embed(
        self, texts: Sequence[str], *, role: Literal["query", "passage"], progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """See `data_prep.embed.Embedder`. Raises `UserError` as `EndpointEmbedder.embed`."""
        place = self._place(texts, role)
        vectors = self._kept(place, len(texts))
        if vectors is None:
            with _of(self._title):
                vectors = self._embedder.embed(texts, role=role, progress=progress)
            self._keep(place, vectors)
        elif progress is not None:
            progress.advance(len(texts))
        self._dimension = int(vectors.shape[1])
        return vectors

    def _place(self, texts: Sequence[str], role: Literal["query", "passage"]) -> Path | None:
        if self._folder is None or not texts:
            return None
        prefix = self._embedder.prompt(role)
        # what is asked, not in which part: one file serves two parts whose prefixes agree
        name = digest_of(model=self._embedder.hash, unit=self._embedder.normalised, texts=[prefix + t for t in texts])
        return self._folder / f"{name[:32]}.safetensors"

    def _kept(self, place: Path | None, count: int) -> NDArray[np.float32] | None:
        """Kept vectors [count, dimension], None where there are none or the file is not whole."""
        if place is None or not place.is_file():
            return None
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            vectors: NDArray[np.float32] = load_file(place)[_VECTORS]
        except (OSError, SafetensorError, KeyError):
            return None
        fits = vectors.ndim == 2 and len(vectors) == count and self._dimension in (None, vectors.shape[1])
        return vectors if fits else None

    def _keep(self, place: Path | None, vectors: NDArray[np.float32]) -> None:
        if place is None:
            return
        from safetensors.numpy import save

        from data_prep.files import write_atomically

        with disk_errors(place):
            place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, save({_VECTORS: vectors}))


def endpoint_ranker(config: EndpointSystemConfig, *, cache: Path | None = None) -> DenseRanker:
    """A ranker that asks the endpoint for its vectors.

    Args:
        config: one `[[eval.endpoints]]`.
        cache: folder for what was answered; None keeps nothing, and every evaluation asks again.

    Raises:
        UserError: the package `openai` or the key's variable is missing; later whatever `EndpointEmbedder.embed`
            raises.
    """
    # a folder for each model: a spending limit counts what its own log says
    folder = None if cache is None else cache / digest_of(**config.identity())[:32]
    with _of(config.title):
        embedder = EndpointEmbedder(
            config,
            query_prefix=config.query_prefix,
            passage_prefix=config.passage_prefix,
            log=folder / "requests" if folder is not None else None,  # of the call that a kill interrupts
        )
    kept = StoredAnswers(embedder, title=config.title, folder=folder / _VECTORS if folder is not None else None)
    return DenseRanker(kept, name=config.title)
