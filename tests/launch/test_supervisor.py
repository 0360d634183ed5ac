"""Restarts: what is tried again, what is not, and what the user is told. Ranks are real processes that fail by plan."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from phase_lab import Lab, use_fake

from data_prep.errors import UserError
from launch.failure import Hung, RankFailure
from launch.supervisor import run_phase
from train.survival import Stopped

KILL = ["signal", int(signal.SIGKILL)]
DONE = ["done", 0]
BEGUN = [["at", ["data", 1]], ["at", ["data", 2]]]


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    use_fake(monkeypatch)
    return Lab(tmp_path)


def test_a_crash_is_restarted_from_the_last_checkpoint_and_told_in_one_line(lab: Lab) -> None:
    plan = [
        [[["steps", [1, 2, 3]], ["save", 2], ["touch", "half"], KILL]],
        [[["cut", 2], ["steps", [3, 4]], ["raise", "odd"]]],
        [[["cut", 2], ["steps", [3, 4, 5]], DONE]],
    ]
    assert lab.run(run_phase, plan)["restart"] == 2
    first, second = lab.notes.lines
    assert first.startswith("[pretrain] rank 0 (pid ") and first.endswith(
        "was killed by SIGKILL (by the system, for want of memory? `dmesg` tells), after step 3; going on from step 2 "
        "(restart 1 of 3)"
    )
    assert "ended with exit code 1 (RuntimeError: odd), after step 4; going on from step 2 (restart 2 of 3)" in second
    assert lab.notes.steps == [1 / s for s in (1, 2, 3, 3, 4, 3, 4, 5)]
    assert not (lab.out / "half-0").exists()  # every start finds an empty folder


def test_the_same_failure_at_the_same_step_is_not_tried_a_third_time(lab: Lab) -> None:
    plan = [[[["steps", [7]], ["raise", f"out of memory: tried {i} MiB"]]] for i in (20, 40)]
    with pytest.raises(RankFailure, match=r"(?s)tried 40 MiB.*not restarted: it failed in the same way .*after step 7"):
        lab.run(run_phase, plan)
    assert len(lab.notes.lines) == 1 and "going on from the beginning (restart 1 of 3)" in lab.notes.lines[0]


def test_the_same_failure_elsewhere_and_another_failure_there_are_tried_until_the_limit(lab: Lab) -> None:
    plan = [
        [[["steps", [1]], ["raise", "a"]]],
        [[["steps", [2]], ["raise", "a"]]],
        [[["steps", [2]], ["raise", "b"]]],
    ]
    with pytest.raises(RankFailure, match=r"(?s)RuntimeError: b.*not restarted: it was 2 times \(launch\.restarts\)"):
        lab.run(run_phase, plan, restarts=2)
    assert len(lab.notes.lines) == 2


def test_no_restart_where_none_is_allowed(lab: Lab) -> None:
    with pytest.raises(RankFailure) as e:
        lab.run(run_phase, [[[["raise", "a"]]]], restarts=0)
    assert "not restarted" not in str(e.value) and lab.notes.lines == []


def test_a_mistake_is_not_restarted(lab: Lab) -> None:
    with pytest.raises(UserError):
        lab.run(run_phase, [[[["mistake", "x"]]]])
    assert lab.notes.lines == []


def test_a_stop_is_not_restarted_and_neither_is_a_crash_after_it(lab: Lab) -> None:
    lab.later("here-0", send=(signal.SIGUSR1,))
    with pytest.raises(Stopped, match="SIGUSR1 after step 7"):
        lab.run(run_phase, [[[["touch", "here"], ["until asked", 0]]]])
    (lab.out / "here-0").unlink()
    lab.later("here-0", send=(signal.SIGUSR1,), pause_s=0)
    with pytest.raises(RankFailure, match="not restarted: SIGUSR1 had asked it to stop"):
        lab.run(run_phase, [[[["touch", "here"], ["sleep", 1.0], ["raise", "a"]]]])


@pytest.mark.slow
def test_a_hang_is_restarted(lab: Lab) -> None:
    hung = [[*BEGUN, ["at", ["sum", 2]], ["sleep", 60]], [*BEGUN, ["sleep", 60]]]
    assert lab.run(run_phase, [hung, [[DONE], []]], hang_after_s=1.0, start_within_s=20.0)["restart"] == 1
    assert "hang: no rank moved" in lab.notes.lines[0] and "rank 1 (host" in lab.notes.lines[0]
    (lab.out / "summary.json").unlink()
    with pytest.raises(Hung, match="not restarted: it failed in the same way"):
        lab.run(run_phase, [hung, hung], hang_after_s=1.0, start_within_s=20.0)
