"""Ranks as one step: what srun says of them becomes who ended how, which node it was, and what is told."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm

from launch.failure import Logs
from launch.recipe import LaunchConfig
from launch.slurm.config import SlurmConfig
from launch.slurm.inside import ranks as module
from launch.slurm.inside.allocation import Allocation
from launch.slurm.inside.ranks import StepRanks, StepStarter, exit_code, numbers
from launch.slurm.scheduler.commands import Slurm

NODES = ("node1", "node2")
REPO = Path(__file__).resolve().parents[3]
# Tasks as they are when nobody fails: each takes its place, and then does as it is told.
TASKS = """\
import os, subprocess, sys, time
from launch.slurm.inside.roll_call import report
rank = int(os.environ.get("SLURM_PROCID", -1))
if rank < 0:
    tasks = [subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env={**os.environ, "SLURM_PROCID": str(n)}) for n in range(4)]
    sys.exit(max(task.wait() for task in tasks))
time.sleep(float(os.environ.get("LATE_S", 0)))
report(rank=rank, ranks=4, host=f"node{rank // 2 + 1}", step="3")
"""


class Lab:
    """Four ranks on two nodes, started by an srun of which the test says what it does."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fake = FakeSlurm(folder / "bin", monkeypatch)
        monkeypatch.setenv("PYTHONPATH", str(REPO))
        self.folder, self.events = folder, list[tuple[str, dict[str, Any]]]()
        self.looked = 0
        place = Allocation("12", 1, NODES, 2, None)
        settings = SlurmConfig(start_within_s=20, cpus_per_task=3)
        self.starter = StepStarter(
            place, settings, Slurm(pauses_s=()), note=lambda name, **facts: self.events.append((name, facts)),
            before=self._look,
        )  # fmt: skip

    def _look(self) -> None:
        self.looked += 1

    def srun(self, shell: str) -> StepRanks:
        """The step, of an srun that does this."""
        self.fake.does("srun.answer", shell)
        logs = Logs(self.folder / "logs 100%", 4)
        return self.starter.start(
            self.folder / "job.json", launch=LaunchConfig(nproc=4), logs=logs, phase="pretrain"
        )  # fmt: skip

    def tasks(self, *, then: str = "", late_s: float = 0) -> str:
        """Shell for tasks that all report, and then do something in Python."""
        file = self.folder / "tasks.py"
        file.write_text(TASKS + then + "\n")
        return f"LATE_S={late_s} exec {shlex.quote(sys.executable)} {shlex.quote(str(file))}"

    def end(self, shell: str) -> StepRanks:
        """Follow a step to its end."""
        with self.srun(shell) as ranks:
            until(ranks, lambda: not ranks.running)
        return ranks


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(tmp_path, monkeypatch)


def until(ranks: StepRanks, happened: Callable[[], bool], within_s: float = 30) -> None:
    end = time.monotonic() + within_s
    while not happened():
        assert time.monotonic() < end
        ranks.wait(0.1)


def says(*lines: str, code: int) -> str:
    return "".join(f"echo {shlex.quote(line)} >&2\n" for line in lines) + f"exit {code}"


def test_numbers_and_ends_are_read_as_srun_writes_them() -> None:
    assert numbers("3") == [3] and numbers("0-2,5") == [0, 1, 2, 5]
    assert exit_code("Exited with exit code 77") == 77
    assert exit_code("Killed") == -9 and exit_code("Terminated") == -15
    assert exit_code("Segmentation fault (core dumped)") == -11 and exit_code("User defined signal 1") == -10
    assert exit_code("Job step aborted") is None


def test_all_end_well_and_who_came_is_noted(lab: Lab) -> None:
    ranks = lab.end(lab.tasks())
    assert sorted(ranks.ended) == [(0, 0), (1, 0), (2, 0), (3, 0)] and ranks.left == [] and ranks.trouble() is None
    ((name, facts),) = lab.events
    assert name == "roll_call"
    assert facts["came"] == [[0, "node1"], [1, "node1"], [2, "node2"], [3, "node2"]] and facts["seconds"] > 0


def test_the_step_is_asked_for_whole_on_all_nodes(lab: Lab) -> None:
    lab.end("exit 0")
    given = lab.fake.given("srun")
    assert {"--nodes=2", "--ntasks=4", "--ntasks-per-node=2", "--distribution=block"} <= set(given)
    assert {"--kill-on-bad-exit=1", "--cpus-per-task=3", "--input=none", "--mpi=none"} <= set(given)
    folder = f"{lab.folder}/logs 100%%"  # srun replaces what begins with a percent sign
    assert f"--output={folder}/rank-%t/stdout.log" in given and f"--error={folder}/rank-%t/stderr.log" in given
    assert given[-4:] == [sys.executable, "-m", "launch.worker", str(lab.folder / "job.json")]
    assert lab.looked == 0 and lab.starter.job_facts(LaunchConfig(), meeting=lab.folder) == {"store": None, "job": "12"}
    assert lab.looked == 1 and lab.starter.identity == ("12", 1)


def test_the_first_that_was_killed_is_the_cause(lab: Lab) -> None:
    ranks = lab.end(
        says(
            "srun: error: node2: task 2: Killed",
            "srun: Terminating StepId=12.3",
            "slurmstepd: error: *** STEP 12.3 ON node1 CANCELLED AT 2026-11-22T20:00:00 ***",
            "srun: error: node1: tasks 0-1: Terminated",
            "srun: error: node2: task 3: Terminated",
            code=137,
        )
    )
    assert ranks.ended == [(2, -9), (0, -15), (1, -15), (3, -15)] and ranks.trouble() is None
    assert ranks.host(2) == "node2" and ranks.who(2) == "rank 2 (node2)"


def test_exit_codes_are_those_of_the_ranks(lab: Lab) -> None:
    ranks = lab.end(says("srun: error: node1: tasks 0-1: Exited with exit code 75", code=75))
    assert ranks.ended == [(0, 75), (1, 75)] and ranks.left == [2, 3]


def test_a_line_that_is_being_written_is_read_when_it_is_whole(lab: Lab) -> None:
    go = lab.folder / "go"
    shell = (
        "printf 'srun: error: node2: task 2: Exited with exit code 1' >&2\n"
        f"while [ ! -e {shlex.quote(str(go))} ]; do sleep 0.05; done\necho 0 >&2\nsleep 600"
    )
    with lab.srun(shell) as ranks:
        said = lab.folder / "logs 100%" / "step.log"
        until(ranks, lambda: said.stat().st_size > 0)
        ranks.wait(0.2)
        assert ranks.ended == []
        go.touch()
        until(ranks, lambda: bool(ranks.ended))
        assert ranks.ended == [(2, 10)]


def test_what_an_earlier_start_said_is_not_of_this_one(lab: Lab) -> None:
    first = lab.end(says("srun: error: node2: task 2: Killed", code=137))
    again = lab.end("exit 0")
    assert first.ended[0] == (2, -9) and {code for _, code in again.ended} == {0}


@pytest.mark.parametrize(
    "line",
    [
        "srun: error: Node failure on node2",
        "slurmctld: node failure on node2",
        "srun: error: Task launch for StepId=12.3 failed on node node2: Communication connection failure",
    ],
)
def test_a_node_that_fails_is_named(lab: Lab, line: str) -> None:
    ranks = lab.end(says(line, "srun: error: node1: tasks 0-1: Killed", code=1))
    trouble = ranks.trouble()
    assert trouble is not None and trouble.hosts == ("node2",) and not trouble.again_here
    assert line in str(trouble)


def test_a_step_that_cannot_be_created_says_why(lab: Lab) -> None:
    ranks = lab.end(says("srun: error: Unable to create step for job 12: Requested nodes are busy", code=1))
    trouble = ranks.trouble()
    assert trouble is not None and trouble.cause == "step failed" and trouble.hosts == ()
    assert "could not be started" in trouble.line and "Requested nodes are busy" in trouble.line
    assert str(lab.folder / "logs 100%" / "step.log") in str(trouble)


def test_a_signal_goes_through_the_scheduler_to_the_step(lab: Lab) -> None:
    with lab.srun(lab.tasks(then="time.sleep(600)")) as ranks:
        until(ranks, lambda: bool(lab.events))
        ranks.signal(signal.SIGUSR1)
        assert lab.fake.given("scancel") == ["--signal=USR1", "12.3"]


def test_a_signal_that_comes_before_anybody_has_reported_is_sent_later_once(lab: Lab) -> None:
    with lab.srun(lab.tasks(then="time.sleep(600)", late_s=0.5)) as ranks:
        ranks.signal(signal.SIGTERM)
        assert lab.fake.calls("scancel") == 0  # nobody knows yet where to
        until(ranks, lambda: lab.fake.calls("scancel") > 0)
        until(ranks, lambda: bool(lab.events))
        ranks.wait(0.1)
        assert lab.fake.calls("scancel") == 1 and lab.fake.given("scancel") == ["--signal=TERM", "12.3"]


def test_who_does_not_come_is_named(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab.starter, "_settings", SlurmConfig(start_within_s=0.3))
    with lab.srun("sleep 600") as ranks:
        until(ranks, lambda: ranks.trouble() is not None)
        trouble = ranks.trouble()
    assert trouble is not None and trouble.cause == "roll call" and trouble.hosts == NODES
    assert "ranks 0-1 on node1; ranks 2-3 on node2 did not report within 0 s" in trouble.line


def alive(file: Path) -> bool:
    return Path(f"/proc/{file.read_text().strip()}/cmdline").exists() and bool(
        Path(f"/proc/{file.read_text().strip()}/cmdline").read_bytes()
    )


def test_nothing_of_the_step_outlives_the_block(lab: Lab) -> None:
    here = lab.folder / "child"
    shell = f"trap 'kill $child; exit 143' TERM\nsleep 600 &\nchild=$!; echo $child >{shlex.quote(str(here))}.new\n"
    with lab.srun(shell + f"mv {shlex.quote(str(here))}.new {shlex.quote(str(here))}\nwait") as ranks:
        until(ranks, here.exists)
        assert alive(here)
    until(ranks, lambda: not alive(here), 5)


def test_a_client_that_does_not_end_is_killed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KILL_AFTER_S", 0.3)
    here = lab.folder / "own"
    with lab.srun(f"trap '' TERM\necho $$ >{shlex.quote(str(here))}\nwhile :; do sleep 0.1; done") as ranks:
        until(ranks, lambda: here.exists() and here.read_text().endswith("\n"))
    until(ranks, lambda: not alive(here), 5)
