"""`rumpun cluster learn`: what is chosen from what the scheduler says, what is cited, and what a user is warned of."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fake_slurm import CONFIG, NODES, PARTITIONS, FakeSlurm

from data_prep.errors import UserError
from launch.cli import main
from launch.slurm.clusters.learn import learn
from launch.slurm.clusters.profile import ClusterProfile, load_profile
from launch.slurm.scheduler.commands import Slurm

if TYPE_CHECKING:
    from collections.abc import Callable

    from real_cluster import Cluster


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch).cluster()


def configured(fake: FakeSlurm, *changes: tuple[str, str]) -> None:
    """Another configuration: each change replaces a line's beginning."""
    lines = CONFIG.splitlines()
    for key, value in changes:
        lines = [line for line in lines if not line.startswith(key + " ")] + [f"{key:23} = {value}"]
    text = "\n".join(lines)
    fake.does("scontrol.answer", f"if [ \"$2\" = config ]; then cat <<'EOF'\n{text}\nEOF\nexit 0; fi; exit 1")


def test_the_default_partition_and_where_each_value_is_from(fake: FakeSlurm) -> None:
    found = learn(Slurm(), "lab")
    profile = found.profile
    assert isinstance(profile, ClusterProfile)
    assert (profile.name, profile.partition, profile.account) == ("lab", "normal", "lab")
    assert (profile.gpus_per_node, profile.gpu_type, profile.cpus_per_node, profile.memory_gb) == (2, "a100", 8, 15)
    assert (profile.max_time_min, profile.route, profile.max_array_tasks) == (60, "requeue", 1000)
    assert profile.grace_s is None  # PreemptMode=OFF: nobody is preempted here
    assert profile.interface is None and "ip -br addr" in found.notes["interface"]
    # every value that is set stands on a line that a command printed
    everything = " ".join((PARTITIONS + NODES + CONFIG).split())
    for key in ("partition", "gpus_per_node", "gpu_type", "cpus_per_node", "memory_gb", "max_time_min"):
        command, _, line = found.facts[key].partition(": ")
        assert command.startswith("scontrol show ")
        for word in line.partition(" (so on")[0].split():
            assert word in everything, (key, word)
    assert found.facts["max_array_tasks"] == "scontrol show config: MaxArraySize = 1001"
    assert "rack1 (2 nodes)" in found.notes["constraint"]
    assert found.warnings == []


def test_a_preempted_partition(fake: FakeSlurm) -> None:
    found = learn(Slurm(), "lab", partition="low")
    assert (found.values["grace_s"], found.values["max_time_min"], found.values["route"]) == (20, 2880, "requeue")
    assert found.facts["grace_s"] == "scontrol show partition low: GraceTime=20 PreemptMode=REQUEUE"
    assert any("send_user_signal is not set" in text and "20 s" in text for text in found.warnings)


@pytest.mark.parametrize(
    "change",
    [
        ("SlurmctldParameters", "idle_on_node_suspend,preempt_send_user_signal"),  # up to 22.05
        ("PreemptParameters", "strict_order,send_user_signal"),  # since
    ],
)
def test_the_jobs_own_signal_is_seen_in_either_spelling(fake: FakeSlurm, change: tuple[str, str]) -> None:
    configured(fake, change)
    found = learn(Slurm(), "lab", partition="low")
    assert found.warnings == [] and found.also["preempt_signal"] == "the job's own"
    assert change[1] in found.facts["preempt_signal"]


def test_preemption_without_grace_is_warned_of(fake: FakeSlurm) -> None:
    fake.says("scontrol", PARTITIONS.replace("GraceTime=20", "GraceTime=0"), call="partition")
    found = learn(Slurm(), "lab", partition="low")
    assert found.values["grace_s"] == 0
    assert any(text.startswith("GraceTime=0: preemption kills without warning") for text in found.warnings)


def test_routes(fake: FakeSlurm) -> None:
    configured(fake, ("JobRequeue", "0"))
    found = learn(Slurm(), "lab")
    assert found.values["route"] == "successor" and found.facts["route"] == "scontrol show config: JobRequeue = 0"
    assert any("JobRequeue = 0" in text for text in found.warnings)
    configured(fake, ("AuthInfo", "(null)"))
    fake.says("scontrol", PARTITIONS.replace("PreemptMode=REQUEUE", "PreemptMode=CANCEL"), call="partition")
    assert learn(Slurm(), "lab", partition="low").values["route"] == "successor"
    found = learn(Slurm(), "lab")  # normal is never preempted
    assert found.values["route"] == "requeue"
    assert any("waits 120 s" in text for text in found.warnings)


def test_preemption_by_quality_of_service(fake: FakeSlurm) -> None:
    configured(fake, ("PreemptType", "preempt/qos"))
    fake.does(
        "sacctmgr.answer",
        'case "$*" in *"show qos normal format=gracetime,preemptmode"*) echo "00:01:30|cluster" ;; '
        "*format=defaultqos*) echo normal ;; *format=qos*) echo long,normal ;; *format=*) echo lab ;; esac; exit 0",
    )
    found = learn(Slurm(), "lab")
    assert found.values["grace_s"] == 90 and found.facts["grace_s"].startswith("sacctmgr show qos normal")


def test_a_limit_of_the_partitions_qos_counts_where_it_is_lower(fake: FakeSlurm) -> None:
    fake.says("scontrol", PARTITIONS.replace("QoS=N/A", "QoS=short"), call="partition")
    fake.does("sacctmgr.answer", 'case "$*" in *"show qos short format=maxwall"*) echo 00:30:00 ;; esac; exit 0')
    found = learn(Slurm(), "lab")
    assert found.values["max_time_min"] == 30 and "sacctmgr show qos short" in found.facts["max_time_min"]


def test_a_limit_of_the_users_account_counts_too(fake: FakeSlurm) -> None:
    """A job above it is queued, and never starts."""
    fake.does(
        "sacctmgr.answer",
        'case "$*" in *assoc*format=maxwall*) echo 00:45:00 ;; *qos*format=maxwall*) echo 00:50:00 ;; '
        "*format=qos*) echo normal ;; *format=*account*) echo lab ;; esac; exit 0",
    )
    found = learn(Slurm(), "lab")
    assert found.values["max_time_min"] == 45
    assert "account=lab format=maxwall: MaxWall=00:45:00" in found.facts["max_time_min"]


def test_several_kinds_of_nodes(fake: FakeSlurm) -> None:
    mixed = NODES.replace(
        "ActiveFeatures=rack2,fake Gres=gpu:a100:2(S:0-1)", "ActiveFeatures=rack2,fake Gres=gpu:v100:1"
    )
    mixed += (
        "NodeName=node5 CPUEfctv=8 CPUTot=8 Gres=(null) RealMemory=16000 State=DOWN Reason=no power Partitions=normal\n"
    )
    fake.says("scontrol", mixed, call="node")
    fake.says("scontrol", PARTITIONS.replace("node[1-4]", "node[1-5]", 1), call="partition")
    found = learn(Slurm(), "lab")
    assert (found.values["gpus_per_node"], found.values["gpu_type"]) == (2, "a100")
    assert found.values["constraint"] == "rack1"  # all nodes with a100 have it, and no other
    assert any("several kinds" in text and "v100" in text for text in found.warnings)
    assert any("node5 down no power" in text for text in found.warnings)
    assert "so on 2 of 5 nodes" in found.facts["gpu_type"]


def test_what_a_user_should_mind_of_a_partition(fake: FakeSlurm) -> None:
    fake.says("scontrol", NODES.replace("ThreadsPerCore=1", "ThreadsPerCore=2"), call="node")
    fake.says("scontrol", PARTITIONS.replace("State=UP", "State=DRAIN"), call="partition")
    found = learn(Slurm(), "lab", partition="low")
    assert any("2 threads of each of 4 cores" in text for text in found.warnings)
    assert any("State=DRAIN" in text for text in found.warnings)
    assert found.also["max_nodes"] == "2 a job" and found.facts["max_nodes"].endswith(": MaxNodes=2")


def test_without_accounting(fake: FakeSlurm) -> None:
    configured(fake, ("AccountingStorageType", "accounting_storage/none"))
    fake.says("sacctmgr", err="You are not running a supported accounting_storage plugin", code=1)
    found = learn(Slurm(), "lab")
    assert found.profile.account is None
    assert "AccountingStorageType = accounting_storage/none" in found.facts["account"]


def test_an_account_that_may_not_use_the_partition(fake: FakeSlurm) -> None:
    found = learn(Slurm(), "lab", partition="closed")
    assert found.profile.account is None
    assert any("rich, famous" in text for text in found.warnings)


def test_arrays_that_are_switched_off_or_capped(fake: FakeSlurm) -> None:
    configured(fake, ("MaxArraySize", "0"))
    found = learn(Slurm(), "lab")
    assert found.profile.max_array_tasks is None and any("switched off" in text for text in found.warnings)
    configured(fake, ("SchedulerParameters", "bf_continue,max_array_tasks=50"))
    assert learn(Slurm(), "lab").values["max_array_tasks"] == 50


def test_an_unknown_partition_and_none_at_all(fake: FakeSlurm) -> None:
    with pytest.raises(UserError, match="normal \\(default\\), low, closed"):
        learn(Slurm(), "lab", partition="nope")
    fake.says("scontrol", PARTITIONS.replace("Default=YES", "Default=NO"), call="partition")
    with pytest.raises(UserError, match="no default"):
        learn(Slurm(), "lab")


# ---- the command -----------------------------------------------------------------------------------------------------


def run(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["cluster", *words])
    return int(ended.value.code or 0)


def test_the_command_writes_once(fake: FakeSlurm, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "here.toml"
    assert run("learn", "lab", "--partition", "low", "--to", str(file)) == 0
    shown = capfd.readouterr().out
    assert "GraceTime=20" in shown.replace("\n", "") and f"wrote {file}" in shown
    assert "mind: preemption does not send the job's own signal" in shown
    text = file.read_text()
    assert tomllib.loads(text)["facts"]["grace_s"] == "scontrol show partition low: GraceTime=20 PreemptMode=REQUEUE"
    assert "# From scontrol show partition low: GraceTime=20 PreemptMode=REQUEUE\ngrace_s = 20" in text
    assert load_profile(str(file)).partition == "low"
    file.write_text(text.replace("grace_s = 20", "grace_s = 19"))
    assert run("learn", "lab", "--to", str(file)) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "exists already" in error and "--force" in error
    assert load_profile(str(file)).grace_s == 19
    assert run("learn", "lab", "--to", str(file), "--force") == 0
    assert load_profile(str(file)).partition == "normal"


def test_mistakes_of_the_command_are_one_line(
    fake: FakeSlurm, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    for words in (
        ["learn", "a b"],
        ["learn", "../x"],
        ["learn", "lab", "--to", str(tmp_path / "file" / "x.toml")],
        ["learn", "lab", "--partition", "nope", "--to", str(tmp_path / "new.toml")],
        ["show", "nope"],
    ):
        assert run(*words) == 2
        error = capfd.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1, error
    assert not (tmp_path / "new.toml").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("learn", "lab", "--to", str(tmp_path / "new.toml")) == 2
    assert "login node" in capfd.readouterr().err


def test_list_and_show(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("list") == 0
    assert "testbench " in capfd.readouterr().out
    assert run("show", "testbench") == 0
    shown = capfd.readouterr().out
    assert tomllib.loads(shown)["name"] == "testbench"
    (tmp_path / "bad.toml").write_text("partitoin = 1")
    (tmp_path / "good.toml").write_text("about = 'fine'")
    monkeypatch.setattr("launch.slurm.clusters.profile.profiles", lambda: sorted(tmp_path.glob("*.toml")))
    assert run("list") == 0
    assert "broken: " in (out := capfd.readouterr().out) and "fine" in out


# ---- a real one ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_cluster_is_learned(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "low.toml"
    words = [sys.executable, "-m", "launch.cli", "cluster", "learn", "bench", "--to", file]
    answer = cluster.run([*words, "--partition", "low"], cwd=Path(__file__).parents[3])
    profile = load_profile(str(file))
    assert (profile.partition, profile.gpus_per_node, profile.gpu_type) == ("low", 2, "fake")
    assert (profile.cpus_per_node, profile.memory_gb, profile.grace_s, profile.route) == (8, 15, 20, "requeue")
    assert profile.account == cluster.run(
        ["sacctmgr", "-nP", "show", "user", "root", "format=defaultaccount"]
    ).stdout.strip()  # fmt: skip
    printed = "".join(
        cluster.run(["scontrol", "show", *what]).stdout for what in (["config"], ["partition", "-o"], ["node", "-o"])
    )
    for key in ("gpus_per_node", "grace_s", "max_array_tasks", "memory_gb"):
        line = profile.facts[key].partition(": ")[2].partition(" (so on")[0]
        for word in line.split():
            assert word in printed, (key, word)
    assert "20 s before the end" in " ".join(answer.stdout.split())
    # the profile is accepted by the cluster that it is of
    script = cluster.scratch / "learned.sbatch"
    script.write_text("#!/bin/bash\ntrue\n")
    options = [f"--partition={profile.partition}", f"--account={profile.account}", f"--mem={profile.memory_gb}G",
               f"--gres=gpu:{profile.gpu_type}:{profile.gpus_per_node}", f"--cpus-per-task={profile.cpus_per_node}", "-N4"]  # fmt: skip
    assert "to start at" in cluster.run(["sbatch", "--test-only", *options, script]).stderr


@pytest.mark.slow
def test_a_real_cluster_without_accounting(new_bench: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_bench("--nodes", "1", "--accounting", "no", "--slurm-conf", "MinJobAge=2")
    monkeypatch.setenv("PATH", bench.env["PATH"])
    slurm = Slurm(poll_s=0.2)
    found = learn(slurm, "bench")
    assert found.profile.account is None and "accounting_storage/none" in found.facts["account"]
    script = bench.scratch / "short.sbatch"
    script.write_text("#!/bin/bash\nsleep 1\n")
    job = slurm.submit(script, options=["--output=/dev/null"])
    seen: list[str] = []

    def gone() -> bool:
        seen.append(slurm.jobs([job])[job].state)
        return seen[-1] == "GONE"

    bench.wait_for("the controller to forget the job", gone, within=90)
    assert set(seen) <= {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "COMPLETED", "GONE"}
    assert slurm.runs_of(job) == []
    with pytest.raises(UserError, match="does not know it"):
        slurm.requeue(job)
