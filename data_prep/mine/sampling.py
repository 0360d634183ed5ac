"""Which of the texts that passed every rule are taken.

Invariant: a draw depends on the seed, on what the texts say and on nothing else: not on blocks, processes or order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.mine.policy import Policy


def chances(one: NDArray[np.uint64], other: NDArray[np.uint64], *, seed: int) -> NDArray[np.float64]:
    """Uniform numbers in (0, 1) for pairs of texts, as their keys (broadcast); the same everywhere (SplitMix64)."""
    import numpy as np

    with np.errstate(over="ignore"):
        mixed = _mix(_mix(one ^ _mix(np.full((), seed & (2**64 - 1), dtype=np.uint64))) + other)
    return ((mixed >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    import numpy as np

    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def draw(
    policy: Policy,
    usable: NDArray[np.bool_],
    scores: NDArray[np.float32],
    chance: NDArray[np.float64],
    *,
    spare: int,
    seed: int,
    query_ids: Sequence[str],
) -> NDArray[np.int64]:
    """Columns [q, negatives_per_query + spare] that are drawn, in the order of the draw; -1 where there is none.

    Args:
        usable, scores, chance: [q, candidates], candidates in their order of nearness; chance from `chances`.
        spare: how many more to name, for those that a later rule takes away.
        query_ids: hexadecimal, one a query; they seed the uniform draw.
    """
    import numpy as np

    width = policy.negatives_per_query + spare
    priority: NDArray[np.float64]
    ranks = np.cumsum(usable, axis=1) - 1  # place among the usable, nearest first
    totals = usable.sum(axis=1)
    if policy.sampling == "hardest":
        priority = -ranks.astype(np.float64)
    elif policy.sampling == "temperature":
        priority = scores.astype(np.float64) / policy.temperature - np.log(-np.log(chance))
    elif policy.sampling == "stages":
        stage = ranks * policy.negatives_per_query // np.maximum(totals, 1)[:, None]
        priority = chance - 2.0 * _place_in_group(stage, chance, usable)
    else:
        priority = chance - 2.0
        for row in np.flatnonzero(totals).tolist():
            columns = np.flatnonzero(usable[row])
            if len(columns) > policy.negatives_per_query:
                generator = np.random.default_rng([seed, int(query_ids[row], 16)])
                columns = columns[generator.choice(len(columns), policy.negatives_per_query, replace=False)]
            priority[row, columns] = 1.0
    priority = np.where(usable, priority, -np.inf)
    order = np.argsort(-priority, axis=1, kind="stable")[:, :width]
    drawn: NDArray[np.int64] = np.where(np.take_along_axis(usable, order, 1), order, -1)
    missing = width - drawn.shape[1]
    return np.pad(drawn, ((0, 0), (0, missing)), constant_values=-1) if missing > 0 else drawn


def _place_in_group(
    groups: NDArray[np.int64], chance: NDArray[np.float64], usable: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """Place of every cell [q, m] among the cells of its row and group, the greatest chance first."""
    import numpy as np

    groups = np.where(usable, groups, groups.max(initial=0) + 1)
    order = np.lexsort((-chance, groups), axis=1)
    sorted_groups = np.take_along_axis(groups, order, 1)
    columns = np.arange(groups.shape[1])
    starts = np.where(np.diff(sorted_groups, axis=1, prepend=-1) != 0, columns, 0)
    place = np.empty_like(groups)
    np.put_along_axis(place, order, columns - np.maximum.accumulate(starts, axis=1), 1)
    return place


def capped(
    drawn: NDArray[np.int64], queries: NDArray[np.uint64], texts: NDArray[np.uint64], *, most: int, seed: int
) -> tuple[NDArray[np.int64], int]:
    """The draw without the uses of a text beyond the `most` it may serve, and how many were taken away.

    Every text keeps the uses in which it was drawn earliest; among equals chance decides, from what the texts say.

    Args:
        drawn: [q, width] corpus rows in the order of the draw, -1 for none.
        queries: [q] keys. texts: [n] keys of the corpus.
    """
    import numpy as np

    askers, places = np.nonzero(drawn >= 0)
    rows = drawn[askers, places]
    chance = chances(queries[askers], texts[rows], seed=seed)
    order = np.lexsort((chance, places, rows))
    sorted_rows = rows[order]
    starts = np.where(np.diff(sorted_rows, prepend=-1) != 0, np.arange(len(rows)), 0)
    over = order[np.arange(len(rows)) - np.maximum.accumulate(starts) >= most]
    left = drawn.copy()
    left[askers[over], places[over]] = -1
    return left, len(over)
