"""What a job asks for, read from its script and from options: for checks and messages, never for submitting.

The command line wins over `#SBATCH` lines, as it does for the scheduler.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.slurm.scheduler.facts import NodeFacts, Partition, gpus_in, memory_mb
from launch.slurm.scheduler.hostlist import expand
from launch.slurm.scheduler.job_state import seconds_of

_SHORT = {"-p": "partition", "-A": "account", "-q": "qos", "-C": "constraint", "-N": "nodes", "-t": "time"}
_SHORT |= {"-c": "cpus-per-task", "-n": "ntasks", "-w": "nodelist", "-x": "exclude", "-J": "job-name", "-a": "array"}
_SHORT |= {"-G": "gpus", "-d": "dependency"}


@dataclass(frozen=True)
class Asked:
    """What matters of a job's options; the text of the rest stays in `options`.

    Attributes:
        nodes: the least number of nodes. gpus, cpus, memory_mb: on each node; 0 or None where nothing was asked.
        time_min: None where the partition's default holds.
    """

    options: dict[str, str]

    def text(self, name: str) -> str:
        """The value of an option, empty where it is not given."""
        return self.options.get(name, "")

    @property
    def nodes(self) -> int:
        """At least so many nodes."""
        return _leading(self.text("nodes").partition("-")[0]) or 1

    @property
    def gpus(self) -> int:
        """GPUs on each node."""
        for name in ("gpus-per-node", "gres"):
            if text := self.text(name):
                listed = text if name == "gres" else ",".join(f"gpu:{part}" for part in text.split(","))
                return gpus_in(listed)[0]
        tasks, each = _leading(self.text("ntasks-per-node")) or 1, gpus_in(f"gpu:{self.text('gpus-per-task') or 0}")[0]
        return tasks * each

    @property
    def cpus(self) -> int:
        """Cores on each node."""
        return (_leading(self.text("ntasks-per-node")) or 1) * (_leading(self.text("cpus-per-task")) or 1)

    @property
    def memory_mb(self) -> int | None:
        """Host memory on each node."""
        return memory_mb(self.text("mem"))

    @property
    def time_min(self) -> int | None:
        """The time limit."""
        text = self.text("time")
        if not text:
            return None
        if text.isdigit():
            return int(text)  # a bare number is minutes here, and here only
        seconds = seconds_of(text)
        return None if seconds is None else -(-seconds // 60)


def asked_by(script: Path | None, options: Sequence[str] = ()) -> Asked:
    """What a script and the options before it ask for. A script that cannot be read asks for nothing."""
    lines: list[str] = []
    if script is not None:
        with suppress(OSError):
            lines = script.read_text(encoding="utf-8", errors="replace").splitlines()
    words: list[str] = []
    for line in lines:
        if line.startswith("#SBATCH"):
            with suppress(ValueError):  # an open quote: the scheduler will say so
                words += shlex.split(line.removeprefix("#SBATCH"), comments=True)
        elif line.strip() and not line.startswith("#"):
            break  # directives after the first command do not count
    return Asked({**_options(words), **_options(options)})


def _options(words: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.removeprefix("--").partition("=")
            found[name] = value
        elif word[:2] in _SHORT:
            name = _SHORT[word[:2]]
            found[name] = word[2:].removeprefix("=")
        elif name and not found[name]:
            found[name] = word
    return found


def _leading(text: str) -> int:
    digits = text[: len(text) - len(text.lstrip("0123456789"))]
    return int(digits) if digits else 0


def lacking(asked: Asked, partition: Partition, nodes: Sequence[NodeFacts]) -> str:
    """Why this job could never run in this partition, as a clause; empty where it could, be it after a repair.

    Args:
        nodes: all nodes of the cluster; those of other partitions are passed over.
    """
    members = [node for node in nodes if node.name in set(partition.nodes)]
    here = _wanted(asked, members)
    if asked.time_min and partition.max_time_min and asked.time_min > partition.max_time_min:
        return f"{asked.time_min} minutes are more than its limit of {partition.max_time_min}"
    if partition.max_nodes is not None and asked.nodes > partition.max_nodes:
        return f"{asked.nodes} nodes are more than the {partition.max_nodes} that one job may have"
    if asked.nodes > len(members):
        return f"{asked.nodes} nodes are more than its {len(members)}"
    if asked.nodes > len(here):
        why = " and ".join(f"{name} = {asked.text(name)!r}" for name in ("constraint", "exclude") if asked.text(name))
        return f"{asked.nodes} nodes are more than the {len(here)} of its {len(members)} that {why} leaves"
    for what, wanted, most in (
        ("GPUs", asked.gpus, max(node.gpus for node in here)),
        ("cores", asked.cpus, max(node.cpus for node in here)),
        ("MB of memory", asked.memory_mb or 0, max(node.memory_mb for node in here)),
    ):
        if wanted > most:
            return f"{wanted} {what} a node are more than the {most} that its nodes have"
    fitting = [
        n for n in here if n.gpus >= asked.gpus and n.cpus >= asked.cpus and n.memory_mb >= (asked.memory_mb or 0)
    ]
    if asked.nodes > len(fitting):
        return f"only {len(fitting)} of its {len(members)} nodes have that much, and {asked.nodes} were asked for"
    return ""


def away(asked: Asked, partition: Partition, nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    """Nodes of the partition that take no jobs now, where those that do are too few for this job; else none."""
    here = _wanted(asked, [node for node in nodes if node.name in set(partition.nodes)])
    out = [node for node in here if not node.usable]
    return out if len(here) - len(out) < asked.nodes else []


def _wanted(asked: Asked, nodes: Sequence[NodeFacts]) -> list[NodeFacts]:
    """Those that are not excluded and have the features; of constraints only `a&b` is understood, others let all by."""
    excluded, text = set(expand(asked.text("exclude"))), asked.text("constraint")
    features = set(text.split("&")) if re.fullmatch(r"[\w.&-]+", text) else set()
    return [node for node in nodes if node.name not in excluded and features <= set(node.features)]
