"""What mining did, so that a person can judge its policy: counts, score histograms, hubs, false negatives, examples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import write_json
from data_prep.mine.hubness import k_occurrence
from data_prep.mine.sentences import sentences

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.mine.config import MineConfig
    from data_prep.mine.prepare import Pool
    from data_prep.mine.select import Mined

_EXAMPLES = 50
"""Examples of every source: enough to read for half an hour and to see a fault that one row in twenty has."""
_BINS = 40
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_HUBS = 10


class Audit:
    """Collects what was written.

    Attributes:
        counts: pairs, positives, negatives, without_negatives.
        false_negatives: what `false_negatives.estimate` found; None where nothing is known to be relevant.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(("pairs", "positives", "negatives", "without_negatives"), 0)
        self.false_negatives: dict[str, Any] | None = None
        self._scores: dict[str, dict[str, list[int]]] = {}
        self._examples: dict[str, list[dict[str, Any]]] = {}
        self._hubs: dict[str, Any] = {}

    def kept(self, row: dict[str, Any], source: str) -> None:
        """Note a pair that was written; `source` is where its query comes from."""
        self.counts["pairs"] += 1
        self.counts["positives"] += len(row["positives"])
        self.counts["negatives"] += len(row["negatives"])
        self.counts["without_negatives"] += not row["negatives"]
        bins = self._scores.setdefault(
            row["language"], {"positive_scores": [0] * _BINS, "negative_scores": [0] * _BINS}
        )
        for name, counted in bins.items():
            for score in row[name] or ():
                counted[min(_BINS - 1, max(0, int((score + 1) * _BINS / 2)))] += 1
        examples = self._examples.setdefault(source, [])
        if len(examples) < _EXAMPLES:
            names = ("query", "positives", "positive_scores", "negatives", "negative_scores")
            examples.append({name: row[name] for name in names})

    def hubs(self, negatives: NDArray[np.int64], pool: Pool) -> None:
        """Note how unevenly texts serve as negatives: [q, m] rows of the pool, -1 for none."""
        import numpy as np

        counts, skewness = k_occurrence(negatives, size=len(pool.side))
        most = np.argsort(-counts, kind="stable")[:_HUBS]
        self._hubs = {
            "skewness": round(skewness, 3),
            "texts_used": int((counts > 0).sum()),
            "texts": len(pool.side),
            "most_used": [
                {"uses": int(counts[row]), "text": pool.texts([row])[0][:200]} for row in most.tolist() if counts[row]
            ],
        }

    def write(self, path: Path, *, config: MineConfig, counts: dict[str, int | float], mined: Mined) -> None:
        """Write the audit as JSON.

        Histograms have equal bins from -1 to 1. `neighbors` tells, for the nearest, the 10th and the last neighbour,
        the quantiles of their scores over the queries: what thresholds of another teacher should be read from.
        `rules`: how many candidates each rule took after those before it (`in_order`), and how many it would take by
        itself (`alone`; rules that read vectors: of what the others left).
        """
        import numpy as np

        edges = np.linspace(-1, 1, _BINS + 1)
        scores = mined.nearest
        last = scores.shape[1] - 1
        totals = {
            name: [sum(column) for column in zip(*(bins[name] for bins in self._scores.values()), strict=True)]
            for name in ("positive_scores", "negative_scores")
        }
        in_order = {
            name.removeprefix("skipped_negative_"): count
            for name, count in mined.counts.items()
            if name.startswith("skipped_negative_")
        }
        write_json(
            path,
            {
                "policy": config.model_dump(mode="json"),
                "policy_in_words": sentences(config.policy, neighbors=config.neighbors),
                "counts": counts,
                "rules": {
                    "candidates": mined.counts.get("candidates", 0),
                    "in_order": in_order,
                    "alone": {name.removeprefix("skipped_negative_"): count for name, count in mined.alone.items()},
                },
                "histogram_edges": [round(float(edge), 3) for edge in edges],
                **totals,
                "by_language": {name: self._scores[name] for name in sorted(self._scores)},
                "neighbors": {
                    f"rank {rank + 1}": {f"{q:.2f}": _quantile(scores[:, rank], q) for q in _QUANTILES}
                    for rank in sorted({0, min(9, last), last})
                },
                "hubness": self._hubs,
                "false_negatives": self.false_negatives,
                "examples": {name: self._examples[name] for name in sorted(self._examples)},
            },
        )


def _quantile(scores: NDArray[np.float32], share: float) -> float:
    """A quantile of the scores that are there."""
    import numpy as np

    there = scores[np.isfinite(scores)]
    return round(float(np.quantile(there, share)), 4) if len(there) else 0.0
