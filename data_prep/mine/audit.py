"""What mining did, so that a person can judge its rules: counts, score histograms and examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import write_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EXAMPLES = 10
_BINS = 40
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


@dataclass
class Audit:
    """What the rules did: counts, the scores that were kept, a few examples."""

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "pairs",
                "positives",
                "negatives",
                "without_negatives",
                "refused_no_positive",
                "refused_few_negatives",
                "skipped_duplicate",
                "skipped_same_text",
                "skipped_negative_ratio",
                "skipped_negative_max_score",
                "skipped_negative_near_positive",
            ),
            0,
        )
    )
    positive_scores: list[float] = field(default_factory=list)
    negative_scores: list[float] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def kept(self, row: dict[str, Any]) -> None:
        """Note a pair that was written."""
        self.counts["pairs"] += 1
        self.counts["positives"] += len(row["positives"])
        self.counts["negatives"] += len(row["negatives"])
        self.counts["without_negatives"] += not row["negatives"]
        self.positive_scores += row["positive_scores"]
        self.negative_scores += row["negative_scores"]
        if len(self.examples) < _EXAMPLES:
            names = ("query", "positives", "positive_scores", "negatives", "negative_scores")
            self.examples.append({name: row[name] for name in names})

    def write(
        self,
        path: Path,
        *,
        policy: dict[str, Any],
        counts: dict[str, int | float],
        neighbor_scores: NDArray[np.float32],
    ) -> None:
        """Write the audit as JSON.

        Histograms have equal bins from -1 to 1. `neighbors` tells, for the nearest, the 10th and the last neighbour,
        the quantiles of their scores over the queries: what thresholds of another teacher should be read from.

        Args:
            neighbor_scores: [queries, neighbours + 1], best first; the first is often the document itself.
        """
        import numpy as np

        edges = np.linspace(-1, 1, _BINS + 1)
        last = neighbor_scores.shape[1] - 1
        write_json(
            path,
            {
                "policy": policy,
                "counts": counts,
                "histogram_edges": [round(float(edge), 3) for edge in edges],
                "positive_scores": np.histogram(np.clip(self.positive_scores, -1, 1), edges)[0].tolist(),
                "negative_scores": np.histogram(np.clip(self.negative_scores, -1, 1), edges)[0].tolist(),
                "neighbors": {
                    f"rank {rank}": {
                        f"{q:.2f}": round(float(np.quantile(neighbor_scores[:, rank], q)), 4) for q in _QUANTILES
                    }
                    for rank in sorted({1, min(10, last), last})
                },
                "examples": self.examples,
            },
        )
