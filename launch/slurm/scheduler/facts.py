"""What the scheduler tells of partitions and nodes, from `scontrol -o show …`: one record a line, `Key=Value` pairs.

Only `Key=Value` text is read, never JSON: its keys have changed with every second release, the text hardly ever. A key
that a release lacks takes its default; a key that is new is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from launch.slurm.scheduler.hostlist import expand
from launch.slurm.scheduler.job_state import seconds_of

_KEY = re.compile(r"(?:^|\s)([A-Z][A-Za-z0-9_/:.-]*)=")
_UNIT_MB = {"": 1.0, "K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "P": 1024.0**3}
# States and flags in which a node takes no job now, though it may come back by itself or by its administrator.
_AWAY = frozenset(
    re.findall(
        r"\w+",
        "DOWN DRAIN DRAINED DRAINING ERROR FAIL FAILING FUTURE INVALID INVALID_REG MAINT NOT_RESPONDING NO_RESPOND "
        "POWERING_DOWN REBOOT REBOOT_ISSUED RESERVED UNKNOWN",
    )
)


@dataclass(frozen=True)
class Partition:
    """A queue of the cluster.

    Attributes:
        nodes: names; max_nodes of one job, max_time_min and default_time_min: None where there is no limit.
        grace_s: seconds between the warning and the end of a job that is preempted.
        preempt_mode: OFF, REQUEUE, CANCEL, SUSPEND, or empty where the cluster's holds.
        allow_accounts, allow_groups, allow_qos: those that may use it; empty: everyone.
    """

    name: str
    default: bool = False
    state: str = "UP"
    nodes: tuple[str, ...] = ()
    max_nodes: int | None = None
    max_time_min: int | None = None
    default_time_min: int | None = None
    grace_s: int = 0
    preempt_mode: str = ""
    priority_tier: int = 1
    allow_accounts: tuple[str, ...] = ()
    allow_groups: tuple[str, ...] = ()
    allow_qos: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeFacts:
    """A node of the cluster.

    Attributes:
        state: its base state (IDLE, MIXED, ALLOCATED, DOWN, …). flags: what stands beside it (DRAIN, NOT_RESPONDING).
        memory_mb: what jobs may use. gpus, gpu_type: its generic resource `gpu`; gpu_type is empty where it is unnamed.
        reason: an administrator's or the controller's words for a node that is away.
    """

    name: str
    state: str = "UNKNOWN"
    flags: tuple[str, ...] = ()
    cpus: int = 0
    memory_mb: int = 0
    gpus: int = 0
    gpu_type: str = ""
    features: tuple[str, ...] = ()
    partitions: tuple[str, ...] = ()
    reason: str = ""

    @property
    def usable(self) -> bool:
        """Whether it takes jobs now (it may be busy)."""
        return not _AWAY & {self.state, *self.flags}


def pairs_in(line: str) -> dict[str, str]:
    """The `Key=Value` pairs of one record. A value may hold spaces; where a key comes twice the first one holds."""
    found: dict[str, str] = {}
    keys = list(_KEY.finditer(line))
    for key, following in zip(keys, [*keys[1:], None], strict=True):
        found.setdefault(key[1], line[key.end() : following.start() if following else len(line)].strip())
    return found


def records_in(text: str) -> list[dict[str, str]]:
    """The records of `scontrol -o show …`, one a line."""
    return [pairs for line in text.splitlines() if (pairs := pairs_in(line))]


def config_in(text: str) -> dict[str, str]:
    """`scontrol show config`: `Name = value` lines; `(null)` is empty."""
    found = {}
    for line in text.splitlines():
        name, sign, value = line.partition("=")
        if sign and name.strip() and not name.startswith(" "):
            found[name.strip()] = "" if value.strip() == "(null)" else value.strip()
    return found


def partition_in(pairs: Mapping[str, str]) -> Partition:
    """A partition from its record."""

    def minutes(key: str) -> int | None:
        seconds = seconds_of(pairs.get(key, ""))
        return None if seconds is None else seconds // 60

    return Partition(
        name=pairs["PartitionName"],
        default=pairs.get("Default") == "YES",
        state=pairs.get("State", "UP"),
        nodes=() if pairs.get("Nodes", "(null)") == "(null)" else tuple(expand(pairs["Nodes"])),
        max_nodes=_number(pairs.get("MaxNodes")),
        max_time_min=minutes("MaxTime"),
        default_time_min=minutes("DefaultTime"),
        grace_s=seconds_of(pairs.get("GraceTime", "0")) or 0,
        preempt_mode=pairs.get("PreemptMode", ""),
        priority_tier=_number(pairs.get("PriorityTier")) or 1,
        allow_accounts=_some(pairs.get("AllowAccounts")),
        allow_groups=_some(pairs.get("AllowGroups")),
        allow_qos=_some(pairs.get("AllowQos")),
    )


def node_in(pairs: Mapping[str, str]) -> NodeFacts:
    """A node from its record."""
    # IDLE+DRAIN, DOWN*+DRAIN, MIXED+CLOUD: the base state, then flags; in a short form signs stand for flags
    base, *flags = re.split(r"[+]", pairs.get("State", "UNKNOWN").upper())
    if base.endswith("*"):
        flags.append("NOT_RESPONDING")
    gpus, gpu_type = gpus_in(pairs.get("Gres", ""))
    cpus = _number(pairs.get("CPUEfctv")) or _number(pairs.get("CPUTot")) or 0  # before 22.05 there is no CPUEfctv
    return NodeFacts(
        name=pairs["NodeName"],
        state=re.sub(r"[^A-Z_]", "", base),
        flags=tuple(re.sub(r"[^A-Z_]", "", flag) for flag in flags),
        cpus=cpus,
        memory_mb=max(0, (_number(pairs.get("RealMemory")) or 0) - (_number(pairs.get("MemSpecLimit")) or 0)),
        gpus=gpus,
        gpu_type=gpu_type,
        features=_some(pairs.get("ActiveFeatures") or pairs.get("AvailableFeatures")),
        partitions=_some(pairs.get("Partitions")),
        reason="" if pairs.get("Reason", "(null)") == "(null)" else pairs["Reason"],
    )


def gpus_in(gres: str) -> tuple[int, str]:
    """(number, type) of `gpu:a100:4(S:0-1),shard:8`; several types add up, and the type is that of the most."""
    found: dict[str, int] = {}
    for item in re.split(r",(?![^()]*\))", gres):
        parts = re.sub(r"\(.*?\)", "", item.strip()).split(":")
        if parts[0] != "gpu":
            continue
        number = int(parts[-1]) if len(parts) > 1 and parts[-1].isdigit() else 1
        kind = parts[1] if len(parts) > 2 or (len(parts) == 2 and not parts[1].isdigit()) else ""
        found[kind] = found.get(kind, 0) + number
    return (sum(found.values()), max(found, key=lambda kind: found[kind])) if found else (0, "")


def memory_mb(text: str) -> int | None:
    """Mebibytes of `64G`, `16000`, `16000M`; None where it is none."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)[cn]?B?", text.strip(), flags=re.IGNORECASE)
    return int(float(match[1]) * _UNIT_MB[match[2].upper()]) if match else None


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None


def _some(text: str | None) -> tuple[str, ...]:
    if text is None or text in ("", "ALL", "(null)", "N/A"):
        return ()
    return tuple(part for part in text.split(",") if part)


def names(items: Iterable[str], most: int = 12) -> str:
    """`a, b, c and 4 more`, for one line of an error; `none` where there are none."""
    every = list(dict.fromkeys(items))
    shown = ", ".join(every[:most]) or "none"
    return f"{shown} and {len(every) - most} more" if len(every) > most else shown
