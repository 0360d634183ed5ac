"""Starting ranks, asking them to stop, and what a failure says. Ranks are real processes, mostly with made-up work."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from phase_lab import Lab, alive, use_fake

from data_prep.errors import UserError
from data_prep.progress import Progress
from launch import local, ranks
from launch.failure import Hung, RankFailure, normalised
from launch.local import check_port, environment_of
from launch.ranks import run_ranks
from launch.recipe import LaunchConfig
from launch.relay import Relay, Tail, last_step, shown
from train.survival import Stopped

DONE = [["done", 0]]
BEGUN = [["at", ["data", 1]], ["at", ["data", 2]]]
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    use_fake(monkeypatch)
    return Lab(tmp_path)


def test_a_taken_port_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=rf"launch\.port = {port}: is taken.*Fix: use another, or 0"):
            check_port(port)
    check_port(0)


def test_a_rank_knows_its_place() -> None:
    found = environment_of(LaunchConfig(threads_per_process=4, nproc=3, port=29511), rank=2)
    assert [found[k] for k in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")] == ["2", "2", "3", "3"]
    assert (found["MASTER_PORT"], found["OMP_NUM_THREADS"]) == ("29511", "4")
    assert "MASTER_PORT" not in environment_of(LaunchConfig(), rank=0)


def test_the_line_of_a_step_claims_no_mfu_that_is_not_known() -> None:
    record = {"step": 3, "loss": 0.5, "tokens_per_s": 1200.0, "lr": 1e-3}
    assert shown(record) == {"loss": 0.5, "tokens_per_s": 1200.0}
    assert shown({**record, "trunk_mfu": 0.4127})["trunk_mfu"] == "41.3%"
    assert shown({**record, "loss": None})["loss"] == "skipped"


def test_records_go_to_the_bar_of_their_status(tmp_path: Path) -> None:
    class Bars(Progress):
        seen: list[tuple[str, dict]] = []  # noqa: RUF012
        notes: list[str] = []  # noqa: RUF012

        def note(self, line: str) -> None:
            self.notes.append(line)

        def begin(self, label: str, total: int | None = None, unit: str = "rows") -> None:
            self.seen.append((label, {}))

        def advance(self, n: int = 1, **shown: float | str) -> None:
            label, held = self.seen[-1]
            self.seen[-1] = (label, held | {"n": held.get("n", 0) + n} | shown)

    def tell(what: str, *records: dict) -> None:
        (tmp_path / "status.json").write_text(json.dumps({"what": what, "total": 2, "notes": [f"now {what}"]}))
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.writelines(json.dumps(r) + "\n" for r in records)
        relay.look()

    bars = Bars()
    (tmp_path / "status.json").write_text('{"what": "training", "total": 9}')  # of a start that crashed
    relay = Relay(tmp_path, bars)
    relay.look()
    steps = [{"loss": loss, "tokens_per_s": 9.0} for loss in (3.0, 2.0)]
    tell("validating")
    tell("training", {"validation_loss": 5.0}, steps[0])  # the launcher looked late, twice
    tell("validating", steps[1])
    tell("saving", {"validation_loss": 4.0})
    relay.close()
    assert bars.seen == [
        ("validating", {"n": 0, "validation_loss": 5.0}),
        ("training", {"n": 2, "loss": 2.0, "tokens_per_s": 9.0}),
        ("validating", {"n": 0, "validation_loss": 4.0}),
        ("saving", {}),
    ]
    assert bars.notes == [
        f"[{tmp_path.name}] now {what}" for what in ("validating", "training", "validating", "saving")
    ]


@pytest.mark.parametrize("kept", [0, 1, 4, 5])
@pytest.mark.parametrize("late", [False, True])
def test_a_tail_shows_each_new_line_once_though_the_file_is_cut(tmp_path: Path, kept: int, late: bool) -> None:
    path = tmp_path / "metrics.jsonl"
    old = [f'{{"step": {i}, "t": 0.{i}1}}\n' for i in range(5)]
    again = [f'{{"step": {i}, "t": 0.{i}2}}\n' for i in range(kept, 7)]
    path.write_text("".join(old) + '{"step": 5, "t"')  # the last one was cut off by a crash
    tail = Tail(path)
    seen = list(tail.lines())
    (tmp_path / "new").write_text("".join(old[:kept]))
    (tmp_path / "new").replace(path)
    for line in again:
        if not late:
            seen += tail.lines()
        with path.open("a") as stream:
            stream.write(line[:5])
            stream.flush()
            seen += [] if late else tail.lines()
            stream.write(line[5:])
    seen += tail.lines()
    tail.close()
    assert [line + "\n" for line in seen] == again


def test_a_tail_of_long_files_finds_where_they_part(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [f'{{"step": {i}, "loss": {i * 7919 % 1000}}}\n' for i in range(20_000)]
    for kept in (0, 12_345, 20_000):
        path.write_text("".join(lines))
        tail = Tail(path)
        (tmp_path / "new").write_text("".join(lines[:kept]) + "new\n")
        (tmp_path / "new").replace(path)
        assert list(tail.lines()) == ["new"]
        tail.close()


def test_the_last_step_is_read_behind_a_torn_line(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {i}, "pad": "{"x" * 90}"}}\n' for i in range(2000)) + '{"step": 2000, "pa')
    assert last_step(tmp_path) == 1999


def test_equal_failures_are_equal() -> None:
    line = "RuntimeError: [/a/b/c.cpp:12] connection closed by 10.0.0.{} (0x7f{}) after 3.{} s at step {}"
    assert normalised(line.format(1, "aa", 5, 7)) == normalised(line.format(22, "bb", 77, 9))
    assert normalised("KeyError: 'a'") != normalised("KeyError: 'b'")


def test_a_phase_returns_its_summary_and_shows_its_steps(lab: Lab) -> None:
    (lab.history / "metrics.jsonl").write_text('{"step": 1, "loss": 9.0, "tokens_per_s": 1}\n')
    summary = lab.run(run_ranks, [[[["cut", 0], ["steps", [1, 2, 4]], *DONE], []]])
    assert summary["train_here_s"] == 2.5
    assert lab.notes.steps == [1.0, 0.5, 0.25] and lab.notes.work_s == {"train": 2.5}
    job = json.loads((lab.logs / "job.json").read_text())
    assert job["ranks"] == 2 and not Path(job["store"]).parent.exists()


@linux
def test_a_killed_rank_is_the_cause_and_the_others_are_ended(lab: Lab) -> None:
    plan = [[[["touch", "here"], ["sleep", 60]], [["wait for", "here-0"], ["signal", int(signal.SIGKILL)]]]]
    began = time.monotonic()
    with pytest.raises(RankFailure, match=r"pretrain failed in a rank: rank 1 \(pid \d+\) was killed by SIGKILL") as e:
        lab.run(run_ranks, plan)
    assert time.monotonic() - began < ranks.FAILED_LEAVE_S + 5
    assert e.value.cause == "SIGKILL" and str(lab.logs) in str(e.value)
    assert not alive(*lab.pids("here-0"))


def test_the_first_rank_that_fails_is_the_cause(lab: Lab) -> None:
    """The others fail because it is gone; theirs is not the log that is shown."""
    plan = [
        [
            [["wait for", "gone-1"], ["sleep", 0.5], ["raise", "lost rank 1"]],
            [["touch", "gone"], ["raise", "own fault"]],
        ]
    ]
    with pytest.raises(RankFailure, match="own fault") as e:
        lab.run(run_ranks, plan)
    assert "lost rank 1" not in str(e.value) and e.value.cause == "RuntimeError: own fault"
    with pytest.raises(RankFailure) as e:  # the log of the start before is not read again
        lab.run(run_ranks, [[[], [["signal", int(signal.SIGKILL)]]]])
    assert "own fault" not in str(e.value)


def test_a_mistake_ends_all_at_once(lab: Lab) -> None:
    began = time.monotonic()
    with pytest.raises(UserError, match=r"x = 3: is wrong. Fix: mend it"):
        lab.run(run_ranks, [[[["sleep", 60]], [["mistake", "x = 3"]]]])
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT])
def test_a_request_to_stop_reaches_all_ranks_and_they_may_save(lab: Lab, sent: signal.Signals) -> None:
    rank = [["touch", "here"], ["until asked", 0.4]]
    lab.later("here-0", "here-1", send=(sent,))
    handler = signal.getsignal(sent)
    with pytest.raises(Stopped, match="after step 7") as e:
        lab.run(run_ranks, [[rank, rank]])
    assert e.value.reason == ("^C" if sent == signal.SIGINT else sent.name)
    told = json.loads((lab.out / "stopped.json").read_text())["reason"]
    assert told == ("SIGTERM" if sent == signal.SIGINT else sent.name)
    assert lab.notes.lines == (["saving after this step; ^C again ends at once"] if sent == signal.SIGINT else [
        f"{sent.name}: saving after this step; ^C ends at once"
    ])  # fmt: skip
    assert signal.getsignal(sent) == handler


def test_a_request_that_comes_too_late_still_ends_the_command(lab: Lab) -> None:
    lab.later("here-0", send=(signal.SIGUSR1,))
    with pytest.raises(Stopped, match="stopped by SIGUSR1 after step 3"):
        lab.run(run_ranks, [[[["steps", [1, 2, 3]], ["touch", "here"], ["sleep", 0.5], *DONE]]])


def test_a_request_that_comes_before_the_ranks_can_note_it_is_not_lost(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = subprocess.Popen

    def start_and_signal(*words: Any, **more: Any) -> subprocess.Popen[bytes]:
        process = start(*words, **more)
        process.send_signal(signal.SIGUSR1)
        return process

    monkeypatch.setattr(local.subprocess, "Popen", start_and_signal)
    with pytest.raises(Stopped, match="stopped by SIGUSR1 after step 7"):
        lab.run(run_ranks, [[[["until asked", 0]]]])


@linux
def test_a_second_interrupt_ends_at_once(lab: Lab) -> None:
    rank = [["touch", "here"], ["until asked", 60]]
    lab.later("here-0", "here-1", send=(signal.SIGINT, signal.SIGINT))
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        lab.run(run_ranks, [[rank, rank]])
    assert time.monotonic() - began < 10
    assert not any(map(alive, lab.pids("here-0", "here-1")))


def test_ranks_that_do_not_save_in_time_are_killed(lab: Lab) -> None:
    lab.later("here-0", send=(signal.SIGTERM,))
    with pytest.raises(RankFailure, match=r"ranks \[0\] did not end though SIGTERM asked for it, and were killed"):
        lab.run(run_ranks, [[[["touch", "here"], ["until asked", 60]]]], grace_s=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("nproc", [1, 2])
def test_stopped_ranks_are_judged_by_the_launcher(lab: Lab, nproc: int) -> None:
    """Where no rank can watch any more: a verdict, its exit code, and nobody left."""
    rank = [*BEGUN, ["touch", "here"], ["sleep", 0.5], ["signal", int(signal.SIGSTOP)]]
    with pytest.raises(Hung, match=r"hang: no rank moved for .*gives no answer: its process is stopped") as e:
        lab.run(run_ranks, [[rank] * nproc], hang_after_s=1.0, start_within_s=20.0)
    assert e.value.exit_code == 76
    assert not any(map(alive, lab.pids(*(f"here-{r}" for r in range(nproc)))))


@pytest.mark.slow
def test_a_verdict_of_the_ranks_ends_the_phase(lab: Lab) -> None:
    with pytest.raises(Hung, match="hang") as e:
        lab.run(
            run_ranks,
            [[[*BEGUN, ["at", ["sum", 2]], ["sleep", 60]], [*BEGUN, ["sleep", 60]]]],
            hang_after_s=1.0,
            start_within_s=20.0,
        )
    assert re.search(r"rank 1 .* is behind: at 'data' of step 2", str(e.value)), str(e.value)


def real_job(tmp_path: Path, **more: object) -> dict:
    config = {"batch_rows": 4, "precision": "fp32"}
    return {
        "phase": "pretrain",
        "out": str(tmp_path),
        "history": str(tmp_path / "history"),
        "seed": 0,
        "config": config,
        "tokens": str(tmp_path / "none"),
        "model": str(tmp_path),
        **more,
    }


@pytest.mark.slow
@pytest.mark.parametrize("port", [0, None])
def test_a_mistake_found_by_a_rank_arrives_as_one_line(tmp_path: Path, port: int | None) -> None:
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    with pytest.raises(UserError, match="is not a shard folder"):
        run_ranks(
            real_job(tmp_path), out=tmp_path, logs=tmp_path / "logs", launch=LaunchConfig(nproc=2, port=port),
            progress=Progress(),
        )  # fmt: skip


@pytest.mark.slow
def test_a_dead_rank_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RankFailure, match="pretrain failed in a rank") as caught:
        run_ranks(
            real_job(tmp_path, seed="not a number", config={"nonsense": 1}),
            out=tmp_path,
            logs=tmp_path / "logs",
            launch=LaunchConfig(nproc=1),
            progress=Progress(),
        )
    assert "ValidationError" in str(caught.value) and "logs" in str(caught.value)


@linux
def test_no_rank_outlives_a_killed_launcher(lab: Lab) -> None:
    """kill -9 of the launcher ends every rank."""
    plan = [[[["touch", "here"], ["sleep", 120]]] * 2]
    job = {"phase": "pretrain", "out": str(lab.out), "plan": plan}
    starter = (
        "import json, sys\nfrom pathlib import Path\nfrom data_prep.progress import Progress\nfrom launch import local, ranks\n"
        "from launch.recipe import LaunchConfig\nlocal.WORKER = (sys.argv[1],)\nout = Path(sys.argv[2])\n"
        "ranks.run_ranks(json.loads(sys.argv[3]), out=out, logs=out / 'logs', launch=LaunchConfig(), progress=Progress())\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", starter, *local.WORKER, str(lab.out), json.dumps(job)],
        env=environment_of(LaunchConfig(), rank=0),
    )
    lab.wait_for("here-0", "here-1")
    ranks = lab.pids("here-0", "here-1")
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    deadline = time.monotonic() + 30
    while any(map(alive, ranks)):
        assert time.monotonic() < deadline, f"ranks {[r for r in ranks if alive(r)]} outlived their launcher"
        time.sleep(0.05)
    assert os.getpid() not in ranks
