"""P-values against enumeration, scipy and what is known of them; Holm by hand; sentences that say what was found."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from eval import metrics, significance
from eval.significance import compare, holm, sentence, sign_flip_p_values


def enumerated(sets: list[NDArray[np.float64]]) -> float:
    """The share of all relabelings whose macro mean is as large: a loop over the definition, one column."""
    observed = abs(np.mean([one.mean() for one in sets]))
    count = reached = 0
    for signs in itertools.product((1, -1), repeat=sum(map(len, sets))):
        flipped, start = [], 0
        for one in sets:
            flipped.append(np.mean(one * signs[start : start + len(one)]))
            start += len(one)
        count += 1
        reached += abs(np.mean(flipped)) >= observed - 1e-12
    return reached / count


@pytest.mark.parametrize("sizes", [(3,), (8,), (2, 6), (1, 3, 5)])
def test_few_queries_are_enumerated(sizes: tuple[int, ...]) -> None:
    """Values with many ties, as recall has them, so that a tie counted wrongly shows."""
    rng = np.random.default_rng(sum(sizes))
    for _ in range(4):
        sets = [rng.integers(-1, 2, size=(size, 2)) / 3 for size in sizes]
        found = sign_flip_p_values(sets, permutations=1000, rng=metrics.generator(0))
        expected = [enumerated([one[:, column] for one in sets]) for column in (0, 1)]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_one_set_equals_scipy() -> None:
    """scipy swaps the two values of each query, which is the same relabeling; exact, and drawn on more queries."""
    rng = np.random.default_rng(3)
    first, second = rng.random(10), rng.random(10) + 0.15

    def statistic(a: NDArray[Any], b: NDArray[Any], axis: int) -> NDArray[Any]:
        means: NDArray[Any] = (a - b).mean(axis=axis)
        return means

    def theirs(a: NDArray[Any], b: NDArray[Any], count: float) -> float:
        test = stats.permutation_test(
            (a, b), statistic, permutation_type="samples", n_resamples=count, vectorized=True, rng=1
        )
        return float(test.pvalue)

    ours = sign_flip_p_values([(first - second)[:, None]], permutations=2000, rng=metrics.generator(0))
    assert ours[0] == pytest.approx(theirs(first, second, np.inf), abs=1e-12)
    for shift in (0.0, 0.05):
        first = rng.random(150)
        second = first + rng.normal(shift, 0.3, size=150)
        drawn = sign_flip_p_values([(first - second)[:, None]], permutations=10_000, rng=metrics.generator(1))
        expected = theirs(first, second, 10_000)
        error = 4 * np.sqrt(2 * expected * (1 - expected) / 10_000) + 2e-4
        assert abs(drawn[0] - expected) < error


def test_chance_is_called_a_difference_as_often_as_it_should() -> None:
    """Under no difference, p-values below 0.1 come up in a tenth of the trials; two sets of unlike size."""
    rng = np.random.default_rng(7)
    trials = [rng.normal(size=(size, 600)) for size in (12, 40)]  # every column is a trial
    p_values = sign_flip_p_values(trials, permutations=1000, rng=metrics.generator(2))
    assert abs((p_values < 0.1).mean() - 0.1) < 0.04
    assert abs(p_values.mean() - 0.5) < 0.05


def test_a_p_value_is_never_zero_and_blocks_do_not_matter_to_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = np.full((50, 1), 0.5)
    assert sign_flip_p_values([gain], permutations=999, rng=metrics.generator(0))[0] == pytest.approx(1 / 1000)
    assert sign_flip_p_values([np.zeros((50, 1))], permutations=99, rng=metrics.generator(0))[0] == 1.0
    monkeypatch.setattr(significance, "_BLOCK_CELLS", 70)
    few = np.array([[0.2], [0.1], [-0.3], [0.4]])
    assert sign_flip_p_values([few], permutations=100, rng=metrics.generator(0))[0] == enumerated([few[:, 0]])
    assert sign_flip_p_values([gain], permutations=999, rng=metrics.generator(0))[0] == pytest.approx(1 / 1000)
    with pytest.raises(ValueError, match="needs a query"):
        sign_flip_p_values([np.zeros((0, 1))], permutations=99, rng=metrics.generator(0))


def test_every_set_weighs_the_same() -> None:
    """A gain on the small set alone is as large as one on the large set alone, and harder to get by chance."""
    none, gain = np.zeros((200, 1)), np.full((200, 1), 0.1)
    large = sign_flip_p_values([gain, np.zeros((4, 1))], permutations=4000, rng=metrics.generator(0))
    small = sign_flip_p_values([none, np.full((4, 1), 0.1)], permutations=4000, rng=metrics.generator(0))
    assert large[0] < 0.001 < small[0] == pytest.approx(2 / 16, abs=0.03)


def test_holm_by_hand() -> None:
    """Sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, and none below the one before it."""
    found = holm(np.array([[0.01, 0.5], [0.04, 0.5], [0.03, 0.9], [0.005, 0.01]]))
    np.testing.assert_allclose(found[:, 0], [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(found[:, 1], [1.0, 1.0, 1.0, 0.04])
    np.testing.assert_array_equal(holm(np.array([0.3])), [0.3])


def test_a_comparison_holds_interval_p_value_and_correction() -> None:
    rng = np.random.default_rng(1)
    base = {"a": rng.random((80, 2)), "b": rng.random((30, 2))}
    better = {task: values + np.array([0.2, 0.0]) + rng.normal(0, 0.1, values.shape) for task, values in base.items()}
    found = compare(better, {"base": base, "same": better}, names=["x", "y"], seed=3, bootstrap_samples=500)
    gain = found["base"]["x"]
    assert gain["mean"] == pytest.approx(np.mean([(better[t] - base[t])[:, 0].mean() for t in base]), abs=1e-6)
    assert gain["low"] < gain["mean"] < gain["high"]
    by_hand = np.mean(
        [metrics.bootstrap_means(better[t] - base[t], samples=500, rng=metrics.generator(3, t, "all")) for t in base],
        axis=0,
    )
    assert gain["low"] == pytest.approx(np.quantile(by_hand[:, 0], 0.025), abs=1e-6)
    assert gain["p_value"] < 0.001 and gain["p_holm"] == pytest.approx(2 * gain["p_value"], abs=2e-6)
    assert found["base"]["y"]["p_value"] > 0.01
    assert found["same"]["x"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "p_holm": 1.0}
    assert compare(better, {"base": base}, names=["x", "y"], seed=3)["base"]["x"]["p_value"] == gain["p_value"]


def test_what_is_not_paired_is_refused() -> None:
    one, two = {"a": np.zeros((5, 1))}, {"a": np.zeros((4, 1))}
    with pytest.raises(ValueError, match="other on a: 4 queries, the system it is compared with has 5"):
        compare(one, {"other": two}, names=["x"], seed=0)
    with pytest.raises(ValueError, match="other on b: 4 queries, the system it is compared with has 0"):
        compare(one, {"other": {**one, "b": two["a"]}}, names=["x"], seed=0)
    assert compare(one, {}, names=["x"], seed=0) == {}


def test_sentences() -> None:
    def said(mean: float, low: float, high: float, p: float, comparisons: int = 1) -> str:
        gain = {"mean": mean, "low": low, "high": high, "p_value": p, "p_holm": p}
        return sentence("finetuned", "bm25", "recall@10", gain, comparisons=comparisons)

    assert said(0.0312, 0.012, 0.05, 0.0004) == (
        "finetuned is ahead of bm25 by 0.031 recall@10 [0.012, 0.050]; a difference this large would come up by chance "
        "in fewer than 1 of 1,000 relabelings"
    )
    assert said(-0.0312, -0.05, -0.012, 0.0123, 3) == (
        "finetuned is behind bm25 by 0.031 recall@10 [0.012, 0.050]; a difference this large would come up by chance "
        "in about 12 of 1,000 relabelings (corrected for 3 comparisons)"
    )
    assert said(0.004, -0.01, 0.018, 0.4) == (
        "no difference beyond chance between finetuned and bm25: +0.004 recall@10 [-0.010, +0.018]; one this large "
        "would come up by chance in about 400 of 1,000 relabelings"
    )
    assert said(0, 0, 0, 1) == "finetuned and bm25 do not differ in recall@10"
