"""No text twice in a batch, every sample once, and nothing but the position decides."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from train.arrange import WINDOW, Arrangement, arranged_window


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


def test_any_step_is_reached_alone() -> None:
    keys = {p: (p % 50,) for p in range(10 * WINDOW * 8)}
    walk = Arrangement(8, keys=keys.__getitem__, group=lambda p: None)
    walked = [walk(step)[0] for step in range(3 * WINDOW)]
    for step in (0, 17, 3 * WINDOW - 1):
        assert Arrangement(8, keys=keys.__getitem__, group=lambda p: None)(step)[0] == walked[step]


def test_without_keys_the_order_is_untouched() -> None:
    assert list(Arrangement(4, keys=None, group=lambda p: None)(3)[0]) == [12, 13, 14, 15]
