"""Is one system better than another, or would a coin have done it?

Invariant: a comparison is paired. Both systems answered the same queries, so all that counts is the difference on each
query; a macro mean weighs every set the same, and so do its interval and its p-value.

The p-value is that of a randomisation test (Fisher 1935; for retrieval Smucker, Allan and Carterette 2007). If the
systems were equally good, on every query the two names could be swapped, which flips the sign of the query's
difference. p is the share of such relabelings whose mean difference is as large as the observed one, in either
direction: of all relabelings where they are few, else of a random draw, in which the observed one is counted too, so
that p is never 0. Where one system is compared with several, Holm's correction (1979) keeps the chance of any false
claim among them at its level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from eval import metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIGNIFICANT = 0.05
"""A corrected p-value below this is called a difference."""
PERMUTATIONS = 10_000
_ROUNDING = 1e-12
_BLOCK_CELLS = 4_000_000  # of the matrix of flips at a time: 32 MB


def sign_flip_p_values(
    differences: Sequence[NDArray[np.float64]], *, permutations: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Two-sided p-values of the mean over sets of mean differences: float64 [columns].

    Args:
        differences: for each set, one system's value less the other's: [queries, columns].
        permutations: relabelings to draw; all of them are taken where there are no more than that.
        rng: of the draws; all columns share them.

    Raises:
        ValueError: no set, or a set without queries.
    """
    import numpy as np

    if not differences or any(len(one) == 0 for one in differences):
        raise ValueError("every set of a comparison needs a query")
    weighted = np.concatenate([one / (len(one) * len(differences)) for one in differences])
    queries = len(weighted)
    observed = weighted.sum(axis=0)
    # Sums in another order differ in the last bits: a relabeling that ties must count as a tie.
    bar = np.abs(observed) - _ROUNDING * np.abs(weighted).sum(axis=0)
    reached = np.zeros(weighted.shape[1], dtype=np.int64)
    everything = queries < 62 and 1 << queries <= permutations
    total = 1 << queries if everything else permutations
    block = max(1, _BLOCK_CELLS // queries)
    for start in range(0, total, block):
        rows = min(block, total - start)
        if everything:
            flipped = ((np.arange(start, start + rows)[:, None] >> np.arange(queries)) & 1).astype(np.float64)
        else:
            drawn = np.frombuffer(rng.bytes(rows * (-(-queries // 8))), dtype=np.uint8)
            flipped = np.unpackbits(drawn.reshape(rows, -1), axis=1, count=queries).astype(np.float64)
        relabelled = observed - 2.0 * (flipped @ weighted)
        reached += (np.abs(relabelled) >= bar).sum(axis=0)
    p_values: NDArray[np.float64] = reached / total if everything else (reached + 1) / (total + 1)
    return p_values


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm's step-down correction along the first axis: [comparisons, …] → the same shape, never above 1."""
    import numpy as np

    count = len(p_values)
    order = np.argsort(p_values, axis=0, kind="stable")
    factors = np.arange(count, 0, -1).reshape(-1, *(1,) * (p_values.ndim - 1))
    stepped = np.maximum.accumulate(np.take_along_axis(p_values, order, axis=0) * factors, axis=0)
    corrected: NDArray[np.float64] = np.empty_like(p_values)
    np.put_along_axis(corrected, order, np.minimum(stepped, 1.0), axis=0)
    return corrected


def compare(
    reference: Mapping[str, NDArray[np.float64]],
    others: Mapping[str, Mapping[str, NDArray[np.float64]]],
    *,
    names: Sequence[str],
    seed: int,
    subset: str = "all",
    bootstrap_samples: int = 2000,
    permutations: int = PERMUTATIONS,
) -> dict[str, dict[str, dict[str, float]]]:
    """The differences of one system to each of several, macro-averaged over sets.

    Args:
        reference: set → its values on each query, [queries, metrics].
        others: system → set → the same; the same sets and the queries in the same order.
        names: of the metrics, as many as columns.
        seed, subset: name the draws. The bootstrap's are those behind the intervals of each system alone.

    Returns:
        System → metric → `mean` (reference less the other), `low` and `high` (95 % paired bootstrap interval),
        `p_value` (see `sign_flip_p_values`) and `p_holm` (corrected for the number of others).

    Raises:
        ValueError: a system lacks a set, or has another number of queries on it: what is compared is not paired.
    """
    import numpy as np

    if not others:
        return {}
    for system, values in others.items():
        for task in sorted(reference.keys() | values.keys()):
            mine, theirs = (len(side[task]) if task in side else 0 for side in (reference, values))
            if mine != theirs:
                raise ValueError(f"{system} on {task}: {theirs} queries, the system it is compared with has {mine}")
    # the columns of all comparisons side by side share every draw
    stacked = {
        task: np.concatenate([values - other[task] for other in others.values()], axis=1)
        for task, values in reference.items()
    }
    mean = np.mean([gain.mean(axis=0) for gain in stacked.values()], axis=0)
    draws = np.mean(
        [
            metrics.bootstrap_means(gain, samples=bootstrap_samples, rng=metrics.generator(seed, task, subset))
            for task, gain in stacked.items()
        ],
        axis=0,
    )
    flips = metrics.generator(seed, "relabelings", subset)
    p_values = sign_flip_p_values(list(stacked.values()), permutations=permutations, rng=flips)
    p_values = p_values.reshape(len(others), len(names))
    corrected = holm(p_values)
    found = {}
    for number, system in enumerate(others):
        columns = slice(number * len(names), (number + 1) * len(names))
        found[system] = metrics.summary(names, mean[columns], draws[:, columns])
        for column, name in enumerate(names):
            found[system][name]["p_value"] = round(float(p_values[number, column]), 6)
            found[system][name]["p_holm"] = round(float(corrected[number, column]), 6)
    return found


def sentence(system: str, against: str, metric: str, gain: Mapping[str, float], *, comparisons: int = 1) -> str:
    """What a difference means, in one sentence without a full stop.

    Args:
        gain: a value of `compare`: mean, low, high and p_holm.
        comparisons: how many p_holm was corrected for.
    """
    mean, low, high = gain["mean"], gain["low"], gain["high"]
    if mean == low == high == 0:
        return f"{system} and {against} do not differ in {metric}"
    p = gain["p_holm"]
    share = "fewer than 1" if p < 0.001 else f"about {round(1000 * p):,}"
    chance = f"by chance in {share} of 1,000 relabelings"
    if comparisons > 1:
        chance += f" (corrected for {comparisons} comparisons)"
    if p < SIGNIFICANT:
        side = "ahead of" if mean > 0 else "behind"
        spread = (low, high) if mean > 0 else (-high, -low)
        return (
            f"{system} is {side} {against} by {abs(mean):.3f} {metric} [{spread[0]:.3f}, {spread[1]:.3f}]; "
            f"a difference this large would come up {chance}"
        )
    return (
        f"no difference beyond chance between {system} and {against}: {mean:+.3f} {metric} [{low:+.3f}, {high:+.3f}]; "
        f"one this large would come up {chance}"
    )
