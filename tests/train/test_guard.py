"""Stopping on request, and steps that are not taken."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from train.guard import STOP_SIGNALS, Diverged, GuardConfig, StepJudge, StopRequest


@pytest.fixture
def handlers() -> Iterator[None]:
    """The signal handlers of the test run, put back afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_nothing_else_happens(handlers: None, number: signal.Signals) -> None:
    request = StopRequest()
    request.install()
    assert request.reason() is None
    os.kill(os.getpid(), number)
    assert request.reason() == number.name
    os.kill(os.getpid(), signal.SIGTERM)
    assert request.reason() == number.name  # the first is the reason


def test_a_deadline_is_a_reason_once_it_has_passed() -> None:
    request = StopRequest(deadline=time.time() + 0.05)
    assert request.reason() is None
    time.sleep(0.06)
    assert request.reason() == "time limit"
    request.deadline = time.time() + 100
    assert request.reason() is None


def test_a_blocked_system_call_does_not_lose_the_signal() -> None:
    """A real process asleep in a read: the handler runs, the sleep goes on, the flag is there afterwards."""
    code = (
        "import sys, time\nfrom train.guard import StopRequest\nr = StopRequest(); r.install()\n"
        "print('ready', flush=True)\nsys.stdin.readline()\nprint(r.reason(), flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin and process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGUSR2)
        time.sleep(0.1)
        assert process.poll() is None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "SIGUSR2\n"


def test_a_signal_that_came_before_the_process_was_ready_is_not_lost() -> None:
    code = (
        "import os, signal, sys\nfrom train.guard import StopRequest\n"
        "os.kill(os.getpid(), signal.SIGTERM)\nr = StopRequest()\nr.install()\nsys.exit(r.reason() != 'SIGTERM')\n"
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        process = subprocess.Popen([sys.executable, "-c", code])  # inherits the mask
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.wait(20) == 0


def test_the_guard_loads_no_torch() -> None:
    code = "import sys, train.guard; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def take(judge: StepJudge, loss: float, norm: float | None = 1.0) -> tuple[str | None, bool]:
    reason = judge.judge_loss(loss) or judge.judge_norm(norm)
    return reason, judge.record(reason)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_skipped(loss: float) -> None:
    assert take(StepJudge(GuardConfig()), loss) == (f"the loss is {loss}", False)


def test_a_norm_that_is_not_finite_is_skipped_and_an_unknown_one_is_not() -> None:
    judge = StepJudge(GuardConfig())
    assert take(judge, 1.0, math.inf) == ("the gradient norm is inf", False)
    assert take(judge, 1.0, None) == (None, False)


def test_bad_steps_in_a_row_go_back_and_too_many_times_is_the_end() -> None:
    judge = StepJudge(GuardConfig(bad_steps=2, rewinds=2))
    assert [take(judge, x)[1] for x in (math.nan, 1.0, math.nan, math.nan)] == [False, False, False, True]
    assert [take(judge, x)[1] for x in (math.nan, math.nan)] == [False, True]  # counted anew after going back
    take(judge, math.nan)
    with pytest.raises(Diverged, match=r"2 steps in a row .*the loss is nan.*2 rewinds.*guard\.rewinds.*Fix:"):
        take(judge, math.nan)
    with pytest.raises(Diverged):
        take(StepJudge(GuardConfig(bad_steps=1, rewinds=0)), math.nan)


def test_a_spike_is_judged_by_the_accepted_losses_of_the_window() -> None:
    """Against the definition, with the statistics module: only accepted losses count, only the last ten."""
    draw = random.Random(0)
    judge, accepted = StepJudge(GuardConfig(spike_z=3.0, spike_window=10, bad_steps=1000)), list[float]()
    skipped = 0
    for step in range(400):
        loss = draw.gauss(2.0, 0.1) + (5.0 if draw.random() < 0.05 else 0.0)
        last = accepted[-10:]
        expected = len(last) == 10 and loss > statistics.fmean(last) + 3.0 * statistics.stdev(last)
        reason, _ = take(judge, loss)
        assert (reason is not None) == expected, step
        skipped += expected
        if not expected:
            accepted.append(loss)
    assert skipped > 10
    assert take(StepJudge(GuardConfig()), 1e9) == (None, False)  # off unless asked for


def test_a_falling_loss_is_no_spike() -> None:
    judge = StepJudge(GuardConfig(spike_z=2.0, spike_window=10))
    assert all(take(judge, 10.0 - 0.1 * i) == (None, False) for i in range(90))


@pytest.mark.parametrize("cut", [0, 3, 17, 60])
def test_a_judge_goes_on_from_its_state_as_if_never_stopped(cut: int) -> None:
    draw = random.Random(cut)
    losses = [math.nan if draw.random() < 0.2 else draw.gauss(2, 0.1) * (1 + (draw.random() < 0.1)) for _ in range(90)]
    config = GuardConfig(spike_z=2.5, spike_window=10, bad_steps=2, rewinds=1000)
    whole = StepJudge(config)
    expected = [take(whole, x) for x in losses]
    first = StepJudge(config)
    seen = [take(first, x) for x in losses[:cut]]
    second = StepJudge(config)
    second.load(json.loads(json.dumps(first.state())))
    seen += [take(second, x) for x in losses[cut:]]
    assert seen == expected and second.state() == whole.state()


def test_going_back_forgets_no_rewind() -> None:
    judge = StepJudge(GuardConfig(bad_steps=1, rewinds=1))
    saved = judge.state()
    assert take(judge, math.nan)[1]
    judge.load(saved)
    with pytest.raises(Diverged):
        take(judge, math.nan)
