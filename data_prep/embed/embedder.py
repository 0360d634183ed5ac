"""What an embedder is, and unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["query", "passage"]


@runtime_checkable
class Embedder(Protocol):
    """Anything that embeds text: a teacher, a baseline, the trained model.

    Attributes:
        name: what tables call it.
        dimension: length of a vector.
    """

    name: str
    dimension: int

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """[len(texts), dimension], rows L2-normalised (an all-zero row stays zero)."""
        ...


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows divided by their L2 norm (taken in float64); an all-zero row stays zero."""
    import numpy as np

    norms = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    norms[norms == 0] = 1.0
    unit: NDArray[np.float32] = (vectors / norms[:, None]).astype(np.float32)
    return unit
