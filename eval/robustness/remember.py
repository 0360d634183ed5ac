"""An embedder that embeds each passage once, for corpora that differ in a few documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder
    from data_prep.progress import Progress


class Remembering:
    """Another embedder with a memory for passages; queries are asked anew.

    It holds the vectors of every passage since `forget`: 4 bytes a number.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder
        self.name, self.dimension = embedder.name, embedder.dimension
        self._known: dict[str, NDArray[np.float32]] = {}

    def forget(self) -> None:
        """Drop all vectors."""
        self._known.clear()

    def embed(
        self, texts: Sequence[str], *, role: Literal["query", "passage"], progress: Progress | None = None
    ) -> NDArray[np.float32]:
        """See `data_prep.embed.Embedder`."""
        import numpy as np

        if role == "query" or not texts:
            return self._embedder.embed(texts, role=role, progress=progress)
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._embedder.embed(new, role=role, progress=progress), strict=True))
        return np.stack([self._known[text] for text in texts])
