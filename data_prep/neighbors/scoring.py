"""What a score is, exactly, and how far a score computed fast can be from it.

Invariant: a score is the inner product (or the distance) computed in float64 and rounded once to float32. The float64
sum has one order, `kernels.LANES` partial sums folded in halves, with numba and with torch, on CPU and GPU: so the
result depends neither on blocks nor on the backend nor on the machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from data_prep.embed.vectors import Vectors

Metric = Literal["cosine", "euclidean"]
LANES = 128
EMPTY = 2**63 - 1
"""The key of no neighbour; sorts behind every other."""
_WORTH = 50_000
"""Pairs from which on loading the compiled loops is worth its second."""
RESCORE_BYTES = 1 << 22
"""What a thread holds of the vectors that it scores."""


def slack_of(
    query_norms: NDArray[np.float64], corpus_norm: float, *, dimension: int, euclidean: bool
) -> NDArray[np.float32]:
    """Twice the largest error of a score computed in float32, for each query: [q] float32.

    Two rows whose computed scores differ by more are in their true order. The bound is the standard one for a sum of
    products in any order, dimension × unit roundoff × the norms; eight units more cover the rounding of the result, of
    |d|²/2 and of the comparison itself, and the smallest normal numbers cover underflow.
    """
    import numpy as np

    products = query_norms * corpus_norm
    reach = query_norms + corpus_norm
    error = (dimension + 8) * (products + (corpus_norm**2 / 2 if euclidean else 0.0)) * 2.0**-24
    if euclidean:
        error = error + 4 * reach**2 * 2.0**-24
    slack: NDArray[np.float32] = (2.01 * (error + (dimension + 8) * 2.0**-126)).astype(np.float32)
    return slack


def exact(queries: torch.Tensor, rows: torch.Tensor, *, euclidean: bool) -> torch.Tensor:
    """The score of each of m pairs: [m, d] and [m, d] float32 → [m] float32; a distance comes out negative."""
    import torch

    lanes = torch.zeros((len(queries), LANES), dtype=torch.float64, device=queries.device)
    for start in range(0, queries.shape[1], LANES):
        a, b = queries[:, start : start + LANES].double(), rows[:, start : start + LANES].double()
        if euclidean:
            a -= b
            b = a
        lanes[:, : a.shape[1]] += a * b
    half = LANES // 2
    while half:
        lanes[:, :half] += lanes[:, half : 2 * half]
        half //= 2
    total = -lanes[:, 0].sqrt() if euclidean else lanes[:, 0]
    return total.float() + 0.0  # no -0.0: it would lose ties against 0.0


def keys_of(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """int64 keys of float32 scores and corpus rows: ascending keys are the better score first, then the lower row."""
    import torch

    bits = scores.view(torch.int32).long()
    return (~torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits) << 32) | rows


def scores_of(keys: torch.Tensor) -> torch.Tensor:
    """The float32 scores in keys."""
    import torch

    bits = ~(keys >> 32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).int().view(torch.float32)


def results_of(keys: NDArray[np.int64], *, euclidean: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores (distances for euclidean) and corpus rows in keys; NaN and -1 for none."""
    import numpy as np

    bits = ~(keys >> 32)
    scores = np.where(bits < 0, bits ^ 0x7FFFFFFF, bits).astype(np.int32).view(np.float32)
    rows = keys & 0xFFFFFFFF
    none = keys == EMPTY
    return np.where(none, np.nan, 0 - scores if euclidean else scores).astype(np.float32), np.where(none, -1, rows)


def rescore(
    queries: NDArray[np.float32], corpus: Vectors, candidates: NDArray[np.int64], *, k: int, euclidean: bool
) -> NDArray[np.int64]:
    """Keys [q, k], ascending, of the best of candidates [q, c] (-1: none); [q, c] where there are fewer than k.

    Reads each candidate's vector from the corpus, in the order of the corpus, a bounded number at a time in each of
    torch's threads.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch

    keys = np.full(candidates.shape, EMPTY, dtype=np.int64)
    asker, column = np.nonzero(candidates >= 0)
    wanted = candidates[asker, column]
    compiled = len(wanted) > _WORTH and has_numba()
    order = np.argsort(wanted)
    asker, column, wanted = asker[order], column[order], wanted[order]
    fresh = np.diff(wanted, prepend=-1) > 0
    number = np.cumsum(fresh) - 1  # of the row among those that are read
    most = max(1, RESCORE_BYTES // ((4 if compiled else 32) * queries.shape[1]))
    if compiled:
        starts = np.searchsorted(number, np.arange(0, number[-1] + 1, most))
    else:
        starts = np.arange(0, len(wanted), most)

    def some(start: int, stop: int) -> None:
        part = slice(start, stop)
        inverse = number[part] - number[start]
        own = np.append(True, inverse[1:] > inverse[:-1])
        rows = np.ascontiguousarray(corpus.take(wanted[part][own]), dtype=np.float32)
        scores = score_pairs(queries, rows, asker[part], inverse, euclidean=euclidean, compiled=compiled)
        told = keys_of(torch.from_numpy(scores), torch.from_numpy(wanted[part]))
        keys[asker[part], column[part]] = told.numpy()

    stops = [*starts[1:], len(wanted)]
    if len(starts) < 2:
        list(map(some, starts, stops))
    else:
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            list(pool.map(some, starts, stops))
    keys.sort(axis=1)
    return keys[:, :k]


def score_pairs(
    queries: NDArray[np.float32],
    rows: NDArray[np.float32],
    left: NDArray[Any],
    right: NDArray[Any],
    *,
    euclidean: bool,
    compiled: bool,
) -> NDArray[np.float32]:
    """Scores [m] of queries[left[m]] and rows[right[m]]; the compiled loops give the same."""
    import numpy as np
    import torch

    scores = np.empty(len(left), dtype=np.float32)
    if compiled:
        from data_prep.neighbors import kernels

        kernels.pairs(queries, rows, left, right, euclidean, scores)
        return scores
    step = max(1, RESCORE_BYTES // (32 * queries.shape[1]))
    for start in range(0, len(left), step):
        a, b = queries[left[start : start + step]], rows[right[start : start + step]]
        scores[start : start + step] = exact(torch.from_numpy(a), torch.from_numpy(b), euclidean=euclidean).numpy()
    return scores


def has_numba() -> bool:
    """Whether the compiled loops can be used."""
    from importlib.util import find_spec

    return find_spec("numba") is not None
