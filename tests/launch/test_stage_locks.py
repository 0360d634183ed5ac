"""Jobs of one run side by side: each holds its own stages, a whole walk holds all, and a newer restart of a job takes
over from one that was cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.lock import RunLock, read_holder
from train.history.fence import Superseded

_HOLDER = """
import json, sys
from pathlib import Path
from launch.lock import RunLock
from train.history.fence import Superseded
told = json.loads(sys.argv[2])
with RunLock(Path(sys.argv[1]), **told) as lock:
    print("held", flush=True)
    sys.stdin.readline()
    try:
        lock.check()
        print("ours", flush=True)
    except Superseded as lost:
        print(lost, flush=True)
"""


@contextmanager
def holder(folder: Path, repo: Path, **told: object) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock, and that says when it is asked whether it still does."""
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder), json.dumps(told)], cwd=repo,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin and child.stdout
    assert child.stdout.readline() == "held\n"
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def asked(child: subprocess.Popen[str]) -> str:
    return child.communicate("\n", timeout=60)[0].strip()


def test_jobs_with_other_stages_are_no_hindrance(tmp_path: Path, repo: Path) -> None:
    with holder(tmp_path, repo, stages=["pairs", "mine"], job="12"):
        with RunLock(tmp_path, stages=["pretrain"], job="13") as lock:
            lock.check()
        with pytest.raises(UserError) as refusal, RunLock(tmp_path, stages=["base", "mine"], job="13"):
            pass
        with RunLock(tmp_path, stages=["base"], job="13"):
            pass  # what a refused one had taken before is free again
    message = str(refusal.value)
    assert "stage mine" in message and "job 12" in message and os.uname().nodename in message
    assert "scancel 12" in message and "\n" not in message


def test_a_whole_walk_and_jobs_keep_each_other_out(tmp_path: Path, repo: Path) -> None:
    with (
        holder(tmp_path, repo, stages=["pairs"], job="12"),
        holder(tmp_path, repo, stages=["pretrain"], job="13"),
        pytest.raises(UserError) as refusal,
    ):
        RunLock(tmp_path).__enter__()
    assert "job 12" in str(refusal.value) and "and 1 more" in str(refusal.value) and "scancel 12" in str(refusal.value)
    with holder(tmp_path, repo) as whole, pytest.raises(UserError, match=f"process {whole.pid} .*kill {whole.pid}"):
        RunLock(tmp_path, stages=["pairs"], job="12").__enter__()
    with RunLock(tmp_path):
        pass


def test_what_a_killed_job_held_is_free(tmp_path: Path, repo: Path) -> None:
    with holder(tmp_path, repo, stages=["pairs"], job="12", restart=0) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert read_holder(tmp_path / ".locks" / "pairs")["job"] == "12", "its name is left"
        with RunLock(tmp_path, stages=["pairs"], job="14"):
            assert read_holder(tmp_path / ".locks" / "pairs")["job"] == "14"
        with RunLock(tmp_path):
            pass


@pytest.mark.parametrize("stages", [["pretrain"], None])
def test_a_newer_restart_takes_over_from_one_that_was_cut_off(
    stages: list[str] | None, tmp_path: Path, repo: Path
) -> None:
    with holder(tmp_path, repo, stages=stages, job="12", restart=0) as old:
        old.send_signal(signal.SIGSTOP)
        with RunLock(tmp_path, stages=stages, job="12", restart=1) as new:
            new.check()
            with pytest.raises(UserError, match="in use"), RunLock(tmp_path, stages=stages, job="13"):
                pass
            with pytest.raises(Superseded, match="restart 1 of job 12"), RunLock(tmp_path, stages=stages, job="12"):
                pass
            old.send_signal(signal.SIGCONT)
            said = asked(old)
            assert "superseded: restart 1 of job 12" in said and "\n" not in said
            new.check()
            with pytest.raises(UserError, match="in use"), RunLock(tmp_path, stages=stages, job="13"):
                pass  # the old one's end has freed nothing
        with RunLock(tmp_path, stages=stages, job="13"):
            pass


def test_another_job_never_takes_over(tmp_path: Path, repo: Path) -> None:
    with holder(tmp_path, repo, stages=["pretrain"], job="12", restart=0) as old:
        for job, restart in (("13", 5), (None, 5), ("12", 0)):
            with pytest.raises(UserError, match="in use by job 12"):
                RunLock(tmp_path, stages=["pretrain"], job=job, restart=restart).__enter__()
        assert asked(old) == "ours"


def test_an_older_restart_that_comes_late_is_told_so(tmp_path: Path, repo: Path) -> None:
    with holder(tmp_path, repo, stages=["pretrain"], job="12", restart=3) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with pytest.raises(Superseded, match="restart 3"), RunLock(tmp_path, stages=["pretrain"], job="12", restart=2):
        pass
    with RunLock(tmp_path, stages=["pretrain"], job="12", restart=4):
        pass


def test_a_lock_file_removed_by_hand_costs_no_work(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        (tmp_path / ".lock").unlink()
        lock.check()


def test_of_many_restarts_at_once_the_newest_has_it(tmp_path: Path, repo: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from data_prep.errors import UserError; from launch.lock import RunLock\n"
        "from train.history.fence import Superseded\n"
        "for _ in range(200):\n"
        "    try:\n"
        "        with RunLock(Path(sys.argv[1]), stages=['a'], job='7', restart=int(sys.argv[2])) as lock:\n"
        "            time.sleep(1.5); lock.check(); print('kept')\n"
        "        break\n"
        "    except Superseded:\n        print('superseded'); break\n"
        "    except UserError as error:\n        time.sleep(0.02)\n"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n)], cwd=repo, stdout=subprocess.PIPE, text=True)
        for n in (1, 2, 3)
    ]  # fmt: skip
    told = [child.communicate(timeout=60)[0].strip() for child in children]
    assert told[2] == "kept"
