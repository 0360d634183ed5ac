from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.lock import RunLock, read_holder

_HOLDER = """
import sys, time, os, subprocess
from pathlib import Path
from launch.lock import RunLock
how = sys.argv[2]
with RunLock(Path(sys.argv[1])):
    if how == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True); time.sleep(60); os._exit(0)
    if how == "exec":
        print(subprocess.Popen(["sleep", "60"], close_fds=False).pid, flush=True)
    if how == "alone":
        print(0, flush=True)
    time.sleep(60)
"""


@contextmanager
def _holder(folder: Path, repo: Path, how: str = "alone") -> Iterator[tuple[subprocess.Popen[str], int]]:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder), how], cwd=repo, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())
    try:
        yield child, grandchild
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        if grandchild:
            os.kill(grandchild, signal.SIGKILL)


def test_a_second_process_is_refused_and_told_by_whom(tmp_path: Path, repo: Path) -> None:
    with _holder(tmp_path, repo) as (child, _):
        with pytest.raises(UserError) as refusal, RunLock(tmp_path):
            pass
        message = str(refusal.value)
        assert f"process {child.pid} on {os.uname().nodename}" in message
        assert f"kill {child.pid}" in message
        assert "since 20" in message
        assert "\n" not in message
        assert read_holder(tmp_path / ".lock")["pid"] == child.pid, "a refused process must not touch the content"


@pytest.mark.parametrize("how", ["alone", "fork", "exec"])
def test_the_lock_dies_with_its_holder_whatever_its_children_do(tmp_path: Path, repo: Path, how: str) -> None:
    with _holder(tmp_path, repo, how) as (child, grandchild):
        child.send_signal(signal.SIGKILL)
        child.wait()
        if grandchild:
            os.kill(grandchild, 0)  # still alive
        with RunLock(tmp_path):
            assert read_holder(tmp_path / ".lock")["pid"] == os.getpid()


def test_a_child_that_ends_leaves_the_parent_its_lock(tmp_path: Path, repo: Path) -> None:
    with RunLock(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        code = (
            "import sys; from pathlib import Path; from launch.lock import RunLock\n"
            "try:\n  RunLock(Path(sys.argv[1])).__enter__()\n"
            "except Exception as error:\n  print(error); raise SystemExit(7)"
        )
        answer = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], cwd=repo, capture_output=True, text=True, timeout=60
        )
    assert (answer.returncode, f"process {os.getpid()}" in answer.stdout) == (7, True)


def test_it_can_be_taken_again_after_a_clean_end(tmp_path: Path) -> None:
    for _ in range(3):
        with RunLock(tmp_path / "new" / "run"):
            assert read_holder(tmp_path / "new/run/.lock")["command"]
        assert read_holder(tmp_path / "new/run/.lock") == {}


def test_twice_in_one_process_is_refused(tmp_path: Path) -> None:
    with RunLock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), RunLock(tmp_path):
        pass


def test_a_lock_file_with_rubbish_does_not_confuse(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\xff\xfe not json")
    with RunLock(tmp_path):
        assert read_holder(tmp_path / ".lock")["pid"] == os.getpid()


def test_only_one_of_many_wins(tmp_path: Path, repo: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from data_prep.errors import UserError; from launch.lock import RunLock\n"
        "time.sleep(max(0, float(sys.argv[2]) - time.time()))\n"
        "try:\n  with RunLock(Path(sys.argv[1])):\n    print('won', flush=True); time.sleep(3)\n"
        "except UserError:\n  print('refused')"
    )
    at = str(time.time() + 1.5)
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), at], cwd=repo, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = sorted(child.communicate(timeout=60)[0].strip() for child in children)
    assert answers == ["refused", "refused", "refused", "won"]
