"""Rows of vectors, wherever they lie, read in blocks.

Invariant: a row reads as the same float32 values in whatever block it is read. Vectors know whether they were
normalised, and the two kinds are never mixed: a distance between them means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from data_prep.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@runtime_checkable
class Vectors(Protocol):
    """`rows` vectors of `dimension` numbers.

    Attributes:
        normalised: whether every row (but all-zero ones) was divided by its length.
    """

    rows: int
    dimension: int
    normalised: bool

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32 [stop - start, dimension]."""
        ...

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows, in the given order."""
        ...


class ArrayVectors:
    """Vectors in memory (or in a memory map): float32 or float16 [rows, dimension].

    Raises:
        UserError: another dtype, another number of axes.
    """

    def __init__(self, array: NDArray[Any], *, normalised: bool) -> None:
        if array.ndim != 2 or array.dtype.name not in ("float32", "float16"):
            raise UserError(
                f"vectors of shape {array.shape} and type {array.dtype}",
                "must be float32 or float16 with two axes",
                "embed the texts again",
            )
        self._array = array
        self.rows, self.dimension = int(array.shape[0]), int(array.shape[1])
        self.normalised = normalised

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32."""
        import numpy as np

        return np.asarray(self._array[start:stop], dtype=np.float32)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows, in the given order."""
        import numpy as np

        return np.asarray(self._array[np.asarray(rows, dtype=np.int64)], dtype=np.float32)


def check_same_kind(queries: Vectors, corpus: Vectors) -> None:
    """Raises `UserError` where two sets of vectors cannot be compared: other dimension, or only one is normalised."""
    if queries.dimension != corpus.dimension:
        raise UserError(
            f"query vectors of dimension {queries.dimension}, corpus vectors of dimension {corpus.dimension}",
            "must be of one teacher",
            "embed both with the same teacher",
        )
    if queries.normalised != corpus.normalised:
        raise UserError(
            f"query vectors {'' if queries.normalised else 'not '}normalised, "
            f"corpus vectors {'' if corpus.normalised else 'not '}normalised",
            "must be both or neither: their distances have two scales",
            "embed both with the same teacher settings",
        )
