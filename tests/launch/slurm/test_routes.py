"""How a stopped training goes on at sites that forbid one way or another, and what is never started again.

On two nodes of a cluster without accounting, whose jobs are not requeued unless they ask for it.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import FakeSlurm
from real_cluster import Cluster

from data_prep.errors import UserError
from launch.lock import RunLock
from launch.slurm.chain import Chain
from launch.slurm.inside.allocation import Allocation
from launch.slurm.inside.routes import alone, nodes_to_avoid
from launch.slurm.scheduler.commands import Slurm

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
RECIPE = HERE / "routes.toml"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "GONE"}
# Python imports it before anything else: in ranks, a file of the checkpoint after step 20 can never be opened.
HAUNTED = """\
import sys

def refuse(event, arguments):
    if event == "open" and "000020" in str(arguments[0]):
        raise RuntimeError("this file is haunted")

if "launch.worker" in sys.orig_argv:
    sys.addaudithook(refuse)
"""


def rumpun(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *map(str, words)]


@pytest.fixture(scope="module")
def site(new_bench: Callable[..., Cluster]) -> Cluster:
    """Two nodes, no accounting, and nothing is requeued that does not ask for it."""
    return new_bench("--nodes", "2", "--accounting", "no", "--slurm-conf", "JobRequeue=0")


@pytest.fixture(autouse=True)
def _idle(request: pytest.FixtureRequest) -> Any:
    yield
    if "site" in request.fixturenames:
        request.getfixturevalue("site").mend()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first training on this machine, never interrupted, and all that the second reads beside it."""
    folder = tmp_path_factory.mktemp("reference")
    beside = [["run", RECIPE, "--only", stage] for stage in ("synth", "gate", "gate_pairs")]
    for words in (["pretrain", RECIPE], *beside):
        done = subprocess.run(rumpun(*words, "--runs", folder), cwd=REPO, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-2000:]
    return folder / "routes"


class Run:
    """A run of which all is built but the trainings.

    Args:
        environment: of the profile, beside the threads.
    """

    def __init__(self, site: Cluster, reference: Path, name: str, route: str, **environment: str) -> None:
        self.site, self.path = site, site.scratch / "runs" / name
        kept = shutil.ignore_patterns("pretrain", "finetune", "history", "logs", ".lock*", ".building", "work")
        shutil.copytree(reference, self.path, ignore=kept)
        self.profile, self.route = site.scratch / f"{name}.toml", route
        values = ", ".join(f"{k} = {json.dumps(v)}" for k, v in {"OMP_NUM_THREADS": "1", **environment}.items())
        self.profile.write_text(f'route = "{route}"\nenvironment = {{ {values} }}\n')

    def submit(self, *options: str, nodes: int = 1) -> dict[str, str]:
        """What is not built; the ids by name."""
        words = ["submit", RECIPE, "--runs", self.path.parent, "--run", self.path.name, "--cluster", self.profile]
        self.site.run(rumpun(*words, "--nodes", str(nodes), *options), cwd=REPO, timeout_s=120)
        assert "prepare" not in self.ids(), "all that it reads is built"
        return self.ids()

    def ids(self) -> dict[str, str]:
        jobs = json.loads((self.path / "chain" / "jobs.json").read_text())["jobs"]
        return {name: job["id"] for name, job in jobs.items()}

    def events(self, job: str, name: str) -> list[dict[str, Any]]:
        path = self.path / "chain" / "links" / f"{job}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def trains(self) -> dict[str, Any]:
        """Wait for the first step of pretraining; returns that event."""
        self.site.wait_for("a first step", lambda: bool(self.events("pretrain", "stepping")))
        return self.events("pretrain", "stepping")[-1]

    def warn(self) -> None:
        """As the scheduler does before the end: to the ranks, not to the batch script."""
        (told,) = self.events("pretrain", "begin")
        # of a task of an array it tries again by itself, and finds that it has ended
        self.site.run(["scancel", "--signal=USR1", told["job"]], check=False)

    def ends(self, job: str, count: int) -> list[dict[str, Any]]:
        """Wait until a job has ended so many links; returns how."""
        self.site.wait_for(f"{count} ends of {job}", lambda: len(self.events(job, "end")) >= count, 240)
        return self.events(job, "end")

    def finish(self, job: str) -> str:
        """Wait for the end of a job, under its present id; returns its state."""
        return self.site.wait_for_state(self.ids()[job], ENDED, 240)

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.site.run(rumpun("status", self.path, "--json"), cwd=REPO, check=False)
        return {job["name"]: job for job in json.loads(done.stdout)["jobs"]}

    def proven(self) -> None:
        assert "Proven" in self.site.run(rumpun("ledger", "verify", self.path), cwd=REPO, timeout_s=120).stdout


NODES = "\n".join(f"NodeName=node{n} CPUTot=8 State=MIXED Partitions=normal" for n in range(1, 5))


@pytest.mark.parametrize(
    ("excluded", "nodes", "without", "avoided"),
    [
        ("(null)", 2, ["node2"], ["node2"]),
        ("node4", 2, ["node2"], ["node4", "node2"]),  # what was left out before stays left out
        ("node[3-4]", 2, ["node2"], []),  # two must be left
        ("(null)", 3, ["node2", "node3"], ["node2"]),
        ("(null)", 4, ["node2"], []),
        ("node2", 2, ["node2"], []),
        ("(null)", 2, [], []),
    ],
)
def test_nodes_are_left_out_as_long_as_enough_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    excluded: str, nodes: int, without: list[str], avoided: list[str],
) -> None:  # fmt: skip
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.says("scontrol", NODES, call="node")
    fake.says("scontrol", f"JobId=12 JobState=RUNNING Partition=normal ExcNodeList={excluded}", call="job")
    place = Allocation("12", 0, tuple(f"node{n + 1}" for n in range(nodes)), 1, None)
    assert nodes_to_avoid(Slurm(pauses_s=()), place, without) == avoided


def test_a_chain_that_is_being_submitted_is_waited_for(tmp_path: Path) -> None:
    chain, order = Chain(tmp_path), []
    other = RunLock(chain.folder)
    other.__enter__()
    timer = threading.Timer(0.4, lambda: (order.append("submitted"), other.__exit__(None, None, None)))
    timer.start()
    with alone(chain):
        order.append("ours")
        with pytest.raises(UserError, match="in use by"), alone(chain, within_s=0):
            pass
    timer.join()
    assert order == ["submitted", "ours"]
    with alone(chain, within_s=0):
        pass


def losses(run: Path) -> Any:
    """The loss of every step of pretraining, as it entered the final weights; other ranks move its last bits."""
    lines = (run / "history" / "pretrain" / "ledger.jsonl").read_text().splitlines()
    found = {record["step"]: record["loss"] for record in map(json.loads, lines) if record["kind"] == "step"}
    assert len(found) == 100
    return pytest.approx(found, rel=1e-5)


def same_losses(run: Path, reference: Path) -> bool:
    return losses(run).expected == losses(reference)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_where_nothing_may_be_requeued_a_new_job_goes_on_and_who_waits_waits_for_it(
    site: Cluster, reference: Path
) -> None:
    run = Run(site, reference, "forbidden", "requeue")
    first = run.submit(nodes=2)
    site.run(["scontrol", "update", f"JobId={first['pretrain']}", "Requeue=0"])  # as a site's submit plugin does
    run.trains()
    run.warn()
    (stopped,) = run.ends("pretrain", 1)
    now = run.ids()
    assert stopped["outcome"] == "stopped" and stopped["next"] == f"successor {now['pretrain']}", stopped
    assert now["pretrain"] != first["pretrain"] and now["finetune"] == first["finetune"]
    assert f"afterok:{now['pretrain']}" in site.show(now["finetune"])["Dependency"]
    assert run.finish("pretrain") == "COMPLETED"
    assert site.state(first["pretrain"]) in ("COMPLETED", "GONE")
    assert run.finish("finetune") == "COMPLETED"
    assert [event["job"] for event in run.events("pretrain", "begin")] == [first["pretrain"], now["pretrain"]]
    assert run.events("pretrain", "ranks_ended")[0]["saved"] == run.events("pretrain", "stepping")[1]["step"] - 1
    assert same_losses(run.path, reference)
    run.proven()
    said = run.status()
    assert said["pretrain"]["state"] == said["finetune"]["state"] == "done", said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_links_of_an_array_follow_each_other_until_one_has_finished(site: Cluster, reference: Path) -> None:
    run = Run(site, reference, "array", "array")
    run.submit()
    run.trains()
    run.warn()
    assert run.finish("finetune") == "COMPLETED"
    ends = run.events("pretrain", "end")
    assert [(end["outcome"], end["exit"]) for end in ends] == [("stopped", 0), ("done", 0), ("done", 0)]
    assert len(run.events("pretrain", "stepping")) == 2  # the last found nothing to do
    assert same_losses(run.path, reference)
    run.proven()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_mistake_ends_the_rest_of_an_array_and_what_waits_for_it(site: Cluster, reference: Path) -> None:
    run = Run(site, reference, "mistake", "array")
    job = run.submit("--hold")["pretrain"]
    (shard,) = (run.path / "tokens").glob("train/*.parquet")
    shard.write_bytes(shard.read_bytes()[:-100])  # while it waits
    site.run(["scontrol", "release", job])
    (end,) = run.ends("pretrain", 1)
    assert (end["outcome"], end["exit"], end["next"]) == ("mistake", 2, "none"), end
    site.wait_for("an empty queue", lambda: not site.run(["squeue", "-h"]).stdout.strip())
    assert len(run.events("pretrain", "begin")) == 1 and not run.events("finetune", "begin")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_failure_at_the_same_step_ends_the_chain_with_its_reason(site: Cluster, reference: Path) -> None:
    place = site.scratch / "haunted"
    place.mkdir()
    (place / "sitecustomize.py").write_text(HAUNTED)
    run = Run(site, reference, "haunted", "requeue", PYTHONPATH=str(place))
    job = run.submit("--only", "pretrain")["pretrain"]
    first, second = run.ends("pretrain", 2)
    assert first["outcome"] == second["outcome"] == "failed" and first["next"] == "requeue"
    assert "this file is haunted" in second["reason"] and first["step"] == second["step"]
    assert second["next"] == "none" and "failed in the same way at the same step" in second["why"]
    assert site.wait_for_state(job, ENDED) == "FAILED"
    said = run.status()["pretrain"]
    assert said["state"] == "failed" and "haunted" in json.dumps(said), said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_that_is_cancelled_behind_our_back_saves_and_does_not_go_on(site: Cluster, reference: Path) -> None:
    run = Run(site, reference, "cancelled", "requeue")
    job = run.submit(nodes=2)["pretrain"]
    run.trains()
    site.run(["scancel", job])
    (end,) = run.ends("pretrain", 1)
    (ranks,) = run.events("pretrain", "ranks_ended")
    assert ranks["outcome"] == "stopped" and ranks["saved"] == ranks["last"] > 0
    assert end["outcome"] == "stopped" and end["next"] == "none" and "cancelled" in end["why"]
    assert site.wait_for_state(job, {"CANCELLED", "GONE"}) != "PENDING"
    time.sleep(1)
    assert not run.events("finetune", "begin") and len(run.events("pretrain", "begin")) == 1
    said = run.status()["pretrain"]
    assert said["state"] in ("stopped", "cancelled") and "cancelled" in said["why"], said
