"""The one-machine cluster is a real one: hosts of their own, accidents, requeues, preemption."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from real_cluster import REPO, SCRIPT, Cluster, free_folder, why_not

pytestmark = pytest.mark.slow


def test_four_nodes_are_four_hosts(cluster: Cluster) -> None:
    answer = cluster.run(["srun", "-N4", "sh", "-c", "echo $(hostname) $(hostname -I) $CUDA_VISIBLE_DEVICES"])
    hosts = [line.split() for line in sorted(answer.stdout.splitlines())]
    assert [host[0] for host in hosts] == cluster.nodes == ["node1", "node2", "node3", "node4"]
    assert len({host[1] for host in hosts}) == 4
    assert {len(host) for host in hosts} == {2}, "a GPU that nobody asked for"
    job = cluster.sbatch("srun sh -c 'echo $CUDA_VISIBLE_DEVICES > $(hostname).gpus'", "-N4", "--gres=gpu:2")
    cluster.wait_for_state(job, "COMPLETED")
    assert {(cluster.scratch / f"{node}.gpus").read_text() for node in cluster.nodes} == {"0,1\n"}


def test_exit_codes_and_signals_of_a_command_are_its_own(cluster: Cluster) -> None:
    assert cluster.run(["srun", "sh", "-c", "exit 7"], check=False).returncode == 7
    assert cluster.testbench("exec", "sh", "-c", "exit 9", check=False).returncode == 9
    assert cluster.on("node3", ["hostname"]).stdout == "node3\n"
    refused = cluster.run(["sbatch", "-p", "nowhere", "--wrap", "true"], check=False)
    assert refused.returncode == 1
    assert "invalid partition" in refused.stderr.lower()


def test_jobs_start_no_better_than_their_user_is(cluster: Cluster) -> None:
    # SLURM's daemons run with nice -10, so that they answer while ranks use all CPUs; ranks must not inherit it
    assert cluster.run(["srun", "-N2", "nice"]).stdout.split() == ["0", "0"]
    job = cluster.sbatch("nice; srun nice")
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.output(job).split() == ["0", "0"]


def test_crashed_node_gives_its_job_back(cluster: Cluster) -> None:
    job = cluster.sbatch(
        "srun sh -c 'echo rank of restart $SLURM_RESTART_COUNT; sleep 600'", "-N2", "-w", "node1,node2"
    )
    # a node that is lost while srun starts the ranks makes the job fail at once; so both must run
    cluster.wait_for("its ranks", lambda: cluster.output(job).count("rank") == 2)
    cluster.crash("node2")
    cluster.wait_for("requeued", lambda: cluster.show(job)["Restarts"] == "1")
    assert cluster.state(job) in ("PENDING", "REQUEUED", "COMPLETING")
    cluster.start("node2")
    cluster.wait_for("its new ranks", lambda: cluster.output(job).count("rank of restart 1") == 2)
    runs = cluster.run(["sacct", "-D", "-n", "-P", "-X", "-j", job, "-o", "State"]).stdout.split()
    assert runs[0] == "NODE_FAIL"


@pytest.mark.parametrize("accident", ["unplug", "slurmd-kill"])
def test_lost_but_living_node_keeps_its_rank_until_it_is_back(cluster: Cluster, accident: str) -> None:
    rank = "echo rank; exec sleep 61$(hostname | tr -dc 0-9)"
    job = cluster.sbatch(f"srun sh -c '{rank}'", "-N2", "-w", "node3,node4")
    cluster.wait_for("its ranks", lambda: cluster.output(job).count("rank") == 2)
    cluster.testbench("node", "node4", accident)
    cluster.wait_for_loss("node4")
    cluster.wait_for("requeued", lambda: cluster.show(job)["Restarts"] == "1")
    assert cluster.on("node4", ["pgrep", "-f", "sleep 614"]).stdout, "two generations of one job are what is tested"
    cluster.testbench("node", "node4", {"unplug": "plug", "slurmd-kill": "slurmd-start"}[accident])
    cluster.wait_for_state(job, "RUNNING")
    started = ["pgrep", "-c", "-f", "sleep 614"]
    cluster.wait_for("one rank again", lambda: cluster.on("node4", started, check=False).stdout == "1\n")


def test_preempted_job_is_warned_and_runs_again(cluster: Cluster) -> None:
    # SIGTERM may come twice, and to the children of a rank too
    rank = "trap 'echo warned; trap : TERM' TERM; echo began; while :; do sleep 0.5; done"
    low = cluster.sbatch(f'srun sh -c "{rank}"', "-p", "low", "-N4", "--exclusive")
    cluster.wait_for("its ranks", lambda: cluster.output(low).count("began") == 4)
    high = cluster.sbatch("sleep 1", "-p", "high", "-N4", "--exclusive")
    cluster.wait_for("the warning", lambda: cluster.output(low).count("warned") == 4)
    assert cluster.state(high) == "PENDING"
    cluster.wait_for_state(high, "COMPLETED")
    cluster.wait_for("the second start", lambda: cluster.output(low).count("began") == 8)
    assert cluster.show(low)["Restarts"] == "1"


def test_controller_restarts_above_a_running_job(cluster: Cluster) -> None:
    job = cluster.sbatch("srun sh -c 'echo rank; until [ -e go ]; do sleep 0.1; done; echo went'", "-N2")
    cluster.wait_for("its ranks", lambda: cluster.output(job).count("rank") == 2)
    cluster.testbench("controller", "stop")
    assert cluster.run(["squeue"], check=False).returncode == 1
    cluster.testbench("controller", "start")
    assert cluster.state(job) == "RUNNING"
    (cluster.scratch / "go").touch()
    cluster.wait_for_state(job, "COMPLETED")
    assert cluster.output(job).count("went") == 2


def test_settings_of_a_bench(new_bench: Callable[..., Cluster]) -> None:
    lines = (
        "JobRequeue=0",
        "MaxArraySize=3",
        "SlurmctldParameters=preempt_send_user_signal",
        "SlurmdTimeout=5",
        "MessageTimeout=3",
    )
    options = [word for line in lines for word in ("--slurm-conf", line)]
    bench = new_bench("--nodes", "2", "--gpus", "0", "--accounting", "no", "--grace-s", "30", *options)
    assert bench.nodes == ["node1", "node2"]
    assert bench.run(["sinfo", "-h", "-o", "%G"]).stdout.split()[0] == "(null)"
    assert bench.run(["sacct"], check=False).returncode != 0
    refused = bench.run(["sbatch", "--array", "0-3", "--wrap", "true"], check=False)
    assert "array" in refused.stderr.lower() and refused.returncode == 1
    # preempt_send_user_signal: the job's own signal, at the beginning of the grace time
    low = bench.sbatch(
        "srun sh -c 'trap \"echo user signal; exit 0\" USR1; echo began; sleep 600 & wait'",
        "-p",
        "low",
        "-N2",
        "--exclusive",
        "--signal=USR1@10",
    )
    bench.wait_for("its rank", lambda: "began" in bench.output(low))
    high = bench.sbatch("true", "-p", "high", "-N2", "--exclusive")
    bench.wait_for_state(high, "COMPLETED")
    assert "user signal" in bench.output(low)
    # JobRequeue=0: a lost node is the end of the job
    job = bench.sbatch("srun sh -c 'echo began; sleep 600'", "-N2")
    # a node that is lost while srun still starts the step ends the job as FAILED
    bench.wait_for("both tasks", lambda: bench.output(job).count("began") == 2)
    bench.crash("node2")
    bench.wait_for_state(job, "NODE_FAIL")


def test_commands_of_the_readme_run(cluster: Cluster, new_bench: Callable[..., Cluster]) -> None:
    readme = (SCRIPT.parent / "README.md").read_text()
    block = readme.split("```")[1].replace("sudo ", "")
    (cluster.scratch / "job.sh").write_text("#!/bin/sh\nsrun hostname\nscontrol ping\n")
    lines = [f"rumpun() {{ shift; '{SCRIPT}' \"$@\"; }}", "set -ex", block, f"! [ -e {cluster.scratch}/bench ]"]
    where = {"RUMPUN_TESTBENCH": str(cluster.scratch / "bench"), "PATH": os.environ["PATH"]}
    told = cluster.run(["bash", "-c", "\n".join(lines)], env=where, timeout_s=240)
    assert "Submitted batch job 1" in told.stdout
    for line in re.findall(r"^\| [^|]+ \| `(--[^`]+)`", readme, flags=re.MULTILINE):
        bench = new_bench(
            "--nodes", "1", *(["--accounting", "no"] if "--accounting" not in line else []), *line.split()
        )
        bench.run(["srun", "true"])
        bench.purge()


def test_rumpun_passes_every_option_on(tmp_path: Path) -> None:
    if lacks := why_not():
        pytest.skip(lacks)
    bench = Cluster(free_folder(), tmp_path)
    at = ["--at", bench.folder]

    def rumpun(*words: str | Path, check: bool = True) -> str:
        command = [sys.executable, "-c", "import sys; from launch.cli import main; sys.exit(main())", "testbench"]
        return bench.run([*command, *words], check=check, cwd=REPO, timeout_s=240).stdout

    try:
        options = "--nodes 2 --gpus 1 --cpus 3 --memory-mb 700 --grace-s 9 --no-accounting --install"
        lines = ["--slurm-conf", "MaxArraySize=5", "--slurm-conf", "DebugFlags=Agent", "--slurm-conf", "MailProg="]
        rumpun("up", *at, *options.split(), *lines)
        node = bench.run(["scontrol", "show", "node", "-o", "node2"]).stdout
        assert {"CPUTot=3", "RealMemory=700", "Gres=gpu:fake:1"} <= set(node.split())
        config = re.sub(r" +", "", bench.run(["scontrol", "show", "config"]).stdout)
        assert {"MaxArraySize=5", "DebugFlags=Agent", "AccountingStorageType=accounting_storage/none"} <= set(
            config.split()
        )
        assert "MailProg=/bin/true" not in config
        assert "GraceTime=9" in bench.run(["scontrol", "show", "partition", "-o", "low"]).stdout
        assert sorted(rumpun("exec", *at, "srun", "-N2", "-l", "hostname").split()) == ["0:", "1:", "node1", "node2"]
        assert rumpun("exec", *at, "--on", "node2", "--", "hostname", "-s") == "node2\n"
        rumpun("node", "node2", "crash", *at)
        assert "node2: not running" in rumpun("status", *at, check=False)
        rumpun("node", "node2", "start", *at)
        rumpun("controller", "restart", *at)
        rumpun("down", *at)
        rumpun("up", *at)  # with the options of the first time
        assert "2 nodes" in rumpun("status", *at)
        assert f"export PATH={bench.folder}/bin:" in rumpun("env", *at)
        assert "slurmctld" in rumpun("logs", "3", *at)
    finally:
        rumpun("purge", *at)
    assert not bench.folder.exists()
