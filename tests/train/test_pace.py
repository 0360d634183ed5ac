"""No step is begun that cannot be saved before the deadline."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_loop import Batch, train

from train.guard import StopRequest
from train.history import saver as saver_module
from train.history.part import write_verified
from train.pace import RECENT, SLACK, Pace
from train.survival import Stopped


class Clock:
    """Time that passes where the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    with monkeypatch.context() as patch:
        yield Clock(patch)


def step(pace: Pace, clock: Clock, seconds: float) -> None:
    pace.begin()
    clock.now += seconds
    pace.end()


def test_the_first_step_counts_until_another_is_known(clock: Clock) -> None:
    pace = Pace(save_bytes=0)
    pace.saved(2.0)
    step(pace, clock, 60.0)
    # the step that runs, the next one (which may be longer again), the save
    assert pace.needed_s() == pytest.approx(SLACK * (60 + SLACK * 60 + 2))
    step(pace, clock, 1.0)
    assert pace.needed_s() == pytest.approx(SLACK * (1 + SLACK * 1 + 2))
    pace.begin()
    clock.now += 0.5
    assert pace.needed_s() == pytest.approx(SLACK * (1 + SLACK * 1 + 2) - 0.5), (
        "what has passed of a step is no more to come"
    )
    clock.now += 9.5
    assert pace.needed_s() == pytest.approx(0.5 * 10 + SLACK * (SLACK * 10 + 2)), (
        "a step that already takes longer counts"
    )


def test_only_recent_steps_count_and_saves_and_rewinds_are_no_steps(clock: Clock) -> None:
    pace = Pace(save_bytes=0)
    pace.saved(0.0)
    step(pace, clock, 1.0)
    step(pace, clock, 30.0)
    for _ in range(RECENT):
        assert pace.needed_s() == pytest.approx(SLACK * (1 + SLACK) * 30)
        pace.begin()
        clock.now += 1.0
        with pace.pausing():
            clock.now += 20.0
            with pace.pausing():
                clock.now += 80.0
        pace.end()
    assert pace.needed_s() == pytest.approx(SLACK * (1 + SLACK) * 1)


def test_a_save_in_flight_and_one_that_is_due_are_waited_for(clock: Clock) -> None:
    pace = Pace(save_bytes=0)
    pace.saved(10.0)
    assert pace.needed_s() == pytest.approx(15)
    assert pace.needed_s(saving_s=4.0) == pytest.approx(SLACK * 15 + 11)
    assert pace.needed_s(saving_s=40.0) == pytest.approx(SLACK * 15)
    assert pace.needed_s(saving_s=5.0, due=True) == pytest.approx(10 + SLACK * 15 + SLACK * SLACK * 15)
    assert pace.needed_s(due=True) == pytest.approx(15 + SLACK * 15)
    pace.saved(None)  # none since
    assert pace.needed_s() == pytest.approx(15)


def test_a_save_that_nobody_has_seen_is_guessed_by_its_size_or_known_from_the_last_start(clock: Clock) -> None:
    pace = Pace(save_bytes=12 * 10**9)
    assert pace.needed_s() == pytest.approx(121)
    known = Pace(save_bytes=0)
    known.saved(3.0)
    pace.load(json.loads(json.dumps(known.state())))
    assert pace.needed_s() == pytest.approx(4.5)
    pace.load(None)
    pace.load({"save_s": None})
    assert pace.needed_s() == pytest.approx(4.5)


def played(draw: random.Random, clock: Clock) -> tuple[float, float, int]:
    """A loop on a clock, against the one who decides how long things take: (deadline, all saved at, steps).

    Steps and saves are short until the deadline comes near, and then as long as the promise allows.
    """
    pace = Pace(save_bytes=0)
    usual_s, save_s, every = draw.uniform(0.5, 5), draw.uniform(0, 20), draw.randrange(1, 9)
    deadline = clock.now + draw.uniform(100, 400)
    near = deadline - draw.uniform(0, 6) * (usual_s + save_s)
    pace.saved(save_s)
    last_save_s = save_s
    recent: list[float] = []
    flight: tuple[float, float] | None = None  # begin and end of the save in flight
    number, stop = 0, False
    while not stop:
        number += 1
        grown = SLACK if clock.now > near else 1.0
        took = (grown * max(recent[-RECENT:]) if recent else usual_s) if number > 1 else 30.0
        at = took * draw.choice([0.0, 0.5, 1.0])
        pace.begin()
        clock.now += at
        due = number % every == 0
        in_flight = flight is not None and flight[1] > clock.now
        if flight is not None and not in_flight:
            pace.saved(flight[1] - flight[0])
        stop = clock.now + pace.needed_s(saving_s=clock.now - flight[0] if flight and in_flight else None, due=due) > (
            deadline
        )
        clock.now += took - at
        if due or stop:
            with pace.pausing():
                if flight is not None:
                    clock.now = max(clock.now, flight[1])
                last_save_s = SLACK * last_save_s if clock.now > near else save_s
                flight = (clock.now, clock.now + last_save_s)
        pace.end()
        if number > 1:
            recent.append(took)
    assert flight is not None
    return deadline, flight[1], number


def test_as_long_as_nothing_takes_half_as_much_again_all_is_saved_in_time(clock: Clock) -> None:
    draw = random.Random(0)
    spare = []
    for _ in range(4000):
        deadline, saved, steps = played(draw, clock)
        if steps > 2:  # else the first step, of which nobody knew anything, was too long for the time there was
            assert saved <= deadline + 1e-6, (deadline, saved, steps)
            spare.append(deadline - saved)
    assert len(spare) > 3000 and min(spare) < 1.0, "the promise is kept, and not by stopping much too early"


def slowly(seconds: float, times: list[float]) -> Callable[[Batch], float]:
    def teach(batch: Batch) -> float:
        time.sleep(seconds)
        times.append(time.time())
        return 1.0

    return teach


@pytest.mark.parametrize("background", [True, False])
def test_the_loop_stops_and_has_saved_before_the_deadline(
    background: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of 0.1 s, saves of 0.3 s on a slow disk that is known from an earlier start: real time, no clock faked."""

    def slow(*arguments: object) -> tuple[int, str]:
        time.sleep(0.3)
        return write_verified(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(saver_module, "write_verified", slow)
    history, out, taught = tmp_path / "history", tmp_path / "out", list[float]()
    stop, teach = StopRequest(), slowly(0.1, taught)

    def begins(batch: Batch) -> float:
        stop.deadline = stop.deadline or time.time() + 4.0  # whatever the start took on a busy machine
        return teach(batch)

    with pytest.raises(Stopped, match="time limit") as stopped:
        train(history, out, steps=400, every=4, background=background, stop=stop, teach=begins)
    ended, done, deadline = time.time(), len(taught), stop.deadline or 0.0
    assert stopped.value.reason == "time limit"
    assert 2 < done < 36 and stopped.value.step == done, "every step that was done is saved"
    steps = [after - before for before, after in itertools.pairwise(taught)]
    # what a busy machine took beyond the promise's condition: the last step, and the saves after it
    more = max(0.0, steps[-1] - SLACK * max(steps[:-1])) + max(0.0, ended - taught[-1] - SLACK * 2 * 0.3)
    assert ended < deadline + more
    assert (history / "checkpoints" / "latest").read_text() == f"step-{done:08d}\n"
    records = [json.loads(line) for line in (history / "ledger.jsonl").read_text().splitlines()]
    assert (records[-1]["kind"], records[-1]["reason"], records[-1]["step"]) == ("stop", "time limit", done)

    # a start that cannot save even one step begins none, and says so
    with pytest.raises(Stopped) as again:
        train(history, out, steps=400, deadline=time.time() + 0.3, teach=slowly(0.1, taught))
    assert (again.value.step, len(taught)) == (done, done)


def test_the_last_step_needs_no_time_for_another(tmp_path: Path) -> None:
    taught: list[float] = []
    train(tmp_path / "history", tmp_path / "out", steps=2, deadline=time.time() + 3.0, teach=slowly(0.05, taught))
    assert len(taught) == 2
