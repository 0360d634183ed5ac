"""Which neighbours become positives.

Invariant: a positive lies within every bound of the policy, is no copy of the query (`duplicate`), and no text appears
twice in a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.mine.policy import Policy
    from data_prep.mine.sides import Side
    from data_prep.mine.windows import Near, Searcher

_BLOCK = 8192


def best(
    policy: Policy,
    near: Near,
    *,
    queries: Side,
    corpus: Side,
    own_keys: NDArray[np.uint64],
    neighbors: int,
    above: NDArray[np.float32] | None,
    counts: dict[str, int],
) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """The best texts of every query: rows [q, P] (-1 for none), scores [q, P], and the best score that is no copy's.

    Args:
        near: nearest first. above: [q] a positive scores more than this, where the policy asks for a percentile.
        counts: `skipped_duplicate` and `skipped_same_text` are added to it.
    """
    import numpy as np

    depth = min(policy.positive_last_rank or neighbors, near.rows.shape[1])
    all_rows, all_scores, top = [], [], -1.0
    for start in range(0, len(queries), _BLOCK):
        part = slice(start, start + _BLOCK)
        rows, scores = near.rows[part, :depth], near.scores[part, :depth]
        there = rows >= 0
        copy = there & (scores.astype(np.float64) >= policy.duplicate_score) & policy.on("duplicate")
        top = max(top, float(np.where(there & ~copy, scores, -1.0).max(initial=-1.0)))
        bound = there & ~copy & (scores.astype(np.float64) >= policy.positive_min_score)
        if policy.positive_max_distance is not None:
            bound &= np.sqrt(np.maximum(2 - 2 * scores.astype(np.float64), 0)) <= policy.positive_max_distance
        if above is not None:
            bound &= scores > above[part, None]
        keys = np.where(there, corpus.keys[rows], 0)
        same = (keys == queries.keys[part, None]) | (keys == own_keys[part, None])
        order = np.argsort(keys, axis=1, kind="stable")
        ordered = np.take_along_axis(keys, order, 1)
        repeated = np.zeros_like(same)
        np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
        same |= repeated
        good = bound & ~same
        before = np.cumsum(good, axis=1) - good
        wanted = before < policy.positives_per_query - policy.keep_self
        counts["skipped_duplicate"] += int((copy & wanted).sum())
        counts["skipped_same_text"] += int((bound & same & wanted).sum())
        taken = good & wanted
        order = np.argsort(~taken, axis=1, kind="stable")[:, : policy.positives_per_query - policy.keep_self]
        kept = np.take_along_axis(taken, order, 1)
        all_rows.append(np.where(kept, np.take_along_axis(rows, order, 1), -1))
        all_scores.append(np.where(kept, np.take_along_axis(scores, order, 1), -np.inf))
    return np.concatenate(all_rows), np.concatenate(all_scores).astype(np.float32), top


def uniform(
    policy: Policy, searcher: Searcher, *, above: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Positives drawn evenly among all texts within the bounds: rows [q, P] and scores (or distances) [q, P].

    Args:
        above: as for `best`.
    """
    import numpy as np

    count, distances = len(searcher.queries), policy.positive_max_distance is not None
    if distances:
        low = np.zeros(count, dtype=np.float32)
        high = np.full(count, policy.positive_max_distance, dtype=np.float32)
    else:
        low = np.full(count, policy.positive_min_score, dtype=np.float32)
        # below a copy: the largest float32 under the bound
        under = np.nextafter(np.float32(policy.duplicate_score), np.float32(-2))
        high = np.full(count, under if policy.on("duplicate") else 2.0, dtype=np.float32)
        if above is not None:
            low = np.maximum(low, np.nextafter(above, np.float32(2)))
    wanted = policy.positives_per_query - policy.keep_self
    near, _ = searcher.drawn(low=low, high=high, count=wanted, distances=distances, salt=2, label="positives")
    return near.rows, near.scores
