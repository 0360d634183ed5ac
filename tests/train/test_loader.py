"""The prefetch thread: same items, same order, same errors, and no thread left behind."""

from __future__ import annotations

import threading
import time
import traceback

import pytest

from data_prep.errors import UserError
from train.loader import Prefetch


def _threads() -> int:
    return sum(t.name == "prefetch" for t in threading.enumerate())


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_the_same_items_in_the_same_order(depth: int) -> None:
    with Prefetch(lambda step: step * step, range(3, 40), depth=depth) as items:
        assert list(items) == [s * s for s in range(3, 40)]
        with pytest.raises(StopIteration):
            next(items)
    assert _threads() == 0


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_comes_where_its_item_would_and_keeps_its_traceback(depth: int) -> None:
    def fail_on_two(step: int) -> int:
        if step == 2:
            raise UserError("row 2", "is damaged", "mend it")
        return step

    with Prefetch(fail_on_two, range(5), depth=depth) as items:
        assert [next(items), next(items)] == [0, 1]
        with pytest.raises(UserError, match="is damaged") as caught:
            next(items)
    assert "fail_on_two" in "".join(traceback.format_exception(caught.value))
    assert _threads() == 0


def test_no_more_than_depth_items_are_made_ahead() -> None:
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        return step

    with Prefetch(make, range(100), depth=3) as items:
        assert next(items) == 0
        deadline = time.monotonic() + 10
        while len(made) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        # three are ready, one is in the thread's hand, one was taken
        assert len(made) <= 5
    assert len(made) <= 6


def test_the_thread_ends_with_the_block_after_an_error_of_the_consumer() -> None:
    with pytest.raises(KeyboardInterrupt), Prefetch(lambda step: step, range(10**9), depth=2) as items:
        next(items)
        raise KeyboardInterrupt
    assert _threads() == 0
    items.close()


def test_items_are_made_while_the_consumer_works() -> None:
    started = threading.Event()

    def make(step: int) -> int:
        if step == 1:
            started.set()
        return step

    with Prefetch(make, range(3), depth=1) as items:
        assert next(items) == 0
        assert started.wait(10), "step 1 is made although nobody asked for it"
