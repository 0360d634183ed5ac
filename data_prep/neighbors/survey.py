"""One look at all vectors before a search: are they what they claim to be, how long is the longest, which are they."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.neighbors.scoring import Metric

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors

_ROWS = 4096
_LONGEST = 1e18
_OFF = 0.01
"""How far a row that is marked as normalised may be from length 1: float16 rounding takes less than 0.001."""


@dataclass(frozen=True)
class Survey:
    """What is known of some vectors.

    Attributes:
        norm: not less than the length of the longest row, within 0.1 %.
        zero_row: the first row that is all zero, -1 for none.
        digest: of the values; empty where it was not asked for.
    """

    norm: float
    zero_row: int
    digest: str


def survey(vectors: Vectors, name: str, metric: Metric | None, *, digest: bool) -> Survey:
    """Read all rows once.

    Args:
        name: `query` or `corpus`, for messages.
        metric: `cosine` needs rows of length 1 (or all zero); None, any product, does not.

    Raises:
        UserError: NaN or infinity, a row too long to compute with, or a row that is not normalised (it is named).
    """
    import numpy as np

    if metric == "cosine" and not vectors.normalised:
        raise UserError(
            f"{name} vectors that are not normalised",
            "have no cosine that an inner product could give",
            "normalise them, or search with the euclidean metric",
        )
    named = getattr(vectors, "fingerprint", None)
    told = hashlib.blake2b(digest_size=12) if digest and named is None else None
    longest, zero = 0.0, -1
    for start in range(0, vectors.rows, _ROWS):
        rows = vectors.read(start, min(start + _ROWS, vectors.rows))
        if told:
            told.update(np.ascontiguousarray(rows).data)
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.einsum("ij,ij->i", rows, rows)
        _check(rows, squares, start, name, metric)
        longest = max(longest, float(squares.max(initial=0.0)))
        if zero < 0 and not squares.all():
            empty = np.flatnonzero(~rows.any(axis=1))
            zero = start + int(empty[0]) if len(empty) else -1
    content = told.hexdigest() if told else str(named)
    return Survey(
        norm=longest**0.5 * 1.0005 + 1e-30,
        zero_row=zero,
        digest=f"{content}-{vectors.rows}-{vectors.dimension}" if digest else "",
    )


def _check(
    rows: NDArray[np.float32], squares: NDArray[np.float32], start: int, name: str, metric: Metric | None
) -> None:
    import numpy as np

    wrong = ~(squares < _LONGEST**2)
    if wrong.any():
        row = int(wrong.argmax())
        finite = bool(np.isfinite(rows[row]).all())
        raise UserError(
            f"{name} vector of row {start + row}",
            f"is longer than {_LONGEST:g}" if finite else "holds NaN or infinity",
            "scale the vectors down" if finite else "remove that text or mend the embedder",
        )
    if metric == "cosine":
        off = (np.abs(np.sqrt(squares) - 1) > _OFF) & (squares > 0)
        if off.any():
            row = int(off.argmax())
            raise UserError(
                f"{name} vector of row {start + row}",
                f"is marked as normalised and has length {squares[row] ** 0.5:.4f}",
                "normalise the vectors, or say that they are not and search with the euclidean metric",
            )
