"""A cluster's profile, filled from what the scheduler says of itself; each value with the line behind it."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.errors import UserError
from launch.slurm.clusters.profile import ClusterProfile
from launch.slurm.scheduler.call import user_name
from launch.slurm.scheduler.commands import Slurm
from launch.slurm.scheduler.facts import NodeFacts, Partition, names, records_in
from launch.slurm.scheduler.job_state import seconds_of

CONFIG = "scontrol show config"
NOTES = {
    "interface": "Network interface that ranks meet on. The scheduler does not know it. Those of a compute node: "
    "srun -N1 ip -br addr (InfiniBand: ib0; else the one whose address other nodes reach). Unset: they choose.",
    "modules": "Loaded with `module load` before anything runs, in this order. See what there is: module avail.",
    "environment": "Variables of every job, e.g. NCCL_IB_HCA. The scheduler does not know which the site recommends.",
}


@dataclass
class Learned:
    """What was found.

    Attributes:
        values: fields of a profile. facts: for each of them, and for what else matters, `command: line`.
        also: what is worth knowing beside the fields; its sources are among `facts`.
        notes: remarks in place of a field's meaning. warnings: what a user should mind, one line each.
    """

    values: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    also: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=lambda: dict(NOTES))
    warnings: list[str] = field(default_factory=list)

    @property
    def profile(self) -> ClusterProfile:
        """The profile, checked."""
        return ClusterProfile(**self.values, facts=self.facts)

    def put(self, key: str, value: Any, source: str, line: str) -> None:
        """A value and where it comes from; None leaves the value unset and keeps the fact."""
        if value is not None:
            self.values[key] = value
        self.facts[key] = f"{source}: {' '.join(line.split())}"


def learn(slurm: Slurm, name: str, *, partition: str | None = None) -> Learned:
    """Ask the scheduler about itself.

    Args:
        name: of the profile. partition: the one that training uses; None: the cluster's default.

    Raises:
        UserError: no such partition, or none is the default; the scheduler does not answer.
    """
    found = Learned({"name": name})
    here = _choose(slurm, partition)
    records = records_in(slurm.fact("scontrol", "-o", "show", "partition"))
    record = next(record for record in records if record.get("PartitionName") == here.name)
    source = f"scontrol show partition {here.name}"
    line = "Default=YES" if here.default else f"PartitionName={here.name}"
    found.put("partition", here.name, source, f"{line} State={here.state} Nodes={record.get('Nodes', '')}")
    if here.state != "UP":
        found.warnings.append(f"partition {here.name} takes no jobs now: State={here.state}")
    if here.max_nodes is not None:
        found.put("max_nodes", None, source, f"MaxNodes={here.max_nodes}")
        found.also["max_nodes"] = f"{here.max_nodes} a job"
    _account(slurm, here, found)
    kind = _nodes(slurm, here, found)
    _time(slurm, here, record, found)
    _preemption(slurm, here, record, found)
    _arrays(slurm, found)
    _container(found, slurm)
    offer = f"{len(kind)} nodes with {kind[0].cpus} cores" if kind else "no nodes"
    gpus = f" and {kind[0].gpus} GPUs ({kind[0].gpu_type or 'unnamed'})" if kind and kind[0].gpus else ""
    config = slurm.config()
    version = config.get("SLURM_VERSION", "unknown")
    cluster = config.get("ClusterName", name)
    found.put("about", f"{cluster}: {offer}{gpus}", CONFIG, f"ClusterName = {cluster}; SLURM_VERSION = {version}")
    return found


def _choose(slurm: Slurm, wanted: str | None) -> Partition:
    known = slurm.partitions()
    listed = names(f"{p.name} (default)" if p.default else p.name for p in known)
    if wanted is not None:
        if here := next((p for p in known if p.name == wanted), None):
            return here
        raise UserError(f"--partition {wanted}", "is unknown here", f"one of: {listed}")
    default = next((p for p in known if p.default), known[0] if len(known) == 1 else None)
    if default is None:
        raise UserError("--partition", "is needed: this cluster has no default one", f"one of: {listed}")
    return default


def _account(slurm: Slurm, here: Partition, found: Learned) -> None:
    user = user_name()
    mine = slurm.accounts()
    allowed = [account for account in mine if not here.allow_accounts or account in here.allow_accounts]
    if mine:
        source = f"sacctmgr show user {user} withassoc"
        found.put("account", allowed[0] if allowed else None, source, f"{', '.join(mine)}, the default one first")
        found.notes["account"] = (
            f"Account that is charged: one of {user}'s ({names(mine)}). Others who use this profile set their own, or "
            "leave it out: then their default holds."
        )
        if not allowed:
            found.warnings.append(
                f"partition {here.name} is for accounts {names(here.allow_accounts)}, and yours are {names(mine)}"
            )
    else:
        storage = slurm.config().get("AccountingStorageType", "")
        found.put("account", None, CONFIG, f"AccountingStorageType = {storage or '(null)'}; sacctmgr lists no account")
    if here.allow_qos:
        usable = [qos for qos in slurm.qos() if qos in here.allow_qos]
        if usable:
            found.put("qos", usable[0], f"scontrol show partition {here.name}", f"AllowQos={','.join(here.allow_qos)}")


def _nodes(slurm: Slurm, here: Partition, found: Learned) -> list[NodeFacts]:
    """Fill in what nodes have: those of the kind that offers the most GPUs in all, else the most cores."""
    every = slurm.node_facts()
    members = [node for node in every if node.name in set(here.nodes)]
    kinds: dict[tuple[int, str], list[NodeFacts]] = {}
    for node in members:
        kinds.setdefault((node.gpus, node.gpu_type), []).append(node)
    if not kinds:
        found.warnings.append(f"partition {here.name} has no nodes")
        return []
    kind = max(kinds.values(), key=lambda nodes: (sum(n.gpus for n in nodes), sum(n.cpus for n in nodes)))
    gpus, gpu_type = kind[0].gpus, kind[0].gpu_type
    lines = {record.get("NodeName"): record for record in records_in(slurm.fact("scontrol", "-o", "show", "node"))}

    def cite(key: str, value: Any, least: NodeFacts, *shown: str) -> None:
        record = lines[least.name]
        text = " ".join(f"{name}={record[name]}" for name in shown if name in record)
        same = sum(all(lines[n.name].get(s) == record.get(s) for s in shown) for n in members)
        found.put(key, value, f"scontrol show node {least.name}", f"{text} (so on {same} of {len(members)} nodes)")

    few_cpus, little = min(kind, key=lambda n: n.cpus), min(kind, key=lambda n: n.memory_mb)
    cite("gpus_per_node", gpus, kind[0], "Gres")
    if gpu_type:
        cite("gpu_type", gpu_type, kind[0], "Gres")
    cite("cpus_per_node", few_cpus.cpus or None, few_cpus, "CPUEfctv", "CPUTot", "ThreadsPerCore")
    threads = int(lines[few_cpus.name].get("ThreadsPerCore", "1") or 1)
    if threads > 1:
        found.warnings.append(
            f"cpus_per_node = {few_cpus.cpus} counts {threads} threads of each of {few_cpus.cpus // threads} cores: "
            "ranks that compute on CPUs want one core each"
        )
    cite("memory_gb", little.memory_mb // 1024 or None, little, "RealMemory", "MemSpecLimit")
    features = Counter(feature for node in members for feature in node.features)
    found.notes["constraint"] = (
        "Features that nodes must have, e.g. one rack or one kind; training wants equal nodes. Features here: "
        + (names(f"{name} ({count} nodes)" for name, count in features.most_common()) + ".")
    )
    if len(kinds) > 1:
        listed = names(f"{len(nodes)} with {n} {k or 'unnamed'} GPUs" for (n, k), nodes in kinds.items())
        found.warnings.append(f"partition {here.name} holds several kinds of nodes ({listed}); this profile is for one")
        others = [node for node in members if node not in kind]
        own = [f for f in kind[0].features if all(f in n.features for n in kind)]
        if only := [f for f in own if not any(f in n.features for n in others)]:
            cite("constraint", only[0], kind[0], "ActiveFeatures")
    without = [
        p.name
        for p in slurm.partitions()
        if p.nodes and p.name != here.name and not any(n.gpus for n in every if n.name in set(p.nodes))
    ]
    if gpus and without:
        found.notes["stage_partition"] = (
            f"Partition of jobs without ranks; unset: the same. Partitions without GPUs here: {names(without)}."
        )
    if away := [node for node in members if not node.usable]:
        text = names(f"{n.name} {'+'.join([n.state, *n.flags]).lower()} {n.reason}".strip() for n in away)
        found.warnings.append(f"{len(away)} of {len(members)} nodes of partition {here.name} take no jobs now: {text}")
    return kind


def _time(slurm: Slurm, here: Partition, record: dict[str, str], found: Learned) -> None:
    source = f"scontrol show partition {here.name}"
    found.put("max_time_min", here.max_time_min, source, f"MaxTime={record.get('MaxTime', '')}")
    of_user = next(iter(slurm.qos()), "")  # the default one
    limits = {qos: f"qos {qos}" for qos in (record.get("QoS", "N/A"), found.values.get("qos", of_user))}
    questions = [text for qos, text in limits.items() if qos not in ("", "N/A", "(null)")]
    if account := found.values.get("account"):
        questions.append(f"assoc user={user_name()} account={account}")
    for question in questions:  # the scheduler queues a job above these limits, and never starts it
        wall = _ask(slurm, question, "maxwall")
        minutes = (seconds_of(wall) or 0) // 60
        if minutes and minutes < found.values.get("max_time_min", minutes + 1):
            found.put("max_time_min", minutes, f"sacctmgr show {question} format=maxwall", f"MaxWall={wall}")


def _preemption(slurm: Slurm, here: Partition, record: dict[str, str], found: Learned) -> None:
    """Grace time, the warning, and by which route a stopped job goes on."""
    config = slurm.config()
    kind, default_mode = config.get("PreemptType", ""), config.get("PreemptMode", "")
    source, mode, grace = f"scontrol show partition {here.name}", here.preempt_mode or default_mode, here.grace_s
    line = f"GraceTime={record.get('GraceTime', '0')} PreemptMode={mode}"
    if kind.endswith("/qos"):
        qos = record.get("QoS", "N/A") if record.get("QoS", "N/A") != "N/A" else (slurm.qos() or ["normal"])[0]
        source = f"sacctmgr show qos {qos} format=gracetime,preemptmode"
        told = [*_ask(slurm, f"qos {qos}", "gracetime,preemptmode").split("|"), "", ""]
        grace, mode = seconds_of(told[0]) or 0, told[1] if told[1] not in ("", "cluster") else default_mode
        line = f"GraceTime={told[0]} PreemptMode={told[1]}"
    mode = mode.upper()
    preempted = not (kind in ("", "preempt/none", "(null)") or mode.startswith("OFF"))
    if preempted:
        found.put("grace_s", grace, source, line)
        _warning(config, grace, found)
    else:
        found.put("grace_s", None, CONFIG if kind.endswith("none") else source, f"PreemptType = {kind}; {line}")
        found.notes["grace_s"] = "Seconds between the warning and the end of a preempted job; jobs here never are."
    requeue = config.get("JobRequeue", "1")
    if requeue == "0":
        found.put("route", "successor", CONFIG, "JobRequeue = 0")
        found.warnings.append(
            "JobRequeue = 0: jobs are not requeued here unless they ask for it, so stopped ones go on in a new job; "
            'where the site allows `--requeue`, route = "requeue" keeps their place in the queue'
        )
    elif preempted and mode.startswith("CANCEL"):
        found.put("route", "successor", source, line)
        found.warnings.append(f"PreemptMode={mode}: preempted jobs are ended, not requeued: they go on in a new job")
    else:
        found.put("route", "requeue", CONFIG, f"JobRequeue = {requeue}; partition {here.name}: PreemptMode={mode}")
        wait = re.search(r"cred_expire=(\d+)", config.get("AuthInfo", ""))
        seconds = int(wait[1]) if wait else 120
        found.put("requeue_wait", None, CONFIG, f"AuthInfo = {config.get('AuthInfo') or '(null)'}")
        found.also["requeue_wait"] = f"{seconds} s"
        if seconds >= 60:
            found.warnings.append(f"a requeued job waits {seconds} s before it may start (cred_expire of AuthInfo)")


def _warning(config: dict[str, str], grace_s: int, found: Learned) -> None:
    """What a job hears before it is preempted."""
    options = {key: config.get(key, "") for key in ("PreemptParameters", "SlurmctldParameters")}
    sent = bool(re.search(r"(^|[,\s])(preempt_)?send_user_signal", ",".join(options.values())))
    line = "; ".join(f"{key} = {value or '(null)'}" for key, value in options.items() if key in config)
    found.put("preempt_signal", None, CONFIG, line or "neither PreemptParameters nor SlurmctldParameters is set")
    found.also["preempt_signal"] = "the job's own" if sent else "SIGTERM"
    if grace_s == 0:
        found.warnings.append("GraceTime=0: preemption kills without warning; what the last checkpoint lacks is lost")
    elif not sent:
        found.warnings.append(
            f"preemption does not send the job's own signal (send_user_signal is not set): SIGTERM, {grace_s} s before "
            "the end, is all that comes; rumpun saves at it"
        )


def _arrays(slurm: Slurm, found: Learned) -> None:
    config = slurm.config()
    size, limit = (
        config.get("MaxArraySize", ""),
        re.search(r"max_array_tasks=(\d+)", config.get("SchedulerParameters", "")),
    )
    most = int(size) - 1 if size.isdigit() else None  # the highest index
    line = f"MaxArraySize = {size}"
    if limit and (most is None or int(limit[1]) < most):
        most, line = int(limit[1]), f"SchedulerParameters = …{limit[0]}…"
    if most is not None and most < 1:
        found.warnings.append(f"{line}: arrays of jobs are switched off here; set fan_out = false in [slurm]")
        most = None
    found.put("max_array_tasks", most, CONFIG, line)


def _container(found: Learned, slurm: Slurm) -> None:
    """Pyxis shows as options of srun; Apptainer is a program on compute nodes, which cannot be seen from here."""
    has_pyxis = "--container-image" in slurm.fact("srun", "--help")
    found.notes["container"] = (
        "What jobs run in: `none` (this checkout's environment), `apptainer`, or `pyxis`. "
        f"srun --help {'lists' if has_pyxis else 'does not list'} --container-image: Pyxis is "
        f"{'there' if has_pyxis else 'not there'}. Apptainer: srun -N1 apptainer --version."
    )


def _ask(slurm: Slurm, question: str, fields: str) -> str:
    """Fields of a quality of service or an association, parted by `|`; empty where accounting is off."""
    if shutil.which("sacctmgr") is None:
        return ""
    try:
        text = slurm.fact("sacctmgr", "--noheader", "--parsable2", "show", *question.split(), f"format={fields}")
    except UserError:
        return ""
    return next(iter(text.splitlines()), "").strip()


def table(found: Learned) -> list[tuple[str, str, str]]:
    """(field, value, source) of all that was found, for showing."""
    shown: Sequence[str] = [*found.facts, *(key for key in found.values if key not in found.facts and key != "name")]
    return [(key, str(found.values.get(key, found.also.get(key, "-"))), found.facts.get(key, "")) for key in shown]
