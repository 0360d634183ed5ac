"""From the reports of all nodes to what is wrong with which: sick, slow, or only worth a note. Pure functions.

Sick is what would break or falsify a run: other code, other versions, a GPU too few or not ours alone, memory errors, a
folder that is not shared, a clock that is off. Slow is a node below a share of the median of all nodes. A note is what
a person would want to know and a run survives.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.slurm.health.preflight_gpu import HEAT, POWER_BRAKE, SOFT_HEAT

GB = 1e9
MIN_NOFILE = 1024  # a rank opens some hundred files and sockets
BUSY_SHARE = 0.25  # of a node's CPUs, kept busy by others: worth a note
USED_SHARE = 0.1  # of a GPU's memory, used before anything of ours runs: somebody is on it


@dataclass(frozen=True)
class PreflightNeeds:
    """What a run needs of every node.

    Attributes:
        gpus: GPUs a node; 0: none are looked for and torch is not imported.
        interface: the network interface of the cluster profile; None: whatever the host's name resolves to.
        disk_gb: free room in each folder, in GB.
        shm_gb: free room in /dev/shm for each rank, in GB: data loaders and NCCL want it.
        skew_s: how far a node's clock may be off; records of several nodes are put in one order by their times.
        scratch: a folder of each node's own that must be writable too.
        matrix: measure a matrix product.
        pairs: let pairs of nodes exchange bytes, and all-reduce where there are GPUs.
        reduce: "auto": NCCL where GPUs are asked for; "gloo"; "none".
        slow_below: a node is slow below this share of the median of the nodes.
    """

    gpus: int = 0
    interface: str | None = None
    disk_gb: float = 1.0
    shm_gb: float = 0.06
    skew_s: float = 5.0
    scratch: str | None = None
    matrix: bool = True
    pairs: bool = True
    reduce: str = "auto"
    slow_below: float = 0.7


@dataclass
class Verdict:
    """What was found wrong: node → reasons."""

    sick: dict[str, list[str]] = field(default_factory=dict)
    slow: dict[str, list[str]] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, node: str, why: str) -> None:
        """One more reason; `kind` is sick, slow or notes."""
        getattr(self, kind).setdefault(node, []).append(why)


def judge(
    reports: Mapping[str, Mapping[str, Any]],
    needs: PreflightNeeds,
    *,
    reference: Mapping[str, Any],
    verdict: Verdict,
    tasks: int = 1,
) -> None:
    """Add to the verdict what each report, and the reports beside each other, say.

    Args:
        reports: node → {"facts": …, "errors": …} as `launch/slurm/health/preflight_node.py` sends them.
        needs: what the run needs.
        reference: "versions", "code" (digest), "files", and "who" has them: what the nodes are compared with; "now" is
            a second digest that is as right.
        verdict: is added to.
        tasks: ranks a node; each needs room in /dev/shm.
    """
    for node, report in reports.items():
        facts = report["facts"]
        for part, why in report["errors"].items():
            verdict.add("sick", node, f"{part}: {why}")
        _same_code(node, facts, reference, verdict)
        _room(node, facts, needs.shm_gb * tasks, verdict)
        _folders(node, facts, needs, verdict)
        if "load" in facts and facts["load"]["busy"] > BUSY_SHARE * facts["load"]["cpus"]:
            load = facts["load"]
            programs = f" ({', '.join(load['top'])})" if load["top"] else ""
            verdict.add("notes", node, f"{load['busy']} of {load['cpus']} CPUs are busy with other work{programs}")
        if needs.gpus:
            _gpus(node, facts, needs, verdict)


def _same_code(node: str, facts: Mapping[str, Any], reference: Mapping[str, Any], verdict: Verdict) -> None:
    who = reference["who"]
    code = facts.get("code")
    if code and code["digest"] not in (reference["code"], reference.get("now")):
        differ = sorted(
            name
            for name in {*code.get("files", {}), *reference["files"]}
            if code.get("files", {}).get(name) != reference["files"].get(name)
        )
        which = f"; it differs in {', '.join(differ[:3])}" + (f" and {len(differ) - 3} more" if len(differ) > 3 else "")
        verdict.add(
            "sick", node, f"other code: {code['digest']} in {code['root']}, {reference['code']} on {who}{which}"
        )
    for name, version in facts.get("versions", {}).items():
        if version != reference["versions"].get(name):
            prefix = f" (environment {code['prefix']})" if code else ""
            verdict.add(
                "sick", node, f"other {name}: {version}{prefix}, {reference['versions'].get(name, 'none')} on {who}"
            )


def majority(reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The reference where the controller runs in another environment than the ranks: what most nodes have."""
    facts = [report["facts"] for report in reports.values()]
    digests = Counter(each["code"]["digest"] for each in facts if "code" in each)
    tables = Counter(tuple(sorted(each["versions"].items())) for each in facts if "versions" in each)
    return {
        "versions": dict(tables.most_common(1)[0][0]) if tables else {},
        "code": digests.most_common(1)[0][0] if digests else "",
        "files": {},
        "who": "most nodes",
    }


def _room(node: str, facts: Mapping[str, Any], shm_gb: float, verdict: Verdict) -> None:
    if memory := facts.get("memory"):
        free = memory["shm_free"]
        if free is None:
            verdict.add("sick", node, "no /dev/shm: mount a tmpfs there")
        elif free < shm_gb * GB:
            verdict.add("sick", node, f"/dev/shm has {free / GB:.2f} GB free, {shm_gb:.2g} GB are needed")
    if limits := facts.get("limits"):
        if limits["nofile"] is not None and limits["nofile"] < MIN_NOFILE:
            verdict.add("sick", node, f"only {limits['nofile']} open files are allowed: ulimit -n {MIN_NOFILE} or more")
        if limits["memlock"] is not None and memory and memory["infiniband"]:
            verdict.add("notes", node, "InfiniBand, but locked memory is limited: set memlock to unlimited")


def _folders(node: str, facts: Mapping[str, Any], needs: PreflightNeeds, verdict: Verdict) -> None:
    for part, found in facts.items():
        if not part.startswith("folder "):
            continue
        folder = part.removeprefix("folder ")
        if "error" in found:
            verdict.add("sick", node, f"{folder} {found['error']}")
        elif found["free"] < needs.disk_gb * GB:
            verdict.add("sick", node, f"{folder} has {found['free'] / GB:.1f} GB free, {needs.disk_gb:g} GB are needed")


def _gpus(node: str, facts: Mapping[str, Any], needs: PreflightNeeds, verdict: Verdict) -> None:
    seen = facts.get("visible_gpus")
    if seen is not None and seen < needs.gpus:
        verdict.add("sick", node, f"torch sees {seen} GPUs, {needs.gpus} were asked for")
    gpus = facts.get("gpus") or []
    if gpus and len(gpus) < needs.gpus:
        verdict.add("sick", node, f"nvidia-smi shows {len(gpus)} GPUs of this job, {needs.gpus} were asked for")
    for gpu in gpus:
        for kind, why in gpu_troubles(gpu):
            verdict.add(kind, node, f"GPU {gpu['index']}: {why}")
    if found := facts.get("xids"):
        verdict.add("sick", node, f"the kernel's log of the last day holds Xid {', '.join(map(str, found))}")


def gpu_troubles(gpu: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is wrong with one GPU, as (sick or notes, why)."""
    found = []
    if gpu["processes"]:
        found.append(("sick", f"others run on it: {', '.join(gpu['processes'][:3])}"))
    elif gpu["used_mb"] is not None and gpu["total_mb"] and gpu["used_mb"] > USED_SHARE * gpu["total_mb"]:
        found.append(("sick", f"{gpu['used_mb']} of {gpu['total_mb']} MB are used, by a program that is not shown"))
    if gpu["ecc"]:
        found.append(("sick", f"{gpu['ecc']} uncorrected memory errors since its driver was loaded"))
    if gpu["remap"]:
        found.append(("sick", f"row remapping {gpu['remap']}: it wants a reset"))
    reasons = gpu["reasons"] or 0
    if reasons & (HEAT | POWER_BRAKE):
        why = "heat" if reasons & HEAT else "the power brake"
        heat = f" at {gpu['celsius']} °C" if gpu["celsius"] is not None else ""
        found.append(("sick", f"its clocks are held down by {why}{heat}"))
    elif reasons & SOFT_HEAT:
        found.append(("notes", f"its driver lowers the clocks to cool it ({gpu['celsius']} °C)"))
    return found


def slow_nodes(reports: Mapping[str, Mapping[str, Any]], *, share: float) -> dict[str, str]:
    """Nodes whose matrix product is below `share` of the median of all devices of all nodes → why.

    Fewer than two nodes are not compared; neither are nodes whose GPUs are of another kind than most.
    """
    rates = {node: list(report["facts"].get("matrix") or []) for node, report in reports.items()}
    kinds = {node: tuple(sorted({gpu["name"] for gpu in reports[node]["facts"].get("gpus") or []})) for node in rates}
    if not any(rates.values()):
        return {}
    usual = Counter(kinds[node] for node in rates if rates[node]).most_common(1)[0][0]
    alike = {node: values for node, values in rates.items() if values and kinds[node] == usual}
    if len(alike) < 2:
        return {}
    median = statistics.median(rate for values in alike.values() for rate in values)
    found = {}
    for node, values in alike.items():
        worst = min(values)
        if worst < share * median:
            unit, which = ("TFLOP/s", f"GPU {values.index(worst)}: ") if usual else ("GFLOP/s a core", "")
            found[node] = f"{which}matrix product {worst:g} {unit}, {100 * worst / median:.0f} % of the nodes' median"
    return found


def skews(samples: Mapping[str, Sequence[tuple[float, float, float]]]) -> dict[str, tuple[float, float]]:
    """Node → (how far its clock is ahead, in s, and by how much that may be wrong, in s).

    Args:
        samples: node → (asked, answered, heard): the controller's clock, the node's, the controller's again. The node's
            time is compared with the middle of the quickest round trip, so that it is off by half of it at most.
    """
    found = {}
    for node, trips in samples.items():
        if trips:
            asked, answered, heard = min(trips, key=lambda trip: trip[2] - trip[0])
            found[node] = (round(answered - (asked + heard) / 2, 4), round((heard - asked) / 2, 4))
    return found
