"""One training on four nodes, interrupted in every way a cluster knows: nothing is lost, and the end is the same.

Requeued by an administrator, a rank killed, preempted by a higher partition, its time limit reached, a node's daemon dead,
resized to two nodes while it runs and to three, one of them drained: after each it goes on by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from real_cluster import Cluster

HERE = Path(__file__).resolve().parent
RECIPE = HERE / "survive.toml"
PROFILE = 'name = "low"\npartition = "low"\ngrace_s = 20\nroute = "requeue"\nenvironment = { OMP_NUM_THREADS = "1" }\n'


def rumpun(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *map(str, words)]


class Training:
    """The run that is interrupted."""

    def __init__(self, cluster: Cluster, run: Path, profile: Path) -> None:
        self.cluster, self.run, self.profile = cluster, run, profile
        self.history = run / "history" / "pretrain"

    def submit(self, nodes: int) -> str:
        words = rumpun("submit", RECIPE, "--runs", self.run.parent, "--only", "pretrain", "--nodes", str(nodes),
                       "--cluster", self.profile)  # fmt: skip
        said = self.cluster.run(words, cwd=HERE.parents[2], timeout_s=120)
        assert "pretrain" in said.stdout, said.stdout
        return str(json.loads((self.run / "chain" / "jobs.json").read_text())["jobs"]["pretrain"]["id"])

    @property
    def step(self) -> int:
        """The last step that was taken."""
        try:
            lines = (self.history / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return 0
        return max((int(json.loads(line)["step"]) for line in lines[-3:] if line.endswith("}")), default=0)

    def events(self, name: str) -> list[dict]:
        path = self.run / "chain" / "links" / "pretrain.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def ended(self, *, restart: int) -> dict:
        """How the ranks of a restart of the job ended, the last time."""
        return [event for event in self.events("ranks_ended") if event["restart"] == restart][-1]

    def trains(self, since: float, *, more: int = 4) -> None:
        """Until ranks that were started after `since` (of the clock) have taken a few steps."""

        def stepped() -> bool:
            found = [event for event in self.events("stepping") if event["time"] > since]
            return bool(found) and self.step >= found[-1]["step"] + more

        self.cluster.wait_for(f"{more} steps of a start after {since}", stepped, 240)

    def pids(self, node: str) -> list[int]:
        """The ranks of this run on a node: its processes are this machine's too."""
        found = []
        for place in Path("/proc").iterdir():
            if place.name.isdigit():
                try:
                    words = (place / "cmdline").read_bytes().split(b"\0")
                    there = (place / "environ").read_bytes()
                except OSError:
                    continue
                ours = b"launch.worker" in words and any(str(self.run).encode() in word for word in words)
                if ours and f"SLURMD_NODENAME={node}\0".encode() in there:
                    found.append(int(place.name))
        return found


@pytest.fixture(scope="module")
def cluster(new_bench: Callable[..., Cluster]) -> Cluster:
    """A cluster that waits longer for an answer (MessageTimeout) than a step takes to be killed (KillWait, 5 s).

    Else a kill is taken for unanswered and sent again a minute later, also to the step of the same number of the job's
    next start (SLURM 22.05): the ranks are then started once more, or the job requeued once more; nothing is lost, but
    nobody could say how many starts there are.
    """
    return new_bench("--slurm-conf", "SlurmdTimeout=5", "--slurm-conf", "MessageTimeout=10")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same training on this machine, on as many ranks, never interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    words = rumpun("pretrain", RECIPE, "--runs", folder, "--nproc", "4")
    done = subprocess.run(words, cwd=HERE.parents[2], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "survive"


def losses(run: Path) -> dict[int, float]:
    """The loss of every step, as it entered the final weights."""
    found = {}
    for line in (run / "history" / "pretrain" / "ledger.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] == "step":
            found[record["step"]] = record["loss"]
    return found


def largest_difference(a: Path, b: Path) -> float:
    """Of any weight, relative to the largest of its matrix."""
    from safetensors.numpy import load_file

    one, other = load_file(a / "pretrain/model/model.safetensors"), load_file(b / "pretrain/model/model.safetensors")
    assert one.keys() == other.keys()
    return max(float(abs(one[k] - other[k]).max() / max(1e-12, abs(one[k]).max())) for k in one)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_it_survives_everything_and_ends_the_same(cluster: Cluster, reference: Path) -> None:
    run = cluster.scratch / "runs" / "survive"
    kept = shutil.ignore_patterns("pretrain", "history", "logs", ".lock*", ".building", "work")
    shutil.copytree(reference, run, ignore=kept)
    profile = cluster.scratch / "low.toml"
    profile.write_text(PROFILE)
    it = Training(cluster, run, profile)
    job = it.submit(4)
    it.trains(0)

    now = time.time()
    cluster.run(["scontrol", "requeue", job])  # by an administrator
    it.trains(now)
    assert cluster.show(job)["Restarts"] == "1"

    victim, now = it.pids("node3"), time.time()
    assert len(victim) == 1
    os.kill(victim[0], signal.SIGKILL)  # no memory, a fault of the device: the ranks are started again in the same job
    it.trains(now)
    assert cluster.show(job)["Restarts"] == "1"
    killed = it.ended(restart=1)
    assert killed["outcome"] == "failed" and killed["hosts"] == ["node3"] and "SIGKILL" in killed["reason"]

    now = time.time()
    urgent = cluster.sbatch("sleep 1", "-p", "high", "-N4", "--exclusive")
    cluster.wait_for_state(urgent, "COMPLETED", 120)
    it.trains(now)
    assert cluster.show(job)["Restarts"] == "2"
    stopped = it.ended(restart=1)
    assert (stopped["outcome"], stopped["reason"]) == ("stopped", "SIGTERM")
    assert stopped["saved"] == stopped["last"]  # nothing to do again

    now = time.time()
    limit = datetime.fromtimestamp(now + 62).isoformat(timespec="seconds")
    cluster.run(["scontrol", "update", f"jobid={job}", f"EndTime={limit}"])
    it.trains(now)
    assert cluster.show(job)["Restarts"] == "3"
    stopped = it.ended(restart=2)
    assert (stopped["outcome"], stopped["reason"]) == ("stopped", "SIGUSR1")
    assert stopped["saved"] == stopped["last"]

    alive, now = it.pids("node4"), time.time()
    cluster.kill_slurmd("node4")
    cluster.wait_for_loss("node4")
    cluster.wait_for("a requeue", lambda: cluster.show(job).get("Restarts") == "4", 60)
    assert alive and all(Path(f"/proc/{pid}").exists() for pid in alive)  # a rank of the start before lives on
    cluster.start_slurmd("node4")
    it.trains(now)
    cluster.run(rumpun("cluster", "nodes", "--runs", run.parent, "--forget", "node4"), cwd=HERE.parents[2])

    now = time.time()
    resized = it.submit(2)  # while it runs: it saves, and the new one goes on after it
    assert resized != job
    it.trains(now)
    assert it.events("begin")[-1]["ranks"] == 2
    assert it.events("end")[-1]["outcome"] == "stopped" and "resized" in it.events("end")[-1]["why"]

    now = time.time()
    last = it.submit(3)
    it.trains(now, more=2)
    gone, now = it.events("begin")[-1]["nodes"][0], time.time()
    cluster.run(["scontrol", "update", f"nodename={gone}", "state=drain", "reason=fan"])
    cluster.run(["scontrol", "requeue", last])
    it.trains(now, more=1)
    assert gone not in it.events("begin")[-1]["nodes"] and it.events("begin")[-1]["ranks"] == 3
    cluster.wait_for_state(last, "COMPLETED", 300)

    proof = cluster.run(rumpun("ledger", "verify", run), cwd=HERE.parents[2], timeout_s=120).stdout
    assert "Proven" in proof
    ours, theirs = losses(run), losses(reference)
    assert ours.keys() == theirs.keys()
    fewer = next(event["time"] for event in it.events("begin") if event["ranks"] != 4)
    on_four = min(event["step"] for event in it.events("stepping") if event["time"] > fewer)
    assert {s: ours[s] for s in ours if s < on_four} == {s: theirs[s] for s in theirs if s < on_four}  # to the last bit
    assert max(abs(ours[s] - theirs[s]) / abs(theirs[s]) for s in ours) < 1e-5
    assert largest_difference(run, reference) < 1e-4
