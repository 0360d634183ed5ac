"""Status and history against a real scheduler: why jobs wait, what vanished, when and why links ended."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from real_cluster import REPO, Cluster

from tests.launch.slurm.recorded import Recorded

LINK = """
line() { echo "{\\"event\\":\\"$1\\",\\"time\\":$(date +%s.%N),\\"job\\":\\"$SLURM_JOB_ID\\",\\"restart\\":${SLURM_RESTART_COUNT:-0}$2}" >> "$LINKS"; }
line begin ",\\"nodes\\":[\\"$SLURMD_NODENAME\\"],\\"start\\":$(date +%s)"
line stage ",\\"stage\\":\\"corpus\\""
sleep 300
"""


def rumpun(cluster: Cluster, *words: str | Path) -> dict[str, Any]:
    done = cluster.run([sys.executable, "-m", "launch.cli", *map(str, words), "--json"], cwd=REPO)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.slow
def test_every_wait_has_its_reason_and_every_loss_is_seen(cluster: Cluster) -> None:
    nap = "sleep 300"
    first = cluster.sbatch(nap, "-N", "4", "--exclusive")
    cluster.wait_for_state(first, "RUNNING")
    jobs = {
        "runs": first,
        "resources": cluster.sbatch(nap, "-N", "4", "--exclusive"),
        "dependent": cluster.sbatch(nap, f"--dependency=afterok:{first}"),
        "held": cluster.sbatch(nap, "--hold"),
        "later": cluster.sbatch(nap, "--begin=now+1hour"),
        "taken": cluster.sbatch(nap, "--dependency=singleton", "-J", "taken"),
        "unknown": "424242",
    }
    cluster.run(["scancel", jobs["taken"]])
    cluster.wait_for_state(jobs["taken"], {"CANCELLED", "GONE"})
    made = Recorded(cluster.scratch / "runs of mine" / "waiting", epoch=time.time())
    entries: dict[str, Any] = {name: {"id": id, "stages": [name], "after": []} for name, id in jobs.items()}
    entries["dependent"]["after"] = ["runs"]
    made.jobs(entries)
    cluster.wait_for(
        "reasons", lambda: "Resources" in cluster.run(["squeue", "-h", "-j", jobs["resources"], "-o", "%r"]).stdout
    )
    told = {job["name"]: job for job in rumpun(cluster, "status", made.run)["jobs"]}
    assert told["runs"]["state"] == "running" and told["runs"]["nodes"] == cluster.nodes
    assert told["resources"]["state"] == "waits" and "waits for nodes" in told["resources"]["why"]
    assert told["dependent"]["why"] == "waits for runs (running)"
    assert told["held"]["why"].endswith(f"scontrol release {jobs['held']}")
    assert "may not start before" in told["later"]["why"]
    assert told["later"]["starts_at"] == pytest.approx(time.time() + 3600, abs=120)
    assert told["taken"]["state"] == "cancelled" and "outside rumpun" in told["taken"]["why"]
    assert told["unknown"]["state"] == "lost" and "not known to SLURM any more" in told["unknown"]["why"]
    cluster.run(["scancel", first])
    cluster.wait_for(
        "the dependant's end", lambda: cluster.state(jobs["dependent"]) in ("GONE", "CANCELLED")
        or "NeverSatisfied" in cluster.run(["squeue", "-h", "-j", jobs["dependent"], "-o", "%r"]).stdout,
    )  # fmt: skip
    told = {job["name"]: job for job in rumpun(cluster, "status", made.run)["jobs"]}
    assert told["runs"]["state"] == "cancelled"
    said = told["dependent"]
    assert said["state"] == "never started" or "will never start" in said["why"]


@pytest.mark.slow
def test_the_ends_and_causes_are_those_of_accounting(cluster: Cluster) -> None:
    made = Recorded(cluster.scratch / "runs" / "ends", epoch=time.time())
    links = made.run / "chain" / "links"
    links.mkdir(parents=True)
    id = cluster.sbatch(f"export LINKS='{links / 'prepare.jsonl'}'\n{LINK}", "-N", "1", "--requeue")
    made.jobs({"prepare": {"id": id, "stages": ["corpus"], "after": []}})

    def begun() -> int:
        path = links / "prepare.jsonl"
        return path.read_text().count('"stage"') if path.exists() else 0

    cluster.wait_for("the first link", lambda: begun() == 2)  # the event and its field
    time.sleep(2)
    cluster.run(["scontrol", "requeue", id])
    cluster.wait_for("the second link", lambda: begun() == 4, 90)
    time.sleep(1)
    record = rumpun(cluster, "history", made.run)
    assert [link["running"] for link in record["links"]] == [False, True]
    cluster.run(["scancel", id])
    cluster.wait_for_state(id, {"CANCELLED", "GONE"})

    def ended() -> bool:  # accounting lags
        return all(link["cause"] and not link["running"] for link in rumpun(cluster, "history", made.run)["links"])

    cluster.wait_for("accounting", ended, 30)
    first, second = rumpun(cluster, "history", made.run)["links"]
    assert (first["cause"], second["cause"]) == ("requeued by hand", "cancelled outside rumpun")
    runs = cluster.run(["sacct", "-n", "-P", "-X", "-D", "-j", id, "-o", "start,end"], env={"SLURM_TIME_FORMAT": "%s"})
    spans = [tuple(map(float, line.split("|"))) for line in runs.stdout.split()]
    assert [(link["start"], link["end"]) for link in (first, second)] == [
        (pytest.approx(start, abs=2), pytest.approx(end, abs=0.1)) for start, end in spans
    ]
    lost = [
        part["end"] - part["begin"] for link in (first, second) for part in link["intervals"] if part["kind"] == "lost"
    ]
    assert len(lost) == 2 and sum(lost) == pytest.approx(sum(end - start for start, end in spans), abs=4)
    assert second["begin"] == first["end"]  # what it waited for is the chain's time too
