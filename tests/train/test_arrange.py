"""No text twice in a batch, every sample once, and nothing but the position decides."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.errors import UserError
from train.arrange import WINDOW, Arrangement, arranged_window, check_batch


def shared(batches: list[list[int]], keys: dict[int, tuple[int, ...]]) -> int:
    found = 0
    for positions in batches:
        held = Counter(k for p in positions for k in set(keys[p]))
        found += sum(any(held[k] > 1 for k in keys[p]) for p in positions)
    return found


@given(st.integers(2, 12), st.integers(2, 60), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_a_window_keeps_its_samples_and_epochs(batch: int, texts: int, seed: int) -> None:
    rng = random.Random(seed)
    span = WINDOW * batch
    keys = {p: (rng.randrange(texts), 1000 + rng.randrange(texts)) for p in range(2 * span)}
    epoch = span // 3 + 1
    for window in (0, 1):
        batches, left = arranged_window(window, batch=batch, keys=keys.__getitem__, group=lambda p: p // epoch)
        assert sorted(p for b in batches for p in b) == list(range(window * span, (window + 1) * span))
        for number, positions in enumerate(batches):
            in_order = [window * span + number * batch + i for i in range(batch)]
            assert Counter(p // epoch for p in positions) == Counter(p // epoch for p in in_order)
        assert sum(left) == shared(batches, keys)


def test_repeats_are_moved_apart() -> None:
    rng = random.Random(0)
    batch = 32
    keys = {
        p: (rng.randrange(400), 1000 + p) for p in range(WINDOW * batch)
    }  # one text in 400 is repeated all the time
    in_order = [[b * batch + i for i in range(batch)] for b in range(WINDOW)]
    batches, left = arranged_window(0, batch=batch, keys=keys.__getitem__, group=lambda p: None)
    assert shared(in_order, keys) > 30
    assert sum(left) == 0 == shared(batches, keys)


def test_what_cannot_be_arranged_is_counted() -> None:
    _, left = arranged_window(0, batch=4, keys=lambda p: (7,), group=lambda p: None)
    assert left == [4] * WINDOW


def arrangement(batch: int, keys: dict[int, tuple[int, ...]] | None, epoch: int = 10**9) -> Arrangement:
    return Arrangement(batch, keys=keys.__getitem__ if keys else None, group=lambda p: p // epoch)


def random_keys(places: int, texts: int, seed: int) -> dict[int, tuple[int, ...]]:
    rng = random.Random(seed)
    return {p: (rng.randrange(texts), 10**6 + p) for p in range(places)}


def test_any_batch_is_reached_alone() -> None:
    keys = {p: (p % 50,) for p in range(10 * WINDOW * 8)}
    walk = arrangement(8, keys)
    walked = [walk.places(8 * step, 8 * step + 8)[0] for step in range(3 * WINDOW)]
    for step in (0, 17, 3 * WINDOW - 1):
        assert arrangement(8, keys).places(8 * step, 8 * step + 8)[0] == walked[step]


def test_without_keys_the_order_is_untouched() -> None:
    assert arrangement(4, None).places(12, 16) == (range(12, 16), 0)


@given(st.integers(2, 9), st.lists(st.integers(1, 70), min_size=1, max_size=30), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_other_cuts_give_the_same_sequence(batch: int, cuts: list[int], seed: int) -> None:
    end = sum(cuts)
    keys = random_keys(end + WINDOW * batch, 40, seed)
    whole = arrangement(batch, keys, epoch=23)
    expected = [p for b in range(-(-end // batch)) for p in whole.places(b * batch, (b + 1) * batch)[0]][:end]
    cut, first = [], 0
    for size in cuts:
        positions, duplicates = arrangement(batch, keys, epoch=23).places(first, first + size)
        assert duplicates == shared([list(positions)], keys)
        cut += positions
        first += size
    assert cut == expected
    full = end // 23 * 23
    assert sorted(cut[:full]) == list(range(full)), "an epoch keeps its samples, wherever it is cut"


@pytest.mark.parametrize(("batch", "fix"), [(24, "use 16 or 32"), (5, "use 4 or 8"), (33, "use 32 or 48")])
def test_a_batch_that_does_not_fit_is_a_mistake_with_a_fix(batch: int, fix: str) -> None:
    with pytest.raises(UserError, match=fix):
        check_batch(batch, 16, name="finetune.batch_pairs")


@pytest.mark.parametrize("batch", [1, 8, 16, 32, 48])
def test_a_batch_that_fits(batch: int) -> None:
    check_batch(batch, 16, name="finetune.batch_pairs")
