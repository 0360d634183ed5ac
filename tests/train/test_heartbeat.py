"""Hangs in real processes get one line that names the rank to blame; a run that moves gets none."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from train.exit_codes import HUNG
from train.heartbeat import Heartbeat
from train.verdict import STACK_SIGNAL, Beat, Watch, Witness, accuse, beat_file, main_frames, stack_file

JOB = Path(__file__).parent / "hang_job.py"
REPO = JOB.parent.parent.parent
HANG_S = 2.0


class Ranks:
    """The processes of a made-up run, killed at the end whatever happens."""

    def __init__(self, folder: Path, ranks: int, **plan: object) -> None:
        self.folder, self.ranks = folder, ranks
        whole = {"who": -1, "step": 3, "how": "", "steps": 1000, "pause_s": 0.02, "hang_after_s": HANG_S} | plan
        (folder / "beats").mkdir()
        self.processes = [
            subprocess.Popen(
                [sys.executable, str(JOB), str(folder), str(rank), str(ranks), json.dumps(whole)],
                env=os.environ | {"PYTHONPATH": str(REPO)}, stderr=(folder / f"err{rank}").open("wb"),
            )
            for rank in range(ranks)
        ]  # fmt: skip

    def verdict(self, within_s: float) -> dict:
        """verdict.json, waited for from the last step that was reached."""
        path, reached = self.folder / "beats" / "verdict.json", self.folder / "reached"
        deadline = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline, "no verdict at all"
            time.sleep(0.05)
        assert path.stat().st_mtime - reached.stat().st_mtime < within_s
        return json.loads(path.read_text())

    def codes(self, within_s: float = 5.0) -> list[int | None]:
        deadline = time.monotonic() + within_s
        while None in (codes := [p.poll() for p in self.processes]) and time.monotonic() < deadline:
            time.sleep(0.05)
        return codes

    def stacks(self, rank: int) -> str:
        return stack_file(self.folder / "beats", rank).read_text()

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Ranks]]:
    running: list[Ranks] = []
    yield running
    for ranks in running:
        ranks.end()


@pytest.mark.slow
@pytest.mark.parametrize("who", [2, 0])
def test_a_rank_asleep_in_its_data_wait_is_named(tmp_path: Path, started: list[Ranks], who: int) -> None:
    run = Ranks(tmp_path, 3, who=who, how="data")
    started.append(run)
    verdict = run.verdict(within_s=HANG_S + 6)
    assert verdict["guilty"] == [who]
    others = {2: "Ranks 0-1 wait", 0: "Ranks 1-2 wait"}[who]
    assert re.search(
        rf"no rank moved for 2 s: rank {who} \(host {re.escape(socket.gethostname())}, pid "
        rf"{run.processes[who].pid}\) is behind: at 'data' of step 3 for \d+ s, in wait_for_data \(hang_job\.py:\d+\)"
        rf".*\. {others} at 'sum' of step 3, in all_reduce \(distributed_c10d\.py:\d+\)\. Stacks of all: ",
        verdict["line"],
    ), verdict["line"]
    assert run.codes() == [HUNG] * 3
    assert verdict["line"] in (tmp_path / "err0").read_text()
    assert all("in all_reduce" in run.stacks(r) for r in range(3) if r != who)


@pytest.mark.slow
def test_an_endless_loop_is_named(tmp_path: Path, started: list[Ranks]) -> None:
    run = Ranks(tmp_path, 2, who=1, how="spin")
    started.append(run)
    verdict = run.verdict(within_s=HANG_S + 6)
    assert verdict["guilty"] == [1] and "in spin (hang_job.py:" in verdict["line"]
    assert run.codes() == [HUNG] * 2


@pytest.mark.slow
@pytest.mark.parametrize("who", [1, 0])
def test_a_stopped_rank_gives_no_answer(tmp_path: Path, started: list[Ranks], who: int) -> None:
    run = Ranks(tmp_path, 2, who=who, how="stop")
    started.append(run)
    verdict = run.verdict(within_s=HANG_S + 10)
    assert verdict["guilty"] == [who]
    assert f"pid {run.processes[who].pid}) gives no answer: its process is stopped (SIGSTOP?)" in verdict["line"]
    assert run.codes(2)[1 - who] == HUNG and run.codes(0)[who] is None  # the launcher's to kill


@pytest.mark.slow
def test_a_blocked_interpreter_still_shows_its_stack(tmp_path: Path, started: list[Ranks]) -> None:
    who = 0  # rank 1 has to ask
    run = Ranks(tmp_path, 2, who=who, how="block")
    started.append(run)
    verdict = run.verdict(within_s=HANG_S + 10)
    assert verdict["guilty"] == [who], verdict["line"]
    assert "blocks its interpreter in a call outside Python" in verdict["line"]
    assert re.search(r"called by block \(hang_job\.py|in match \(", verdict["line"]), verdict["line"]
    assert "in block" in run.stacks(who)
    assert run.codes(2)[1 - who] == HUNG


@pytest.mark.slow
def test_a_slow_run_one_that_was_suspended_and_one_that_is_asked_for_stacks_go_on(
    tmp_path: Path, started: list[Ranks]
) -> None:
    run = Ranks(tmp_path, 2, steps=4, pause_s=HANG_S * 0.6)
    started.append(run)
    while not (tmp_path / "reached").exists():
        time.sleep(0.05)
    for process in run.processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(HANG_S * 1.5)
    for process in run.processes:
        process.send_signal(signal.SIGCONT)
    run.processes[1].send_signal(STACK_SIGNAL)
    assert run.codes(60) == [0, 0]
    assert not (tmp_path / "beats" / "verdict.json").exists()
    assert re.search(r"line \d+ in main$", run.stacks(1), flags=re.MULTILINE)


def report(folder: Path, rank: int, passed: int, **more: object) -> None:
    beat = Beat(rank, "elsewhere", 1, "data", 5, passed=passed, in_step=passed, stepped=True)._replace(**more)  # type: ignore[arg-type]
    beat_file(folder, rank).write_text(json.dumps(beat._asdict()))


def watched(tmp_path: Path, **more: float) -> Watch:
    settings = {"ranks": 2, "hang_after_s": 0.2, "start_within_s": 0.5, "gap_s": 0.1} | more
    return Watch(tmp_path, **settings)  # type: ignore[arg-type]


def looks(watch: Watch, seconds: float) -> bool:
    """The last of the looks during so many seconds."""
    until, hung = time.monotonic() + seconds, False
    while time.monotonic() < until:
        hung = watch.look()
        time.sleep(0.02)
    return hung


def test_the_first_step_has_a_limit_of_its_own(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    report(tmp_path, 0, 1, stepped=False)
    assert not looks(watch, 0.35)
    report(tmp_path, 0, 2, stepped=True)
    assert not watch.look()
    assert looks(watch, 0.35)
    assert looks(watched(tmp_path / "nothing"), 0.7)  # where nobody ever came


def test_one_that_moves_is_enough_and_a_deputy_waits_longer(tmp_path: Path) -> None:
    watch, deputy = watched(tmp_path), watched(tmp_path, patience_s=60.0)
    for passed in range(20):
        report(tmp_path, 0, 7)
        report(tmp_path, 1, passed)
        assert not watch.look() and not deputy.look()
        time.sleep(0.02)
    assert looks(watch, 0.35) and not looks(deputy, 0.35)


def test_time_in_which_the_watcher_did_not_run_does_not_count(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    report(tmp_path, 0, 7)
    watch.look()
    time.sleep(0.5)
    assert not watch.look()


def test_a_report_that_is_half_written_is_passed_over(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    for text in ("", "{", '{"rank": 0}', "[]", "null"):
        beat_file(tmp_path, 0).write_text(text)
        assert not watch.look()


def test_a_rank_that_never_came_is_named(tmp_path: Path) -> None:
    watch = watched(tmp_path)
    report(tmp_path, 0, 1)
    looks(watch, 0.4)
    watch._signal([])
    line = watch.judge()
    assert "rank 1 never reported" in line
    assert "rank 0 (host elsewhere, pid 1) gives no answer: its process or its host is gone or stopped" in line


WAITING = [("/x/site-packages/torch/distributed/distributed_c10d.py", 7, "all_reduce"), ("/x/loop.py", 3, "step")]
WORKING = [("/x/loop.py", 9, "spin")]


def witness(rank: int, *, step: int = 4, in_step: int = 2, answer: str = "thread", frames=WAITING) -> Witness:
    beat = Beat(rank, "n1", 10 + rank, "backward", step, passed=99 - rank, in_step=in_step, stepped=True)
    return Witness(rank, beat, 9.0, answer, frames)


@pytest.mark.parametrize(
    ("witnesses", "guilty", "words"),
    [
        ([witness(0), witness(1, in_step=1), witness(2)], [1], "rank 1 .* is behind.*Ranks 0, 2 wait at 'backward'"),
        ([witness(0), witness(1, step=3, in_step=9)], [1], r"is behind.*\. Rank 0 waits at"),
        ([witness(0, in_step=1), witness(1, answer="signal")], [1], "blocks its interpreter"),
        ([witness(0), witness(1, answer="")], [1], "gives no answer"),
        ([witness(0), witness(1, frames=WORKING)], [1], r"waits for nobody and does not go on.*spin \(loop\.py:9\)"),
        ([witness(0), witness(1)], [], "all ranks wait for each other at 'backward' of step 4"),
        ([witness(r, in_step=1 + (r == 9)) for r in range(10)], list(range(9)), "rank 2 .*; so do ranks 3-8"),
    ],
)
def test_who_is_to_blame(witnesses: list[Witness], guilty: list[int], words: str) -> None:
    found, text = accuse(witnesses)
    assert found == guilty and re.search(words, text), text


def test_the_main_thread_of_the_last_dump_is_read() -> None:
    dump = 'Thread 0x{:016x} (most recent call first):\n  File "/a/{}.py", line 3 in f\n  File "b.py", line 4 in <module>\n\n'
    text = "rank 0, host h, pid 1, main thread 0xabc\n" + dump.format(0xABC, "old") + dump.format(0xDEF, "other")
    text += "Current thread 0x0000000000000def (most recent call first):\n" + dump.format(0xABC, "new")
    assert main_frames(text) == [("/a/new.py", 3, "f"), ("b.py", 4, "<module>")]
    assert main_frames("") == [] and main_frames("main thread 0x1\nThread 0x2\n") == []


def test_reports_are_cheap_and_say_where_the_loop_is(tmp_path: Path) -> None:
    heart = Heartbeat(tmp_path, rank=1, ranks=2, hang_after_s=60, start_within_s=60, beat_s=0.02)
    heart.start()
    try:
        heart.at("data", 8)
        heart.at("sum")
        deadline = time.monotonic() + 5
        while (beat := json.loads(beat_file(tmp_path, 1).read_text()))["place"] != "sum":
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (beat["step"], beat["in_step"], beat["stepped"], beat["passed"]) == (8, 2, False, 3)
        heart.at("x" * 500 + "é" * 500, 9)
        time.sleep(0.1)
        heart.at("data")
        time.sleep(0.1)
        beat = json.loads(beat_file(tmp_path, 1).read_text())
        assert (beat["step"], beat["in_step"], beat["stepped"]) == (9, 2, True)
        assert min(timeit.repeat(lambda: heart.at("data", 9), number=1000, repeat=5)) < 0.05
    finally:
        heart.close()
