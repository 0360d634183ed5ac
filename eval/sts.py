"""Semantic textual similarity: how a system's cosines agree with people's scores of sentence pairs.

Spearman's rank correlation is the figure to read (a cosine need not grow in step with a score to order pairs well);
Pearson's is given beside it. Both sentences are embedded as queries, since the task is symmetric and prompts for
passages are made for longer text. Intervals are percentile bootstrap over pairs, ranked anew in every draw; all systems
get the same draws. A system that gives every pair the same cosine tells nothing: its correlation counts as 0.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import disk_errors
from eval import metrics
from eval.systems.dense import finite_vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.embedder import Embedder
    from data_prep.similarity_sets import SimilaritySet

NAMES = ("spearman", "pearson")
_BLOCK_CELLS = 2_000_000
_DECIMALS = 9


def cosines(embedder: Embedder, pairs: SimilaritySet, *, name: str) -> NDArray[np.float64]:
    """The cosine of every pair: float64 [pairs]; 0 where a vector is all zeros.

    Args:
        name: what errors call the system.

    Raises:
        UserError: naming system and sentence, where a vector is not finite.
    """
    import numpy as np

    sides = []
    for texts in (pairs.first, pairs.second):
        vectors = finite_vectors(embedder, texts, role="query", name=name).astype(np.float64)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        sides.append(vectors / np.where(norms == 0, 1.0, norms))
    # rounding in the last bits must not put an order into pairs that are equally close
    found: NDArray[np.float64] = np.round(np.einsum("ij,ij->i", *sides), _DECIMALS)
    return found


def correlations(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman and Pearson of each row with its row: [rows, pairs] twice → float64 [rows, 2]; ties get mean ranks."""
    import numpy as np
    from scipy.stats import rankdata

    return np.stack([_pearson(rankdata(found, axis=1), rankdata(wanted, axis=1)), _pearson(found, wanted)], axis=1)


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    # equal values may differ from their mean in the last bits: that is no spread
    spread = np.minimum(np.ptp(a, axis=1), np.ptp(b, axis=1)) > 0
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    size = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    score: NDArray[np.float64] = np.where(spread, (a * b).sum(axis=1) / np.where(size == 0, 1.0, size), 0.0)
    return score


def similarity_row(
    system: str, pairs: SimilaritySet, found: NDArray[np.float64], *, samples: int, seed: int
) -> dict[str, Any]:
    """A row of `sts` in results.json: `system`, `set`, `pairs`, `metrics` with intervals.

    Args:
        found: the cosines, as `cosines` returns them.
        samples, seed: of the bootstrap.
    """
    import numpy as np

    wanted, count = np.array(pairs.scores), len(pairs.scores)
    rng = metrics.generator(seed, "sts", pairs.name)
    block = max(1, _BLOCK_CELLS // count)
    drawn = []
    for start in range(0, samples, block):
        chosen = rng.integers(0, count, size=(min(block, samples - start), count))
        drawn.append(correlations(found[chosen], wanted[chosen]))
    mean = correlations(found[None], wanted[None])[0]
    summary = metrics.summary(NAMES, mean, np.concatenate(drawn))
    return {"system": system, "set": pairs.name, "pairs": count, "metrics": summary}


def row_without_vectors(system: str, pairs: SimilaritySet) -> dict[str, Any]:
    """The row of a system that gives no vectors: no metrics, and a `note` that says why."""
    note = "ranks documents without vectors, so it has no cosine of two sentences"
    return {"system": system, "set": pairs.name, "pairs": len(pairs.scores), "metrics": {}, "note": note}


def write_cosines(path: Path, pairs: SimilaritySet, found: NDArray[np.float64]) -> None:
    """Store score and cosine of every pair, from which the row can be computed again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with disk_errors(path):
        pq.write_table(pa.table({"score": pairs.scores, "cosine": found}), path, compression="zstd")
