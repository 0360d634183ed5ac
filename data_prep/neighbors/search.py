"""The nearest neighbours of every query, exactly; and where a score stands among all of its query's scores.

Invariant: a score is the inner product computed in float64 and rounded once to float32 (a distance likewise);
neighbours are ordered by score, equal scores by the lower index. So neither block sizes, nor the number of threads or
processes, nor the backend changes a result. Every backend first collects candidates (fast, inexact in the last bits)
with a margin that covers their rounding error, and then scores the candidates alike.

Backends: `exact`, a blocked matrix product with a running top-k; on the GPU where there is one. `kdtree`,
scipy.spatial.KDTree, as arXiv 2402.03053 mined; in embedding dimensions it is tens of times slower. `faiss`, any index
of faiss; its recall is measured against `exact`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from data_prep.embed.vectors import ArrayVectors, Vectors, check_same_kind
from data_prep.errors import UserError
from data_prep.fanout import Fanout
from data_prep.neighbors.found import Found, ScoreHistogram
from data_prep.neighbors.scoring import Metric
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.neighbors.blocks import Inputs, Plan
    from data_prep.neighbors.survey import Survey

__all__ = ["Backend", "Found", "Metric", "ScoreHistogram", "in_window", "search", "top_k"]

Backend = Literal["exact", "kdtree", "faiss"]
BINS = 4096
_FEWEST_BINS = 64


def search(
    queries: Vectors,
    corpus: Vectors,
    *,
    k: int,
    backend: Backend = "exact",
    metric: Metric = "cosine",
    percentiles: Sequence[float] | bool = False,
    exclude: NDArray[np.int64] | None = None,
    budget_gb: float = 1.0,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
    faiss_index: str = "Flat",
) -> Found:
    """The k best rows of the corpus for every query, best first.

    Args:
        queries, corpus: of one teacher; they stream, so they may be larger than the memory.
        k: neighbours a query.
        backend: see the module; `kdtree` and `faiss` hold the corpus in memory and give no percentiles.
        metric: `cosine` needs normalised vectors (all-zero rows score 0 with everything); `euclidean` any.
        percentiles: percentiles (0 … 100) whose scores `Found.levels` shall hold, each wrong by at most
            `Found.level_error`: 1/4096 of the range of scores, and rounding. True: keep every query's whole histogram,
            `Found.histogram`; without a scratch folder, in as many bins as a quarter of the budget holds.
        exclude: [q] the row of the corpus that is no neighbour of the query (itself, say) and not counted; -1 for none.
        budget_gb: working memory (10^9 bytes) beyond the vectors given and the result.
        fanout: who computes blocks of queries; None: this process.
        scratch: a folder that outlives a crash: finished blocks are not computed again. Large results stay there,
            memory-mapped. None: nothing is kept.
        faiss_index: of the faiss backend, as `faiss.index_factory` takes it: `Flat`, `HNSW32`, `IVF1024,Flat` …

    Raises:
        UserError: k outside 1 … n, vectors of two kinds, NaN, rows that are not what they claim to be, percentiles
            outside 0 … 100, a budget too small; zero rows for `kdtree`; a missing faiss.
        ValueError: `exclude` of another length, a fanout without scratch.
    """
    import numpy as np

    progress = progress or Progress()
    check_same_kind(queries, corpus)
    asked = _percentiles(percentiles, backend)
    exclude = _exclude(exclude, queries, corpus)
    _check_k(k, corpus.rows, hidden=exclude is not None and bool((exclude >= 0).any()))
    if backend != "exact":
        return _other(backend, queries, corpus, k, metric, exclude, progress, faiss_index)
    euclidean = metric == "euclidean"
    seen = _survey(queries, corpus, metric, digest=scratch is not None)
    reach = seen[0].norm + seen[1].norm if euclidean else seen[0].norm * seen[1].norm
    from data_prep.neighbors.blocks import Inputs, Plan

    plan = Plan(
        task="top",
        k=k,
        euclidean=euclidean,
        corpus_norm=seen[1].norm,
        bins=_bins(queries.rows, percentiles, scratch, budget_gb),
        low=0.0 if euclidean else -reach,
        high=reach,
        percentiles=asked,
        keep_counts=percentiles is True,
    )
    arrays = _run(queries, corpus, plan, Inputs(exclude=exclude), seen, progress, budget_gb, fanout, scratch)
    found = Found(scores=arrays["scores"], indices=arrays["indices"], levels=arrays.get("levels"))
    if plan.bins:
        empty = ScoreHistogram(
            arrays.get("counts", np.zeros((0, plan.bins), dtype=np.uint32)),
            plan.low,
            plan.high,
            found.scores,
            distances=euclidean,
            rounding=_rounding(queries.dimension, seen, euclidean=euclidean),
        )
        found.histogram, found.level_error = (empty if plan.keep_counts else None), empty.error
    return found


def in_window(
    queries: Vectors,
    corpus: Vectors,
    *,
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    count: int,
    seed: int,
    metric: Metric = "cosine",
    exclude: NDArray[np.int64] | None = None,
    budget_gb: float = 1.0,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Found:
    """`count` rows of the corpus for every query, drawn uniformly among all whose exact score is in [low, high].

    What is drawn depends on the seed, the row numbers and the window alone. Returned best first, with -1 (and NaN)
    where the window holds fewer; `Found.available` says how many it holds.

    Args:
        low, high: float32 [q], inclusive: cosines, or distances for euclidean; ±infinity for no bound.
        count: at least 1. The other arguments are those of `search`.

    Raises:
        UserError: as `search`; a count below 1; bounds that are NaN.
        ValueError: bounds or `exclude` of another length.
    """
    import numpy as np

    from data_prep.neighbors.blocks import Inputs, Plan

    check_same_kind(queries, corpus)
    exclude = _exclude(exclude, queries, corpus)
    if count < 1:
        raise UserError(f"{count} rows a window", "must be at least 1", "raise the number")
    bounds = [np.ascontiguousarray(bound, dtype=np.float32) for bound in (low, high)]
    if any(bound.shape != (queries.rows,) for bound in bounds):
        raise ValueError(f"low and high must hold one bound for each of {queries.rows} queries")
    unclear = np.isnan(bounds[0]) | np.isnan(bounds[1])
    if unclear.any():
        raise UserError(
            f"the window of query {int(unclear.argmax())}", "has a bound that is NaN", "give it two numbers"
        )
    seen = _survey(queries, corpus, metric, digest=scratch is not None)
    plan = Plan(
        task="window", k=count, euclidean=metric == "euclidean", corpus_norm=seen[1].norm, seed=int(seed % 2**64)
    )
    inputs = Inputs(exclude=exclude, low=bounds[0], high=bounds[1])
    arrays = _run(queries, corpus, plan, inputs, seen, progress or Progress(), budget_gb, fanout, scratch)
    return Found(scores=arrays["scores"], indices=arrays["indices"], available=arrays["available"])


def top_k(
    queries: NDArray[np.float32],
    corpus: NDArray[np.float32],
    *,
    k: int,
    backend: Backend = "exact",
    exclude_self: bool = False,
    block_rows: int | None = None,
    block_columns: int | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores [q, k] and indices [q, k] of the k best rows of the corpus for each query, best first, for arrays.

    Args:
        queries: [q, d] float32, of any length: the score is the inner product.
        corpus: [n, d] float32; unit rows for `kdtree`.
        k: neighbours a query.
        exclude_self: row i of the corpus is no neighbour of query i (the two are the same texts).
        block_rows, block_columns: queries and corpus rows that are taken at a time, rounded up to whole tiles.

    Raises:
        UserError: k outside 1 … n (n - 1 with `exclude_self`), a value that is not finite, or rows that are not unit
            vectors for `kdtree`.
        ValueError: shapes or block sizes that make no sense.
    """
    import numpy as np

    from data_prep.neighbors.blocks import Inputs, Plan
    from data_prep.neighbors.parts import run_here
    from data_prep.neighbors.survey import survey

    if queries.ndim != 2 or corpus.ndim != 2 or queries.shape[1] != corpus.shape[1]:
        raise ValueError(f"queries {queries.shape} and corpus {corpus.shape} are not [q, d] and [n, d]")
    if exclude_self and len(queries) != len(corpus):
        raise ValueError("exclude_self needs the same rows as queries and as corpus")
    if any(size is not None and size < 1 for size in (block_rows, block_columns)):
        raise ValueError("block_rows and block_columns must be positive")
    _check_k(k, len(corpus), hidden=exclude_self)
    asked, searched = (
        ArrayVectors(np.ascontiguousarray(v, dtype=np.float32), normalised=False) for v in (queries, corpus)
    )
    exclude = np.arange(len(queries)) if exclude_self else None
    progress = progress or Progress()
    if backend != "exact":
        found = _other(backend, asked, searched, k, None, exclude, progress, "Flat")
        return found.scores, found.indices
    survey(asked, "query", None, digest=False)
    plan = Plan(task="top", k=k, euclidean=False, corpus_norm=survey(searched, "corpus", None, digest=False).norm)
    arrays = run_here(
        asked,
        searched,
        plan,
        Inputs(exclude=exclude),
        progress,
        budget_gb=1.0,
        panel_rows=block_columns,
        block_rows=block_rows,
    )
    return arrays["scores"], arrays["indices"]


def _run(
    queries: Vectors,
    corpus: Vectors,
    plan: Plan,
    inputs: Inputs,
    seen: tuple[Survey, Survey],
    progress: Progress,
    budget_gb: float,
    fanout: Fanout | None,
    scratch: Path | None,
) -> dict[str, NDArray[Any]]:
    from data_prep.neighbors.parts import run_here, run_in_parts

    if scratch is None:
        if fanout is not None and fanout.workers > 1:
            raise ValueError("a fanout needs a scratch folder for what its parts write")
        return run_here(queries, corpus, plan, inputs, progress, budget_gb=budget_gb)
    return run_in_parts(
        (queries, seen[0].digest),
        (corpus, seen[1].digest),
        plan,
        inputs,
        progress,
        budget_gb=budget_gb,
        fanout=fanout,
        scratch=scratch,
    )


def _survey(queries: Vectors, corpus: Vectors, metric: Metric, *, digest: bool) -> tuple[Survey, Survey]:
    from data_prep.neighbors.survey import survey

    first = survey(queries, "query", metric, digest=digest)
    return first, first if queries is corpus else survey(corpus, "corpus", metric, digest=digest)


def _rounding(dimension: int, seen: tuple[Survey, Survey], *, euclidean: bool) -> float:
    """How far a counted score can be from the exact one: a distance is the root of twice what is computed."""
    import numpy as np

    from data_prep.neighbors.scoring import slack_of

    longest = np.array([seen[0].norm])
    error = float(slack_of(longest, seen[1].norm, dimension=dimension, euclidean=euclidean)[0]) / 2
    return float((2 * error) ** 0.5) if euclidean else error


def _other(
    backend: Backend,
    queries: Vectors,
    corpus: Vectors,
    k: int,
    metric: Metric | None,
    exclude: NDArray[np.int64] | None,
    progress: Progress,
    faiss_index: str,
) -> Found:
    if backend == "kdtree":
        from data_prep.neighbors.tree import search_tree

        return search_tree(queries, corpus, k=k, metric=metric, exclude=exclude, progress=progress)
    from data_prep.neighbors.faiss_index import search_faiss

    return search_faiss(queries, corpus, k=k, metric=metric, exclude=exclude, progress=progress, index=faiss_index)


def _percentiles(asked: Sequence[float] | bool, backend: Backend) -> tuple[float, ...]:
    if asked is False or asked == ():
        return ()
    if backend != "exact":
        raise UserError(
            f"the {backend} backend", "sees only the nearest rows, so it gives no percentiles", "use the exact backend"
        )
    listed = () if asked is True else tuple(float(percent) for percent in asked)  # type: ignore[union-attr]
    for percent in listed:
        if not 0 <= percent <= 100:
            raise UserError(f"percentile {percent:g}", "must be between 0 and 100", "change the percentile")
    return listed


def _bins(rows: int, percentiles: Sequence[float] | bool, scratch: Path | None, budget_gb: float) -> int:
    if percentiles is not True:
        return BINS if percentiles else 0
    bins = BINS
    while scratch is None and bins > _FEWEST_BINS and 4 * rows * bins > budget_gb * 1e9 / 4:
        bins //= 2
    return bins


def _exclude(exclude: NDArray[np.int64] | None, queries: Vectors, corpus: Vectors) -> NDArray[np.int64] | None:
    import numpy as np

    if exclude is None:
        return None
    rows = np.ascontiguousarray(exclude, dtype=np.int64)
    if rows.shape != (queries.rows,):
        raise ValueError(f"exclude must hold one row for each of {queries.rows} queries")
    if len(rows) and (rows.min() < -1 or rows.max() >= corpus.rows):
        raise ValueError(f"exclude must hold rows of the corpus (0 … {corpus.rows - 1}) or -1")
    return rows


def _check_k(k: int, rows: int, *, hidden: bool) -> None:
    most = rows - hidden
    if not 1 <= k <= most:
        raise UserError(f"{k} neighbours", f"must be between 1 and {most} for {rows} texts", "change the number")
