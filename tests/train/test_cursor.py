"""The global order is a bijection, a pure function, and blends by share."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.cursor import GlobalOrder, Permutation, Source


@given(st.integers(1, 3000), st.binary(max_size=8))
@settings(max_examples=60, deadline=None)
def test_permutation_is_a_bijection(n: int, key: bytes) -> None:
    permutation = Permutation(n, key)
    assert sorted(permutation(i) for i in range(n)) == list(range(n))


def test_positions_are_spread_evenly() -> None:
    # where element 0 lands over many keys: chi-square on 10 bins of 400 draws, 99.9 % quantile of 9 degrees is 27.9
    bins = Counter(Permutation(1000, str(k).encode())(0) // 100 for k in range(400))
    assert sum((bins[b] - 40) ** 2 / 40 for b in range(10)) < 27.9


def test_seek_does_not_depend_on_size() -> None:
    far = Permutation(10**9, b"x")
    assert 0 <= far(10**9 - 1) < 10**9
    with pytest.raises(IndexError):
        far(10**9)


def test_an_epoch_uses_every_row_once_and_a_share_of_a_blend() -> None:
    sources = [Source("synth", 50), Source("mine", 40, share=0.3)]
    order = GlobalOrder(sources, fingerprint="f", seed=1)
    assert order.epoch_rows == 62
    epochs = [[order[e * 62 + i] for i in range(62)] for e in range(3)]
    for epoch in epochs:
        assert Counter(s for s, _ in epoch) == {0: 50, 1: 12}
        assert sorted(r for s, r in epoch if s == 0) == list(range(50))
        assert len({r for s, r in epoch if s == 1}) == 12
    assert epochs[0] != epochs[1]
    assert {r for s, r in epochs[0] if s == 1} != {r for s, r in epochs[1] if s == 1}


def test_order_is_a_pure_function_of_data_seed_and_position() -> None:
    def first(fingerprint: str, seed: int) -> list[tuple[int, int]]:
        return GlobalOrder([Source("a", 100)], fingerprint=fingerprint, seed=seed).batch(0, 20)

    assert first("f", 1) == first("f", 1)
    assert first("f", 1) != first("f", 2)
    assert first("f", 1) != first("g", 1)
    order = GlobalOrder([Source("a", 100)], fingerprint="f", seed=1)
    late = order[12_345]
    assert GlobalOrder([Source("a", 100)], fingerprint="f", seed=1)[12_345] == late
    # the batch size changes the cut, never the order
    assert order.batch(0, 40) == [*order.batch(0, 20), *order.batch(1, 20)]


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=4),
    st.integers(2, 25),
    st.integers(0, 5),
)
@settings(max_examples=80, deadline=None)
def test_batches_of_one_source_still_use_every_row_once_an_epoch(rows: list[int], block: int, seed: int) -> None:
    sources = [Source(f"s{i}", n) for i, n in enumerate(rows)]
    order = GlobalOrder(sources, fingerprint="f", seed=seed, block=block)
    n = order.epoch_rows
    for epoch in range(3):
        assert Counter(order[epoch * n + i] for i in range(n)) == Counter(
            (s, r) for s, c in enumerate(rows) for r in range(c)
        )


def test_nearly_all_batches_are_of_one_source() -> None:
    sources = [Source("a", 1000), Source("b", 330), Source("c", 77, share=0.5)]
    order = GlobalOrder(sources, fingerprint="f", seed=1, block=16)
    steps = 4 * order.epoch_rows // 16
    batches = [order.batch(s, 16) for s in range(steps)]
    mixed = [b for b in batches if len({s for s, _ in b}) > 1]
    # an epoch's rest: fewer than one batch of each source, and one batch given up to fill up the epoch before
    assert len(mixed) <= 4 * (len(sources) + 1)
    firsts = [b[0][0] for b in batches]
    assert firsts[:40] != sorted(firsts[:40]), "sources take turns in no fixed order"
