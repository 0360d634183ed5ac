"""Retrieval metrics per query, and what is known about their means.

Invariant: a metric is a pure function of one ranked list and its relevant documents, so every mean, subset and interval
in a result can be recomputed from the stored rankings. Ranked lists are document indices, best first, without
duplicates; ties were broken by the lower index before they get here. Relevance is binary.

Lists may be shorter than the corpus. Then `map` and `r_precision` know nothing of what stands below them: `map` is
MAP@depth (a relevant document that was not reached adds 0 to the sum and still counts in the number it is divided by),
and a query with more relevant documents than the list is long has an R-precision that is a lower bound. Both are what
trec_eval says of the same lists; where a list holds the whole corpus they are the plain figures.

Intervals are percentile bootstrap over queries (Efron 1979). All systems are resampled with the same draws, so the
difference of two systems has an interval of its own (paired); a macro mean over sets resamples inside every set
(stratified).
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
CUTOFF = 10
"""nDCG and MRR are read at this rank, as in BEIR and MS MARCO."""

_BLOCK_CELLS = 4_000_000  # of the resampling matrix at a time: 32 MB


def hits(ranked: NDArray[np.int64], relevant: Sequence[Collection[int]]) -> NDArray[np.bool_]:
    """Which ranked documents are relevant: bool [queries, depth].

    Args:
        ranked: [queries, depth] document indices, best first.
        relevant: for each query the indices of its relevant documents.
    """
    import numpy as np

    if len(relevant) != len(ranked):
        raise ValueError(f"{len(ranked)} ranked lists for {len(relevant)} queries")
    width = int(max(ranked.max(initial=0), max((max(r, default=0) for r in relevant), default=0))) + 1
    rows = np.arange(len(ranked), dtype=np.int64)[:, None]
    pairs = [query * width + document for query, found in enumerate(relevant) for document in found]
    marked: NDArray[np.bool_] = np.isin(rows * width + ranked, np.asarray(pairs, dtype=np.int64))
    return marked


def _counts(relevant: Sequence[Collection[int]]) -> NDArray[np.float64]:
    import numpy as np

    counts = np.array([len(set(found)) for found in relevant], dtype=np.float64)
    if (counts == 0).any():
        raise ValueError(f"query {int(np.argmin(counts))} has no relevant document; it cannot be scored")
    return counts


def recall_at_k(ranked: NDArray[np.int64], relevant: Sequence[Collection[int]], *, k: int) -> NDArray[np.float64]:
    """The part of the relevant documents that is among the first k: float64 [queries], 0 to 1."""
    return _recall(hits(ranked[:, :k], relevant), _counts(relevant), k)


def success_at_k(ranked: NDArray[np.int64], relevant: Sequence[Collection[int]], *, k: int) -> NDArray[np.float64]:
    """1 where any relevant document is among the first k, else 0: float64 [queries].

    With one relevant document a query this is recall@k.
    """
    _counts(relevant)
    return _success(hits(ranked[:, :k], relevant), k)


def ndcg_at_k(
    ranked: NDArray[np.int64], relevant: Sequence[Collection[int]], *, k: int = CUTOFF
) -> NDArray[np.float64]:
    """Discounted gain 1/log2(rank + 1) of the relevant among the first k over the best possible one: float64 [queries].

    Binary gains; the ideal list holds min(k, relevant) hits first
    (Järvelin and Kekäläinen 2002; as trec_eval's ndcg_cut).
    """
    return _ndcg(hits(ranked[:, :k], relevant), _counts(relevant), k)


def mrr_at_k(ranked: NDArray[np.int64], relevant: Sequence[Collection[int]], *, k: int = CUTOFF) -> NDArray[np.float64]:
    """One over the rank of the first relevant document, 0 where none is among the first k: float64 [queries]."""
    _counts(relevant)
    return _mrr(hits(ranked[:, :k], relevant), k)


def average_precision(ranked: NDArray[np.int64], relevant: Sequence[Collection[int]]) -> NDArray[np.float64]:
    """Precision at the rank of each relevant document, summed, over their number: float64 [queries].

    Documents that the list does not hold add 0 (see the module); as trec_eval's `map` of the same list.
    """
    return _average_precision(hits(ranked, relevant), _counts(relevant))


def r_precision(ranked: NDArray[np.int64], relevant: Sequence[Collection[int]]) -> NDArray[np.float64]:
    """The part of the first R documents that is relevant, R being how many there are: float64 [queries].

    As trec_eval's `Rprec` of the same list; see the module for lists shorter than R.
    """
    return _r_precision(hits(ranked, relevant), _counts(relevant))


def _recall(marked: NDArray[np.bool_], counts: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    found: NDArray[np.float64] = marked[:, :k].sum(axis=1) / counts
    return found


def _success(marked: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    import numpy as np

    found: NDArray[np.float64] = np.asarray(marked[:, :k].any(axis=1), dtype=np.float64)
    return found


def _ndcg(marked: NDArray[np.bool_], counts: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    import numpy as np

    discount = 1.0 / np.log2(np.arange(2, k + 2, dtype=np.float64))
    marked = marked[:, :k]
    gained = marked @ discount[: marked.shape[1]]
    ideal = np.cumsum(discount)[np.minimum(counts, k).astype(np.int64) - 1]
    score: NDArray[np.float64] = gained / ideal
    return score


def _mrr(marked: NDArray[np.bool_], k: int) -> NDArray[np.float64]:
    import numpy as np

    marked = marked[:, :k]
    if not marked.size:
        return np.zeros(len(marked))
    rank: NDArray[np.float64] = np.where(marked.any(axis=1), 1.0 / (marked.argmax(axis=1) + 1.0), 0.0)
    return rank


def _average_precision(marked: NDArray[np.bool_], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    precision = np.cumsum(marked, axis=1) / np.arange(1, marked.shape[1] + 1, dtype=np.float64)
    score: NDArray[np.float64] = (precision * marked).sum(axis=1) / counts
    return score


def _r_precision(marked: NDArray[np.bool_], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    within = np.arange(marked.shape[1]) < counts[:, None]
    score: NDArray[np.float64] = (marked & within).sum(axis=1) / counts
    return score


def metric_names(ks: Sequence[int]) -> list[str]:
    """The metrics that tables show, in their order: recall@k for every k, then nDCG and MRR."""
    return [*(f"recall@{k}" for k in ks), f"ndcg@{CUTOFF}", f"mrr@{CUTOFF}"]


def all_metric_names(ks: Sequence[int]) -> list[str]:
    """Every metric that results hold: those of `metric_names`, success@k for every k, `map` and `r_precision`."""
    return [*metric_names(ks), *(f"success@{k}" for k in ks), "map", "r_precision"]


def lead_metric(ks: Sequence[int]) -> str:
    """The metric of headlines: recall@10, or recall at the largest k where 10 is not among them."""
    return f"recall@{10 if 10 in ks else ks[-1]}"


def per_query(
    ranked: NDArray[np.int64], relevant: Sequence[Collection[int]], *, ks: Sequence[int]
) -> NDArray[np.float64]:
    """All metrics of `all_metric_names(ks)` for every query: float64 [queries, metrics]."""
    import numpy as np

    marked, counts = hits(ranked, relevant), _counts(relevant)
    return np.stack(
        [
            *(_recall(marked, counts, k) for k in ks),
            _ndcg(marked, counts, CUTOFF),
            _mrr(marked, CUTOFF),
            *(_success(marked, k) for k in ks),
            _average_precision(marked, counts),
            _r_precision(marked, counts),
        ],
        axis=1,
    )


def generator(seed: int, *names: str) -> np.random.Generator:
    """A generator for one named purpose: the same draws for every system, independent of what else is evaluated."""
    import numpy as np

    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def bootstrap_means(values: NDArray[np.float64], *, samples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Means over queries drawn with replacement: float64 [samples, metrics] of per-query `values` [queries, metrics].

    A draw is kept as how often each query was drawn, so that all means are one matrix product.
    """
    import numpy as np

    queries = len(values)
    if queries == 0:
        raise ValueError("no query to resample")
    block = max(1, _BLOCK_CELLS // queries)
    means = []
    for start in range(0, samples, block):
        rows = min(block, samples - start)
        drawn = rng.integers(0, queries, size=(rows, queries)) + np.arange(rows)[:, None] * queries
        weights = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        means.append(weights @ values / queries)
    return np.concatenate(means)


def interval(means: NDArray[np.float64], *, level: float = LEVEL) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper percentile bounds ([metrics] each) of resampled `means` [samples, metrics]."""
    import numpy as np

    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high


def summary(names: Sequence[str], mean: NDArray[np.float64], means: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Metric name → its mean with the bounds of its interval, rounded to 6 decimals so that files stay the same.

    Args:
        names: the metrics, as many as columns.
        mean: [metrics] the observed means.
        means: [samples, metrics] the resampled means.
    """
    low, high = interval(means)
    return {
        name: {"mean": round(float(m), 6), "low": round(float(lo), 6), "high": round(float(hi), 6)}
        for name, m, lo, hi in zip(names, mean, low, high, strict=True)
    }
