"""The queries that went wrong: no relevant document among the first ten, and what was retrieved instead."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eval import metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from eval.relevance import Judged

EXAMPLES = 10
_CHARACTERS = 500


def wrong_queries(
    judged: Judged, ranked: NDArray[np.int64], scores: NDArray[np.float32], first: Sequence[int | None]
) -> list[dict[str, Any]]:
    """The worst queries of one set, at most ten: those whose relevant document was not reached, then the lowest ranks.

    Args:
        first: the rank of each query's first relevant document (`eval.rankings.first_relevant`).
    """
    task = judged.task
    wrong: list[dict[str, Any]] = []
    for row, answers in zip(judged.rows["all"], judged.relevant["all"], strict=True):
        rank = first[row]
        if rank is None or rank > metrics.CUTOFF:
            wrong.append(
                {
                    "set": task.name,
                    "query_id": task.query_ids[row],
                    "query": _cut(task.queries[row]),
                    "relevant": _cut(task.documents[min(answers)]),
                    "relevant_rank": rank,
                    "depth": int(ranked.shape[1]),
                    "retrieved": [
                        {"text": _cut(task.documents[d]), "score": round(float(s), 4)}
                        for d, s in zip(ranked[row, :3].tolist(), scores[row, :3].tolist(), strict=True)
                    ],
                }
            )
    wrong.sort(key=lambda w: (-(w["relevant_rank"] or sys.maxsize), w["query_id"]))
    return wrong[:EXAMPLES]


def _cut(text: str) -> str:
    return text if len(text) <= _CHARACTERS else text[: _CHARACTERS - 1] + "…"


def worst_of_all(wrong: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Ten of the worst queries, dealt from the sets in turn so that one hard set does not fill the list."""
    by_set: dict[str, list[dict[str, Any]]] = {}
    for example in wrong:
        by_set.setdefault(example["set"], []).append(example)
    dealt = [examples[turn] for turn in range(EXAMPLES) for examples in by_set.values() if turn < len(examples)]
    return dealt[:EXAMPLES]
