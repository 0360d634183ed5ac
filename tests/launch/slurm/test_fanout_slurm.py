"""Parts of a data stage as array jobs: on a real cluster without accounting, and what a surrounding job must not leak.

The cluster of this file is its own: two nodes, no accounting, arrays of at most five tasks.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_slurm import FakeSlurm
from real_cluster import Cluster

from data_prep.errors import UserError
from data_prep.fanout import Serial
from data_prep.progress import Progress
from launch.fanout import FanoutConfig
from launch.fanout_array import ArrayConfig, ArrayFanout
from launch.slurm.clusters.profile import ClusterProfile
from launch.slurm.scheduler.job_state import QUEUE_FIELDS

REPO = Path(__file__).resolve().parents[3]
PARTS = """
import os, time, signal
from pathlib import Path
from data_prep.errors import UserError

def work(number, log, how=""):
    with Path(log).open("a") as stream:
        stream.write(f"{number}\\n")
    if how == "mistake":
        raise UserError("value 3", "must be 2", "write 2")
    if how == "defect":
        raise ValueError("a defect in a part")
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("slow once ") and not Path(how[10:]).exists():
        Path(how[10:]).touch()
        for _ in range(600):
            time.sleep(0.1)
    names = ("SLURM_ARRAY_JOB_ID", "SLURM_MEM_PER_NODE", "SLURM_JOB_ID", "OMP_NUM_THREADS", "MINE", "SLURM_CPUS_PER_TASK")
    return {"square": number * number, **{name: os.environ.get(name) for name in names}}
"""
COORDINATE = """
import json, sys
from pathlib import Path
from data_prep.progress import Progress
from launch.fanout_array import ArrayConfig, ArrayFanout
config, parts, scratch = json.loads(sys.argv[1])
fanout = ArrayFanout(ArrayConfig(**config))
print(json.dumps(fanout.map("parts_to_do:work", parts, scratch=Path(scratch), label="squares", progress=Progress())))
"""
ODD = 'it\'s "quoted", $HOME'


@pytest.fixture(scope="module")
def bench(new_bench: Callable[..., Cluster]) -> Cluster:
    return new_bench("--nodes", "2", "--accounting", "no", "--slurm-conf", "MaxArraySize=6")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "parts_to_do.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{REPO}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    sys.modules.pop("parts_to_do", None)
    return str(tmp_path / "log")


@pytest.fixture
def on_bench(bench: Cluster, log: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    monkeypatch.setenv("PATH", bench.env["PATH"])
    monkeypatch.setenv("RUMPUN_TESTBENCH", bench.env["RUMPUN_TESTBENCH"])
    yield bench
    bench.mend()


def settings(**more: object) -> ArrayConfig:
    profile = ClusterProfile(environment={"MINE": ODD})
    return ArrayConfig.on(profile, FanoutConfig(memory_gb=1, time_min=5, poll_s=1, max_array_tasks=5)).model_copy(
        update=more
    )


def compute(config: ArrayConfig, tmp_path: Path, parts: list[dict]) -> list[dict]:
    fanout = ArrayFanout(config, look_s=0.2)
    return fanout.map("parts_to_do:work", parts, scratch=tmp_path / "s", label="squares", progress=Progress())


class Notes(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def times(log: str, number: int) -> int:
    return Path(log).read_text().split().count(str(number)) if Path(log).exists() else 0


def array_of(bench: Cluster) -> str:
    """The id of the array in the queue, once there is one."""
    found: list[str] = []

    def there() -> bool:
        found[:] = bench.run(["squeue", "-h", "-o", "%F"]).stdout.split()
        return bool(found)

    bench.wait_for("an array", there)
    return found[0]


def meanwhile(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.slow
def test_more_parts_than_tasks_and_what_a_task_is_given(on_bench: Cluster, tmp_path: Path, log: str) -> None:
    parts = [{"number": n, "log": log} for n in range(7)]
    Serial().map("parts_to_do:work", parts[:2], scratch=tmp_path / "s", label="squares", progress=Progress())
    told = compute(settings(threads_per_worker=2), tmp_path, parts)
    assert [r["square"] for r in told] == [n * n for n in range(7)]
    assert all(times(log, n) == 1 for n in range(7))
    assert {r["SLURM_ARRAY_JOB_ID"] for r in told[:2]} == {None} and len({r["SLURM_JOB_ID"] for r in told[2:]}) == 5
    for result in told[2:]:
        assert (result["MINE"], result["OMP_NUM_THREADS"], result["SLURM_CPUS_PER_TASK"]) == (ODD, "2", "2")


@pytest.mark.slow
def test_inside_a_job_nothing_of_it_leaks_and_one_part_needs_no_array(
    on_bench: Cluster, tmp_path: Path, log: str
) -> None:
    script = tmp_path / "coordinate.py"
    script.write_text(COORDINATE)
    config = settings().model_dump()
    lines = [
        f"export SLURM_EXPORT_ENV=ALL PYTHONPATH={tmp_path}:{REPO} OMP_NUM_THREADS=1",
        *(
            shlex.join([sys.executable, str(script), json.dumps([config, parts, str(tmp_path / name)])])
            for name, parts in (
                ("many", [{"number": n, "log": log} for n in range(2)]),
                ("one", [{"number": 9, "log": log}]),
            )
        ),
    ]
    job = on_bench.sbatch("\n".join(lines), "--mem=3G", "--cpus-per-task=3", "--ntasks-per-node=2", "--export=NONE")
    on_bench.wait_for_state(job, "COMPLETED", 90)
    many, one = (json.loads(line) for line in on_bench.output(job).splitlines())
    assert {r["SLURM_MEM_PER_NODE"] for r in many} == {"1024"} and {r["SLURM_CPUS_PER_TASK"] for r in many} == {"1"}
    assert all(r["SLURM_ARRAY_JOB_ID"] not in (None, job) for r in many)
    assert one[0]["SLURM_JOB_ID"] == job


@pytest.mark.slow
def test_failures_come_back_as_what_they_are(on_bench: Cluster, tmp_path: Path, log: str) -> None:
    def parts(how: str) -> list[dict]:
        return [{"number": n, "log": log, "how": how if n == 1 else ""} for n in range(2)]

    with pytest.raises(UserError, match=r"^value 3: must be 2"):
        compute(settings(), tmp_path, parts("mistake"))
    with pytest.raises(RuntimeError, match="a defect in a part"):
        compute(settings(), tmp_path, parts("defect"))
    with pytest.raises(
        UserError, match=rf"^array task \d+(_\d+)?: failed \(FAILED: .*Killed.*read {tmp_path}/s/array/\d+_.*\.err"
    ):
        compute(settings(), tmp_path, parts("killed"))
    on_bench.wait_for("an empty queue", lambda: not on_bench.run(["squeue", "-h"]).stdout.strip())
    with pytest.raises(UserError, match=r"array of partition no-such: was refused"):
        compute(settings(partition="no-such"), tmp_path, [{"number": n, "log": log} for n in range(20, 22)])
    with pytest.raises(UserError, match=r"was refused .*max_array_tasks"):
        compute(settings(max_array_tasks=9), tmp_path, [{"number": n, "log": log} for n in range(20, 29)])


@pytest.mark.slow
@pytest.mark.parametrize("requeue", [True, False], ids=["requeued", "submitted again"])
def test_a_task_that_is_warned_goes_on_and_finished_parts_are_not_redone(
    on_bench: Cluster, tmp_path: Path, log: str, requeue: bool
) -> None:
    marker, ids = tmp_path / "marker", []
    parts = [{"number": n, "log": log, "how": f"slow once {marker}" if n == 2 else ""} for n in range(4)]

    def warn() -> None:
        ids.append(array_of(on_bench))
        on_bench.wait_for("the slow part", marker.exists)
        on_bench.run(["scancel", "--signal=USR2", f"{ids[0]}_0"])

    thread = meanwhile(warn)
    told = compute(settings(max_array_tasks=2, requeue=requeue), tmp_path, parts)
    thread.join()
    assert [r["square"] for r in told] == [0, 1, 4, 9]
    assert [times(log, n) for n in range(4)] == [1, 1, 2, 1]
    arrays = {r["SLURM_ARRAY_JOB_ID"] or r["SLURM_JOB_ID"] for r in told}
    assert arrays == {ids[0]} if requeue else len(arrays) == 2


@pytest.mark.slow
def test_an_array_that_somebody_cancels_ends_the_stage_in_one_line(on_bench: Cluster, tmp_path: Path, log: str) -> None:
    marker = tmp_path / "marker"
    parts = [{"number": n, "log": log, "how": f"slow once {marker}" if n == 1 else ""} for n in range(2)]

    def cancel() -> None:
        on_bench.wait_for("the slow part", marker.exists)
        on_bench.wait_for("the fast part", lambda: times(log, 0) == 1)
        time.sleep(1)
        on_bench.run(["scancel", array_of(on_bench)])

    thread = meanwhile(cancel)
    with pytest.raises(UserError, match=r"array task \d+_1: was cancelled, not by this run") as told:
        compute(settings(), tmp_path, parts)
    thread.join()
    assert str(tmp_path / "s" / "array") in str(told.value) and "\n" not in str(told.value)
    assert [r["square"] for r in compute(settings(), tmp_path, parts)] == [0, 1]
    assert [times(log, n) for n in range(2)] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_no_array_outlives_who_waits_for_it(on_bench: Cluster, tmp_path: Path, log: str, end: signal.Signals) -> None:
    marker, script = tmp_path / "marker", tmp_path / "coordinate.py"
    script.write_text(COORDINATE)
    parts = [{"number": n, "log": log, "how": f"slow once {marker}" if n == 1 else ""} for n in range(2)]
    asked = json.dumps([settings().model_dump(), parts, str(tmp_path / "s")])
    waiting = subprocess.Popen([sys.executable, str(script), asked], stderr=subprocess.DEVNULL)
    on_bench.wait_for("both parts", lambda: marker.exists() and times(log, 0) == 1)
    array = array_of(on_bench)
    waiting.send_signal(end)
    assert waiting.wait(30) != 0
    if end == signal.SIGKILL:  # nobody was left to cancel it: the next who asks for these parts does
        assert on_bench.state(f"{array}_1") == "RUNNING"
    time.sleep(1)
    assert [r["square"] for r in compute(settings(), tmp_path, parts)] == [0, 1]
    on_bench.wait_for_state(f"{array}_1", "CANCELLED")
    assert [times(log, n) for n in range(2)] == [1, 2]


def test_the_surrounding_job_is_not_inherited_and_questions_are_few(
    tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("sbatch", "Submitted batch job 7\n")
    cells = {"JobID": "8", "ArrayJobID": "7", "ArrayTaskID": "0", "State": "RUNNING"}
    rows = ["|".join({**cells, "ArrayTaskID": str(n)}.get(f, "0") for f in QUEUE_FIELDS) for n in range(2)]
    ended = [row.replace("RUNNING", "CANCELLED") for row in rows]
    fake.says("squeue", err="squeue: error: no such thing\n", code=1, call=1)
    fake.says("squeue", "\n".join(rows).replace("RUNNING", "PENDING") + "\n")
    fake.says("squeue", "\n".join(ended) + "\n", call=3)
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SBATCH_PARTITION", "RANK", "SUBMITIT_FOLDER"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("launch.fanout_array._SETTLE_S", 0.0)
    config = settings().model_copy(update={"poll_s": 0.4})
    began, notes = time.monotonic(), Notes()
    with pytest.raises(UserError, match="array task 7_0: was cancelled"):
        ArrayFanout(config, look_s=0.02).map(
            "parts_to_do:work", [{"number": n, "log": log} for n in range(2)], scratch=tmp_path / "s", label="x",
            progress=notes,
        )  # fmt: skip
    assert [line.split(":")[0] for line in notes.lines] == ["squeue failed", "array 7 waits"]
    assert time.monotonic() - began >= 0.8 and fake.calls("squeue") == 3
    assert "7" in fake.given("scancel")
    seen = fake.environment("sbatch")
    assert not [n for n in seen if n.startswith(("SLURM_", "SBATCH_", "SUBMITIT_")) or n == "RANK"]
    assert os.environ["SLURM_JOB_ID"] == "1"
    text = next((tmp_path / "s" / "array").glob("*submission.sh")).read_text()
    assert "#SBATCH --array=0-1%2\n" in text and "#SBATCH --requeue\n" in text and "--gpus" not in text


def test_a_profile_gives_what_the_recipe_leaves_open() -> None:
    profile = ClusterProfile(
        partition="gpu", stage_partition="cpu", account="a", qos="long", stage_constraint="icelake", route="successor",
        max_array_tasks=50, exclude=["bad1"], modules=["python/3.11"], environment={"MINE": "a b"},
    )  # fmt: skip
    config = ArrayConfig.on(profile, FanoutConfig(account="mine", workers=3))
    assert (config.kind, config.partition, config.account, config.workers) == ("slurm", "cpu", "mine", 3)
    assert (config.qos, config.constraint, config.exclude, config.requeue) == ("long", "icelake", ["bad1"], False)
    assert (config.max_array_tasks, config.time_min) == (50, 240)
    short = ClusterProfile(partition="gpu", stage_partition="cpu", constraint="a100", max_time_min=60)
    config = ArrayConfig.on(short, FanoutConfig(gpus_per_worker=1, time_min=90))
    assert (config.partition, config.constraint, config.time_min) == ("gpu", "a100", 60)
    config = ArrayConfig.on(profile, FanoutConfig())
    assert "export MINE='a b'" in config.setup and any("module load python/3.11" in line for line in config.setup)
