"""Crashes, other batch sizes and other ranks change how the sequence of samples is cut, and nothing else."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.arrange import WINDOW, Arrangement
from train.cursor import GlobalOrder, Source
from train.draws import Draw, Draws


def blend(rows: list[int], share: float, block: int | None = None) -> GlobalOrder:
    sources = [Source(f"s{i}", n, share if i else 1.0) for i, n in enumerate(rows)]
    return GlobalOrder(sources, fingerprint="f", seed=2, block=block)


def arrangement_of(order: GlobalOrder, batch: int, *, homogeneous: bool) -> Arrangement:
    """As train/pair_stream.py makes it; a third of all rows carries one of five texts."""

    def keys(position: int) -> tuple[int, ...]:
        source, row = order[position]
        return (row % 5 if row % 3 == 0 else 100 + row, 10_000 * (source + 1) + row)

    def group(position: int) -> tuple[int, int | None]:
        return position // order.epoch_rows, order[position][0] if homogeneous else None

    return Arrangement(batch, keys=keys, group=group)


def expected_epoch(order: GlobalOrder) -> list[Counter[int]]:
    return [Counter({number: s.rows_per_epoch}) for number, s in enumerate(order.sources)]


@given(
    rows=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    share=st.sampled_from([0.3, 1.0]),
    order_batch=st.integers(2, 8),
    starts=st.lists(st.tuples(st.integers(0, 12), st.sampled_from([-3, -2, 1, 2, 3]), st.integers(1, 5)), max_size=8),
    arranged=st.booleans(),
    homogeneous=st.booleans(),
    epochs=st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_any_history_of_crashes_uses_every_sample_of_every_epoch_once(
    rows: list[int],
    share: float,
    order_batch: int,
    starts: list[tuple[int, int, int]],
    arranged: bool,
    homogeneous: bool,
    epochs: int,
) -> None:
    order = blend(rows, share, order_batch if homogeneous else None)
    end = epochs * order.epoch_rows
    done_steps = done = 0
    kept: list[tuple[int, int]] = []
    # each start: steps until it crashes, factor of the batch size, ranks; every second step is saved, what comes after
    # the last saved one is lost; the last start goes through to the end
    for steps, factor, ranks in [*starts, (10**9, 1, 1)]:
        batch = order_batch * factor if factor > 0 else max(1, order_batch // -factor)
        if order_batch % batch and batch % order_batch:
            continue
        arrangement = arrangement_of(order, order_batch, homogeneous=homogeneous) if arranged else None
        # a new process: nothing but (done_steps, done) is remembered
        draws = Draws(order, batch=batch, end=end, arrangement=arrangement, done_steps=done_steps, done=done)
        reached = min(draws.steps, done_steps + steps)
        saved = reached if reached == draws.steps else done_steps + (reached - done_steps) // 2 * 2
        for step in range(done_steps + 1, reached + 1):
            draw = draws(step)
            assert len(draw.samples) == len(draw.positions) == len(draw) <= batch
            hands = [draw.samples[rank::ranks] for rank in range(ranks)]
            assert Counter(s for hand in hands for s in hand) == Counter(draw.samples)
            if step <= saved:
                assert draw.first == done
                kept += draw.samples
                done = draw.end
        done_steps = saved
    assert done == end
    whole = arrangement_of(order, order_batch, homogeneous=homogeneous) if arranged else None
    assert kept == Draws(order, batch=end, end=end, arrangement=whole)(1).samples, "the cuts change no place"
    for epoch in range(epochs):
        used = Counter(kept[epoch * order.epoch_rows : (epoch + 1) * order.epoch_rows])
        assert set(used.values()) == {1}
        assert Counter(source for source, _ in used) == sum(expected_epoch(order), Counter())


def test_the_last_step_ends_where_the_phase_ends() -> None:
    order = blend([10], 1.0)
    draws = Draws(order, batch=4, end=10)
    assert draws.steps == 3
    assert [(draws(s).first, draws(s).end) for s in (1, 2, 3)] == [(0, 4), (4, 8), (8, 10)]
    on = Draws(order, batch=2, end=10, done_steps=2, done=8)
    assert on.steps == 3
    assert on(3).samples == draws(3).samples
    assert Draws(order, batch=4, end=10, done_steps=3, done=10).steps == 3


@pytest.mark.parametrize("step", [-1, 0, 2, 6])
def test_a_step_that_is_done_or_beyond_the_end_is_refused(step: int) -> None:
    with pytest.raises(IndexError, match=f"step {step}"):
        Draws(blend([20], 1.0), batch=4, end=20, done_steps=2, done=8)(step)


def test_a_draw_lies_across_epochs() -> None:
    order = blend([7], 1.0)
    draw = Draws(order, batch=5, end=100)(2)
    assert draw.samples == [order[p] for p in range(5, 10)]


def test_nothing_is_arranged_differently_with_the_first_batch_size() -> None:
    order = blend([300, 60], 0.5)
    arrangement = arrangement_of(order, 8, homogeneous=False)
    moved = 0
    for step in range(1, 2 * WINDOW):
        draw = Draws(order, batch=8, end=10**6, arrangement=arrangement)(step)
        assert draw.samples == [order[p] for p in draw.positions]
        moved += sum(p != draw.first + i for i, p in enumerate(draw.positions))
        texts = Counter(row % 5 for _, row in draw.samples if row % 3 == 0)
        assert draw.duplicates == sum(n for n in texts.values() if n > 1)
    assert moved > 20


def test_two_threads_ask_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    order = blend([30, 11], 1.0)
    draws = Draws(order, batch=4, end=4000, arrangement=arrangement_of(order, 4, homogeneous=False))
    steps = [random.Random(0).randrange(1, 1000) for _ in range(150)]
    alone = [draws(step) for step in steps]
    with ThreadPoolExecutor(2) as pool:
        both: list[list[Draw]] = list(pool.map(lambda wanted: [draws(s) for s in wanted], [steps, steps[::-1]]))
    assert both == [alone, alone[::-1]]
