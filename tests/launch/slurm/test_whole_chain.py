"""The whole demo as jobs on four nodes, from nothing to the table: the table is that of one machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from real_cluster import Cluster

from data_prep.files import read_json

REPO = Path(__file__).resolve().parents[3]
WITHIN_S = 1200


def rumpun(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "launch.cli", *map(str, words)]


def table(run: Path) -> dict[tuple[str, str, str], float]:
    """Every number of the results table, with what it is of."""
    means = read_json(run / "eval" / "results.json")["means"]
    return {
        (row["system"], row["subset"], metric): value["mean"]
        for row in means
        for metric, value in row["metrics"].items()
    }


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S + 900)
def test_the_demo_as_jobs_ends_in_the_table_of_one_machine(cluster: Cluster, demo_run: Path) -> None:
    run = cluster.scratch / "runs" / "demo"
    # jobs have their own environment: what chooses the kernels of linear algebra must be in the profile, or the last
    # bits of a decomposition differ, and the pairs that are mined with it
    chosen = {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "OMP_"))}
    lines = [f"{name} = {json.dumps(value)}" for name, value in chosen.items()]
    profile = cluster.scratch / "same-kernels.toml"
    profile.write_text('partition = "normal"\nroute = "requeue"\n[environment]\n' + "\n".join(lines) + "\n")
    words: list[str | Path] = ["submit", "recipes/demo.toml", "--cluster", profile, "--nodes", "4", "--tasks-per-node", "1",
             "--set", "fanout.workers=2", "--runs", run.parent]  # fmt: skip
    said = cluster.run(rumpun(*words), cwd=REPO, timeout_s=120)
    assert "6 jobs" in said.stdout, said.stdout
    jobs = json.loads((run / "chain" / "jobs.json").read_text())["jobs"]
    for name, job in jobs.items():
        state = cluster.wait_for_state(
            job["id"], {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}, WITHIN_S
        )
        log = "\n".join(p.read_text()[-3000:] for p in (run / "logs" / "slurm").glob(f"{name}-*.out"))
        assert state == "COMPLETED", f"{name}: {state}\n{log}"

    # the same data, pairs and tokens to the byte, and the same table; four ranks instead of two move the last bits
    for stage in ("generate", "corpus", "tokenizer", "tokens", "mine", "synth", "truncate"):
        assert read_json(run / stage / "stage.json")["content"] == read_json(demo_run / stage / "stage.json")["content"]
    ours, theirs = table(run), table(demo_run)
    assert ours.keys() == theirs.keys()
    differ = {key: (ours[key], theirs[key]) for key in ours if abs(ours[key] - theirs[key]) > 1e-9}
    assert {key[0] for key in differ} <= {"pretrained", "finetuned"}, differ
    assert all(abs(a - b) < 0.01 for a, b in differ.values()), differ

    assert (run / "work").exists() is False  # finished stages leave no scratch
    arrays = cluster.run(["sacct", "-n", "-X", "-P", "--format=JobName,NNodes,NodeList", "-S", "now-2hours"]).stdout
    assert {"node1", "node2", "node3", "node4"} <= set(cluster.nodes), arrays
    again = cluster.run(rumpun(*words), cwd=REPO, timeout_s=120)
    assert "nothing to do" in again.stdout, again.stdout
    assert cluster.run(["squeue", "-h"]).stdout.strip() == ""
