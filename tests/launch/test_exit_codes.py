"""What the command ends with, and the one line that says why."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from data_prep.errors import UserError
from launch import cli
from launch.failure import Hung, RankFailure
from train.guard import STOP_SIGNALS, Diverged
from train.survival import Stopped


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The signal handlers of the test run, put back afterwards."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def ended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], act: Callable[[], None]
) -> tuple[int, str]:
    """Exit code and error output of `rumpun demo` where it does this."""
    monkeypatch.setattr(cli, "_run", lambda *_, **__: act())
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo"])
    return int(stop.value.code or 0), capsys.readouterr().err


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Stopped("SIGUSR1", 12), 75, "stopped by SIGUSR1 after step 12; the same command goes on from there"),
        (Hung("hang: rank 3 is behind"), 76, "error: hang: rank 3 is behind"),
        (Diverged("training diverged"), 77, "error: training diverged"),
        (RankFailure("a rank died", line="", cause=""), 1, "error: a rank died"),
        (UserError("x", "is wrong", "mend it"), 2, "error: x: is wrong. Fix: mend it"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_training_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, line: str
) -> None:
    assert ended(monkeypatch, capsys, raising(error)) == (code, line + "\n")


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_run", lambda *_, **__: raising(ZeroDivisionError())())
    with pytest.raises(ZeroDivisionError):
        cli.main(["demo"])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75), (signal.SIGINT, 130)]
)
def test_a_signal_where_no_rank_runs_unwinds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int
) -> None:
    unwound = []

    def act() -> None:
        try:
            os.kill(os.getpid(), number)
            signal.pause()
        finally:
            unwound.append(True)

    found, err = ended(monkeypatch, capsys, act)
    assert (found, unwound) == (code, [True])
    assert ("the same command goes on" in err) == (code != 143)
