"""SLURM's commands as small programs that stand first on PATH: a real shell is crossed, and what crossed it is kept."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

COMMANDS = ("sbatch", "srun", "squeue", "scontrol", "scancel", "sacct", "sacctmgr", "sinfo")

# As SLURM 22.05 printed them on a cluster of four nodes, shortened where nothing is read.
PARTITIONS = """\
PartitionName=normal AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=YES QoS=N/A DefaultTime=00:10:00 DisableRootJobs=NO GraceTime=0 Hidden=NO MaxNodes=UNLIMITED MaxTime=01:00:00 MinNodes=0 Nodes=node[1-4] PriorityTier=5 PreemptMode=OFF State=UP TotalCPUs=32 TotalNodes=4
PartitionName=low AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL AllocNodes=ALL Default=NO QoS=N/A DefaultTime=00:10:00 GraceTime=20 Hidden=NO MaxNodes=2 MaxTime=2-00:00:00 MinNodes=0 Nodes=node[1-4] PriorityTier=1 PreemptMode=REQUEUE State=UP TotalCPUs=32 TotalNodes=4
PartitionName=closed AllowGroups=ALL AllowAccounts=rich,famous AllowQos=ALL Default=NO GraceTime=0 MaxNodes=UNLIMITED MaxTime=UNLIMITED Nodes=node[1-4] PreemptMode=OFF State=UP
"""
NODES = """\
NodeName=node1 Arch=x86_64 CoresPerSocket=8  CPUAlloc=0 CPUEfctv=8 CPUTot=8 CPULoad=0.29 AvailableFeatures=rack1,fake ActiveFeatures=rack1,fake Gres=gpu:a100:2(S:0-1) NodeAddr=10.73.0.11 OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=16000 AllocMem=0 State=IDLE ThreadsPerCore=1 TmpDisk=0 Partitions=normal,low,high CfgTRES=cpu=8,mem=16000M,gres/gpu=2 AllocTRES= CapWatts=n/a
NodeName=node2 CPUEfctv=8 CPUTot=8 ActiveFeatures=rack1,fake Gres=gpu:a100:2(S:0-1) RealMemory=16000 State=MIXED ThreadsPerCore=1 Partitions=normal,low,high
NodeName=node3 CPUEfctv=8 CPUTot=8 ActiveFeatures=rack2,fake Gres=gpu:a100:2(S:0-1) RealMemory=16000 State=IDLE ThreadsPerCore=1 Partitions=normal,low,high
NodeName=node4 CPUEfctv=8 CPUTot=8 ActiveFeatures=rack2,fake Gres=gpu:a100:2(S:0-1) RealMemory=16000 State=IDLE ThreadsPerCore=1 Partitions=normal,low,high
"""
CONFIG = """\
Configuration data as of 2026-11-22T20:10:37
AccountingStorageType   = accounting_storage/slurmdbd
AuthInfo                = cred_expire=5
ClusterName             = lab
JobRequeue              = 1
KillWait                = 5 sec
MaxArraySize            = 1001
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SchedulerParameters     = sched_interval=2,bf_continue
SlurmctldParameters     = (null)
SLURM_VERSION           = 22.05.8

Slurmctld(primary) at ctl is UP
"""


class FakeSlurm:
    """Programs in `folder`, first on PATH.

    What a program answers is told with `says`; what it was given is read with `given` and `environment`.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, commands: tuple[str, ...] = COMMANDS) -> None:
        self.folder, self.monkeypatch = folder, monkeypatch
        folder.mkdir(parents=True, exist_ok=True)
        for name in commands:
            here = shlex.quote(str(folder / name))
            program = folder / name
            program.write_text(
                f"#!/bin/sh\nn=$(cat {here}.count 2>/dev/null || echo 0); n=$((n + 1)); echo $n >{here}.count\n"
                f"printf '%s\\n' \"$@\" >{here}.$n.given; env >{here}.$n.env\n"
                f'for answer in {here}.$n.answer {here}."$3".answer {here}.answer; do\n'
                '  if [ -e "$answer" ]; then . "$answer"; exit 0; fi\ndone\n'
            )
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")

    def says(self, command: str, out: str = "", *, err: str = "", code: int = 0, call: int | str = "") -> None:
        """From now on `command` prints this; `call`: only its call of that number, or one whose third word it is."""
        name = f"{command}.{call}.answer" if call else f"{command}.answer"
        self.does(name, f"printf %s {shlex.quote(out)}; printf %s {shlex.quote(err)} >&2; exit {code}")

    def does(self, name: str, shell: str) -> None:
        (self.folder / name).write_text(shell + "\n")

    def cluster(self) -> FakeSlurm:
        """A cluster of four nodes that can be asked about itself."""
        self.says("scontrol", PARTITIONS, call="partition")
        self.says("scontrol", NODES, call="node")
        self.does("scontrol.config.answer", "")
        self.does(
            "scontrol.answer",
            f"if [ \"$2\" = config ]; then printf %s {shlex.quote(CONFIG)}; exit 0; fi; echo 'unknown' >&2; exit 1",
        )
        self.does(
            "sacctmgr.answer",
            'case "$*" in *format=defaultaccount*) echo lab ;; *format=account*) echo lab; echo nlp ;; '
            "*format=qos*) echo normal,long ;; esac; exit 0",
        )
        return self

    def calls(self, command: str) -> int:
        """How often a command was started."""
        count = self.folder / f"{command}.count"
        return int(count.read_text()) if count.exists() else 0

    def given(self, command: str, call: int | None = None) -> list[str]:
        """The words that a call was given; the last call where none is named."""
        return (self.folder / f"{command}.{call or self.calls(command)}.given").read_text().split("\n")[:-1]

    def environment(self, command: str) -> dict[str, str]:
        """The environment of the last call."""
        lines = (self.folder / f"{command}.{self.calls(command)}.env").read_text().splitlines()
        return dict(line.partition("=")[::2] for line in lines)


class Clock:
    """A clock that only moves when it is told to, or slept on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds
