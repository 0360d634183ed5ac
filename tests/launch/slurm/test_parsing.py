"""What SLURM prints, from several of its releases, against what it means."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launch.slurm.scheduler.asked import asked_by
from launch.slurm.scheduler.facts import config_in, gpus_in, memory_mb, node_in, pairs_in, partition_in
from launch.slurm.scheduler.hostlist import expand
from launch.slurm.scheduler.job_state import (
    ENDED,
    JobState,
    from_accounting,
    from_queue,
    plain_state,
    seconds_of,
    time_of,
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-3,07]", ["n1", "n2", "n3", "n07"]),
        ("a,b[08-11]c[1-2],z", ["a", "b08c1", "b08c2", "b09c1", "b09c2", "b10c1", "b10c2", "b11c1", "b11c2", "z"]),
        ("r[1-2]n[01-02]", ["r1n01", "r1n02", "r2n01", "r2n02"]),
        ("n[1-99999999999]", ["n1-99999999999"]),  # not a list that anyone can want: never a loop without end
        ("n[1-", ["n[1-"]),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    assert expand(text) == names


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20", 20),
        ("20 sec", 20),
        ("00:10:00", 600),
        ("1:30", 90),
        ("1-00:00:00", 86400),
        ("7-12", 7 * 86400 + 12 * 3600),
        ("2-03:04", 2 * 86400 + 3 * 3600 + 4 * 60),
        ("UNLIMITED", None),
        ("INFINITE", None),
        ("NONE", None),
        ("", None),
        ("1-", None),
        ("a:b", None),
    ],
)
def test_durations(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


def test_moments() -> None:
    local = time.mktime((2026, 11, 22, 20, 11, 36, 0, 0, -1))
    assert time_of("2026-11-22T20:11:36") == local
    assert time_of("1795378299") == 1795378299
    assert [time_of(text) for text in ("Unknown", "N/A", "None", "", "0", "soon")] == [None] * 6


def test_states_lose_their_suffixes() -> None:
    texts = ("CANCELLED by 1000", "NODE_FAIL", "COMPLETED+", "OUT_OF_ME+", "requeue_hold", "")
    assert [plain_state(text) for text in texts] == [
        "CANCELLED", "NODE_FAIL", "COMPLETED", "OUT_OF_ME", "REQUEUE_HOLD", "GONE",
    ]  # fmt: skip
    queue = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT",
             "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "EXPEDITING", "a state of a later release")  # fmt: skip
    assert all(JobState("1", state=state).active for state in queue)
    assert not any(JobState("1", state=state).active for state in ENDED)


def test_a_wrapper_that_greets_is_passed_over() -> None:
    line = "7|7|N/A|RUNNING|0|1|2|3|4|p|n1|None|name|"
    assert [state.id for state in from_queue(["Welcome to the cluster!", "", "a|b", line])] == ["7"]
    assert from_accounting(["", "sacct: hello", "|||||||||||"]) == []


def test_old_and_new_records_of_nodes() -> None:
    # 20.11 has no CPUEfctv; 23.11 writes types and sockets of GPUs; 24.11 has more flags
    old = node_in(pairs_in("NodeName=n1 CPUAlloc=0 CPUTot=64 Gres=gpu:4 RealMemory=512000 State=IDLE+DRAIN "
                           "Partitions=a,b Reason=bad fan [root@2026-01-01T00:00:00]"))  # fmt: skip
    assert (old.cpus, old.gpus, old.gpu_type, old.memory_mb) == (64, 4, "", 512000)
    assert (old.state, old.flags, old.usable) == ("IDLE", ("DRAIN",), False)
    assert old.reason == "bad fan [root@2026-01-01T00:00:00]" and old.partitions == ("a", "b")
    new = node_in(pairs_in("NodeName=n2 CPUEfctv=62 CPUTot=64 MemSpecLimit=2000 RealMemory=512000 ActiveFeatures=ib,x "
                           "Gres=gpu:h100:8(S:0-1),shard:h100:64(S:0-1) State=DOWN*+CLOUD+NOT_RESPONDING "
                           "OS=Linux 6.1 #1 SMP Comment=said A=b"))  # fmt: skip
    assert (new.cpus, new.gpus, new.gpu_type, new.memory_mb) == (62, 8, "h100", 510000)
    assert new.state == "DOWN" and "NOT_RESPONDING" in new.flags and not new.usable
    assert new.features == ("ib", "x")
    for state, usable in (("MIXED", True), ("ALLOCATED", True), ("IDLE+CLOUD+POWERED_DOWN", True), ("DOWN", False),
                          ("MIXED+DRAIN", False), ("IDLE*", False), ("IDLE+MAINTENANCE+RESERVED", False)):  # fmt: skip
        assert node_in({"NodeName": "n", "State": state}).usable is usable, state


def test_gpus_of_all_kinds() -> None:
    for text, found in (
        ("(null)", (0, "")),
        ("", (0, "")),
        ("gpu:2", (2, "")),
        ("gpu", (1, "")),
        ("gpu:a100", (1, "a100")),
        ("gpu:a100:4", (4, "a100")),
        ("gpu:a100_3g.20gb:2,gpu:a100:4(S:0,1),nic:2", (6, "a100")),
        ("craynetwork:4", (0, "")),
    ):
        assert gpus_in(text) == found, text


def test_partitions() -> None:
    record = "PartitionName=p AllowAccounts=a,b AllowQos=ALL Default=YES DefaultTime=NONE GraceTime=60 MaxNodes=8 MaxTime=2-00:00:00 Nodes=n[1-2] PreemptMode=REQUEUE PriorityTier=3 State=UP"
    found = partition_in(pairs_in(record))
    assert (found.max_time_min, found.default_time_min, found.grace_s, found.max_nodes) == (2880, None, 60, 8)
    assert (found.allow_accounts, found.allow_qos, found.nodes) == (("a", "b"), (), ("n1", "n2"))
    assert partition_in({"PartitionName": "q", "Nodes": "(null)", "MaxTime": "UNLIMITED"}).nodes == ()


def test_configuration_and_memory() -> None:
    text = "Configuration data as of x\nA   = (null)\nB = x=1,y\n\nCgroup Support Configuration:\nC = d\n"
    assert config_in(text) == {"A": "", "B": "x=1,y", "C": "d"}
    assert [memory_mb(t) for t in ("64G", "16000", "16000M", "1.5T", "8Gc", "x", "")] == [
        65536, 16000, 16000, 1572864, 8192, None, None,
    ]  # fmt: skip


def test_what_a_script_asks_for(tmp_path: Path) -> None:
    script = tmp_path / "s"
    script.write_text(
        "#!/bin/bash\n"
        "#SBATCH --nodes=2-4   # why\n"
        "#SBATCH -p low -t 1-02:00\n"
        "#SBATCH --comment='a # b'\n"
        "\n# a comment\n##SBATCH --nodes=7\n# #SBATCH --nodes=8\n#SBATCH --ntasks-per-node 4\n#SBATCH --cpus-per-task=3\n#SBATCH --gpus-per-node=a100:4\n"
        "#SBATCH --mem=64G\n#SBATCH --exclusive\n"
        "echo begin\n#SBATCH --nodes=9\n"
    )
    asked = asked_by(script)
    assert (asked.nodes, asked.gpus, asked.cpus, asked.memory_mb, asked.time_min) == (2, 4, 12, 65536, 26 * 60)
    assert (asked.text("partition"), asked.text("comment"), asked.text("account")) == ("low", "a # b", "")
    above = asked_by(script, ["-N3", "--partition", "high", "--time=90:30", "-Aus"])
    assert (above.nodes, above.text("partition"), above.time_min, above.text("account")) == (3, "high", 91, "us")
    assert asked_by(tmp_path / "nothing").nodes == 1
    assert asked_by(None, ["--gres=gpu:2,nvme:1"]).gpus == 2
    assert asked_by(None, ["--gpus-per-task=2", "--ntasks-per-node=4"]).gpus == 8
    assert asked_by(None, ["--time=30"]).time_min == 30
