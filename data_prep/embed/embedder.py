"""What an embedder is, what a teacher says about itself besides, and unit vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["query", "passage"]
ROLES: tuple[Role, ...] = ("query", "passage")
_BLOCK = 256


@runtime_checkable
class Embedder(Protocol):
    """Anything that embeds text: a teacher, a baseline, the trained model."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        ...

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """[len(texts), dimension], rows L2-normalised (an all-zero row stays zero)."""
        ...


@runtime_checkable
class Teacher(Embedder, Protocol):
    """An embedder whose vectors may be kept: it says what they depend on.

    Attributes:
        hash: digest of all that its vectors depend on besides the text and its prompt: kind, weights, settings.
        normalised: whether `embed` gives unit rows; raw rows otherwise.
        may_be_zero: whether an all-zero row is a fair answer (no known word) and no fault of the model.
    """

    hash: str
    normalised: bool
    may_be_zero: bool

    def prompt(self, role: Role) -> str:
        """What goes before a text in this role; two roles with one prompt have the same vectors."""
        ...


def unit_rows(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The rows divided by their L2 norm (taken in float64); an all-zero row stays zero.

    A row comes out the same to the bit whatever rows stand beside it.
    """
    import numpy as np

    unit = np.empty(vectors.shape, dtype=np.float32)
    for start in range(0, len(vectors), _BLOCK):
        # Cast first: NumPy's casting buffers cut rows in the middle, so that a sum would depend on the row's place.
        exact = vectors[start : start + _BLOCK].astype(np.float64)
        norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
        norms[norms == 0] = 1.0
        unit[start : start + _BLOCK] = exact / norms[:, None]
    return unit
