"""Hubs: texts that are near to everything, and therefore everyone's negative.

In high dimensions some vectors are among the nearest of very many others (Radovanović et al. 2010). Corrected scores
make a text that lies in a crowded place come later; `k_occurrence` measures what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def crowding(
    scores: NDArray[np.float32], *, neighbors: int, kind: Literal["csls", "local_scaling"]
) -> NDArray[np.float32]:
    """How crowded the surroundings of each text are, [n], from the scores [n, k] of its nearest others, best first.

    `csls`: the mean score of the `neighbors` nearest. `local_scaling`: the distance to the last of them, of unit
    vectors.
    """
    import numpy as np

    nearest = scores[:, :neighbors].astype(np.float64)
    nearest = np.where(np.isfinite(nearest), nearest, np.nan)
    if kind == "csls":
        return np.nan_to_num(np.nanmean(nearest, axis=1)).astype(np.float32)
    farthest = np.nan_to_num(np.nanmin(nearest, axis=1), nan=-1.0)
    return np.sqrt(np.maximum(2 - 2 * farthest, 1e-12)).astype(np.float32)


def corrected(
    scores: NDArray[np.float32],
    of_queries: NDArray[np.float32],
    of_texts: NDArray[np.float32],
    *,
    kind: Literal["csls", "local_scaling"],
) -> NDArray[np.float32]:
    """Scores [q, m] that take crowding [q] and [q, m] into account; only their order means something.

    `csls`: 2 cos - r(query) - r(text) (arXiv 1710.04087). `local_scaling`: exp(-d² / (σ(query) σ(text)))
    (Zelnik-Manor and Perona 2004).
    """
    import numpy as np

    if kind == "csls":
        return 2 * scores - of_queries[:, None] - of_texts
    squared = np.maximum(2 - 2 * scores, 0)
    scaled: NDArray[np.float32] = np.exp(-squared / (of_queries[:, None] * of_texts))
    return scaled


def k_occurrence(rows: NDArray[np.int64], *, size: int) -> tuple[NDArray[np.int64], float]:
    """How often each of `size` texts occurs among the rows (-1 is none), and the skewness of that count.

    Skewness is the third standardised moment: about 0 where uses are spread by chance over many, large with hubs.
    """
    import numpy as np

    counts = np.bincount(rows[rows >= 0].ravel(), minlength=size).astype(np.int64)
    spread = counts.std()
    if not len(counts) or spread == 0:
        return counts, 0.0
    return counts, float((((counts - counts.mean()) / spread) ** 3).mean())
