"""Parts computed by processes and by array tasks: the same results, once each, and a death that is told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.fanout import Fanout, Serial
from data_prep.progress import Progress
from launch.fanout import FanoutConfig, LocalFanout, make_fanout
from launch.fanout_array import ArrayFanout

REPO = Path(__file__).resolve().parents[2]
WORK = """
import os, signal, time
from pathlib import Path
from data_prep.errors import UserError

def work(number, log, how=""):
    with Path(log).open("a") as stream:
        stream.write(f"{number}\\n")
    if how == "mistake":
        raise UserError("value 3", "must be 2", "write 2")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("until ") and not Path(how[6:]).exists():
        raise UserError("the part", "not mended", "mend it")
    if how == "slow":
        time.sleep(30)
    print("a part may print")
    told = {"long": how, "threads": os.environ.get("OMP_NUM_THREADS"), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
    return {"square": number * number, "pid": os.getpid(), **told}
"""


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "parts_to_do.py").write_text(WORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPO}")
    sys.modules.pop("parts_to_do", None)
    return str(tmp_path / "log")


def compute(fanout: Fanout, tmp_path: Path, parts: list[dict]) -> list[dict]:
    return fanout.map("parts_to_do:work", parts, scratch=tmp_path / "s", label="squares", progress=Progress())


def array(workers: int = 2, **more: int) -> ArrayFanout:
    return ArrayFanout(FanoutConfig(workers=workers, **more), cluster="local", look_s=0.05)


@pytest.mark.parametrize(
    "fanout",
    [LocalFanout(2, threads=3), pytest.param(array(max_array_tasks=2), marks=pytest.mark.slow)],
    ids=["local", "array"],
)
def test_each_part_once_and_in_order(fanout: Fanout, tmp_path: Path, log: str) -> None:
    parts = [{"number": n, "log": log} for n in range(5)]
    first = compute(Serial(), tmp_path, parts[:2])
    results = compute(fanout, tmp_path, parts)
    assert [r["square"] for r in results] == [0, 1, 4, 9, 16]
    assert results[:2] == first and len({r["pid"] for r in results[2:]} | {os.getpid()}) >= 2
    assert sorted(Path(log).read_text().split()) == ["0", "1", "2", "3", "4"]
    if isinstance(fanout, LocalFanout):
        assert {r["threads"] for r in results[2:]} == {"3"}


@pytest.mark.parametrize(
    "fanout", [LocalFanout(2), pytest.param(array(), marks=pytest.mark.slow)], ids=["local", "array"]
)
def test_a_mistake_in_a_part_is_the_users(fanout: Fanout, tmp_path: Path, log: str) -> None:
    parts = [{"number": n, "log": log, "how": "mistake" if n == 1 else ""} for n in range(3)]
    with pytest.raises(UserError, match="value 3: must be 2"):
        compute(fanout, tmp_path, parts)


def test_a_killed_process_is_told_and_the_rest_is_kept(tmp_path: Path, log: str) -> None:
    parts = [{"number": n, "log": log, "how": "killed" if n == 3 else ""} for n in range(4)]
    with pytest.raises(
        UserError, match=r"squares, part 4: its process was killed by SIGKILL .*finished parts are kept"
    ):
        compute(LocalFanout(2), tmp_path, parts)
    parts[3]["how"] = ""
    assert [r["square"] for r in compute(LocalFanout(2), tmp_path, parts)] == [0, 1, 4, 9]
    done = Path(log).read_text().split()
    assert done.count("3") == 2
    assert sum(done.count(n) == 1 for n in "012") >= 2  # one may have been under way in the other process


@pytest.mark.slow
def test_a_killed_array_task_is_told(tmp_path: Path, log: str) -> None:
    parts = [{"number": n, "log": log, "how": "killed" if n == 1 else ""} for n in range(2)]
    with pytest.raises(UserError, match=r"array task .* failed .*finished parts are kept"):
        compute(array(), tmp_path, parts)


@pytest.mark.slow
def test_failures_of_before_are_tried_again_all_at_once(tmp_path: Path, log: str) -> None:
    parts = [{"number": n, "log": log, "how": f"until {tmp_path / 'mended'}"} for n in range(3)]
    with pytest.raises(UserError, match="not mended"):
        compute(array(), tmp_path, parts)
    (tmp_path / "mended").touch()
    assert [r["square"] for r in compute(array(), tmp_path, parts)] == [0, 1, 4]


def test_a_result_that_cannot_be_written_is_told(tmp_path: Path, log: str) -> None:
    small = tmp_path / "s"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        (small / "full").write_bytes(bytes(60 * 1024))
        with pytest.raises(UserError, match=r"the disk .* is full"):
            compute(LocalFanout(2), tmp_path, [{"number": n, "log": log, "how": "x" * 9000} for n in range(3)])
    finally:
        subprocess.run(["umount", str(small)], check=False)


def test_workers_end_with_their_parent(tmp_path: Path, log: str) -> None:
    code = (
        "import sys; from pathlib import Path; from data_prep.progress import Progress\n"
        "from launch.fanout import LocalFanout\n"
        f"parts = [dict(number=n, log={log!r}, how='slow') for n in range(2)]\n"
        f"LocalFanout(2).map('parts_to_do:work', parts, scratch=Path({str(tmp_path / 's')!r}), label='x', progress=Progress())"
    )
    parent = subprocess.Popen([sys.executable, "-c", code])
    deadline = time.monotonic() + 30
    while not (Path(log).exists() and len(Path(log).read_text().split()) == 2):
        assert time.monotonic() < deadline and parent.poll() is None
        time.sleep(0.02)
    workers = [
        int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and f"\nPPid:\t{parent.pid}\n" in _status(p)
    ]
    assert len(workers) == 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while any("State:\tZ" not in _status(Path(f"/proc/{pid}")) for pid in workers if _status(Path(f"/proc/{pid}"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_share_out_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    fanout = make_fanout(FanoutConfig(workers=8), devices=True)
    assert fanout.workers == 2 and make_fanout(FanoutConfig(workers=8)).workers == 8
    results = compute(fanout, tmp_path, [{"number": n, "log": log} for n in range(4)])
    assert {r["gpu"] for r in results} == {"5", "7"}
    for none in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", none)
        assert make_fanout(FanoutConfig(workers=3), devices=True).workers == 3
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "gpus" / "0000:01").mkdir(parents=True)
    monkeypatch.setattr("launch.fanout._GPUS", tmp_path / "gpus")
    assert make_fanout(FanoutConfig(workers=8), devices=True).workers == 1


def _status(process: Path) -> str:
    try:
        return (process / "status").read_text()
    except OSError:
        return ""


def test_a_recipe_names_who_computes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, log: str) -> None:
    assert make_fanout(FanoutConfig(workers=3)).workers == 3
    assert make_fanout(FanoutConfig()).workers == len(os.sched_getaffinity(0))
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    with pytest.raises(UserError, match="no SLURM here"):
        compute(make_fanout(FanoutConfig(kind="slurm")), tmp_path, [{"number": 1, "log": log}])
