"""The one-machine cluster is a real one: hosts of their own, accidents, requeues; and it ends what it started, no more."""

from __future__ import annotations

import pytest
from real_cluster import Cluster


@pytest.mark.slow
def test_four_nodes_are_four_hosts(cluster: Cluster) -> None:
    answer = cluster.run(["srun", "-N4", "sh", "-c", "echo $(hostname) $(hostname -I) $CUDA_VISIBLE_DEVICES"])
    hosts = [line.split() for line in sorted(answer.stdout.splitlines())]
    assert [host[0] for host in hosts] == cluster.nodes == ["node1", "node2", "node3", "node4"]
    assert len({host[1] for host in hosts}) == 4
    job = cluster.sbatch("srun sh -c 'echo $CUDA_VISIBLE_DEVICES > $(hostname).gpus'", "-N4", "--gres=gpu:2")
    cluster.wait_for_state(job, "COMPLETED")
    assert {(cluster.scratch / f"{node}.gpus").read_text() for node in cluster.nodes} == {"0,1\n"}


@pytest.mark.slow
def test_crashed_node_gives_its_job_back(cluster: Cluster) -> None:
    job = cluster.sbatch("echo restart $SLURM_RESTART_COUNT; srun sleep 600", "-N2", "-w", "node1,node2")
    cluster.wait_for_state(job, "RUNNING")
    cluster.crash("node2")
    cluster.wait_for("requeued", lambda: cluster.show(job)["Restarts"] == "1")
    assert cluster.state(job) in ("PENDING", "REQUEUED", "COMPLETING")
    cluster.start("node2")
    cluster.wait_for_state(job, "RUNNING")
    cluster.wait_for("its output", lambda: "restart 1" in cluster.output(job))
    runs = cluster.run(["sacct", "-D", "-n", "-P", "-X", "-j", job, "-o", "State"]).stdout.split()
    assert runs[0] == "NODE_FAIL"


@pytest.mark.slow
def test_up_is_idempotent_and_status_tells(cluster: Cluster) -> None:
    before = _pids(cluster)
    cluster.testbench("up")
    assert _pids(cluster) == before
    cluster.testbench("node", "node3", "crash")
    assert cluster.testbench("status", check=False).returncode == 1
    cluster.testbench("up")
    assert cluster.testbench("status").returncode == 0
    after = _pids(cluster)
    assert {name for name in before if before[name] != after[name]} == {"node3"}


def _pids(cluster: Cluster) -> dict[str, str]:
    return {file.name: file.read_text() for file in (cluster.folder / "pids").iterdir()}
