"""Dealing is complete, repeatable and even on long-tailed lengths."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.dealing import deal, imbalance


def long_tailed(count: int, seed: int) -> list[int]:
    """Token counts with median 60 and 95th percentile 500, cut at 512."""
    rng = random.Random(seed)
    return [min(512, max(3, round(rng.lognormvariate(math.log(60), math.log(500 / 60) / 1.645)))) for _ in range(count)]


@given(st.lists(st.integers(1, 500), min_size=4, max_size=80), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_every_sequence_is_dealt_once_and_nobody_is_left_out(costs: list[int], ranks: int) -> None:
    hands = deal(costs, ranks)
    assert sorted(place for hand in hands for place in hand) == list(range(len(costs)))
    assert all(hand and hand == sorted(hand) for hand in hands)
    assert hands == deal(costs, ranks)


@pytest.mark.parametrize(("pairs", "ranks"), [(64, 2), (64, 4), (256, 8), (1024, 32), (1024, 64)])
def test_the_busiest_rank_is_within_five_percent_on_long_tails(pairs: int, ranks: int) -> None:
    for seed in range(20):
        lengths = long_tailed(3 * pairs, seed)  # a query, a positive and a negative each
        assert imbalance(lengths, deal(lengths, ranks)) < 0.05


def test_dealing_equal_numbers_of_rows_would_not_be_even() -> None:
    lengths = long_tailed(256, 0)
    in_order = [list(range(r * 32, (r + 1) * 32)) for r in range(8)]
    assert imbalance(lengths, in_order) > 0.1


def test_with_fewer_sequences_than_ranks_some_ranks_hold_none() -> None:
    # the last step of a phase that changed its batch size may be that short
    assert deal([1, 2], 3) == [[1], [0], []]
