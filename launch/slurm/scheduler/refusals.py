"""The scheduler's refusals as `UserError`: what was asked, which rule it broke, and what is valid there.

SLURM's texts are those of its table of errors, the same from 20.11 to 26.05 where they matter here. A text that is not
known keeps the scheduler's own words.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from data_prep.errors import UserError
from launch.slurm.scheduler.asked import Asked, away, lacking
from launch.slurm.scheduler.facts import NodeFacts, Partition, names

# What passes by itself: worth another try after a pause.
TRANSIENT = re.compile(
    r"unable to contact slurm controller|socket timed out|connection timed out|connection refused|rate limit exceeded"
    r"|slurm backup controller in standby|controller is in standby|communication connection failure|zero bytes were"
    r"|connection reset|temporarily unable to accept job",
    re.IGNORECASE,
)
# After these a submission may have arrived all the same: it is looked for before it is repeated.
UNSURE = re.compile(r"socket timed out|connection timed out|zero bytes were|receive failure|reset", re.IGNORECASE)
UNKNOWN_JOB = re.compile(r"invalid job id", re.IGNORECASE)
_OVER = re.compile(
    r"already (completing or completed|finished)|job is not (running|pending)|no active jobs match", re.IGNORECASE
)


class JobGone(UserError):
    """The scheduler does not know this job, or it has ended."""


class RequeueRefused(UserError):
    """This job may not be put back into the queue here; another route is needed."""


class Cluster(Protocol):
    """Where the valid values come from; asked only after a refusal."""

    def partitions(self) -> list[Partition]:
        """All partitions."""

    def accounts(self) -> list[str]:
        """Accounts of the user; empty where accounting is off."""

    def qos(self) -> list[str]:
        """Levels of service that the user may ask for; empty where accounting is off."""

    def node_facts(self) -> list[NodeFacts]:
        """All nodes."""

    def config(self) -> dict[str, str]:
        """The configuration of the cluster."""


def words_of(text: str) -> str:
    """The scheduler's own words, in one line without the names of its programs."""
    lines = [re.sub(r"^(?:/?[\w./-]+: )?(?:error|fatal): ", "", line.strip()) for line in text.splitlines()]
    lines = [re.sub(r"^allocation failure: |^Batch job submission failed: ", "", line) for line in lines if line]
    return "; ".join(list(dict.fromkeys(lines))[-3:])[:300] or "no reason given"


def submission_refused(text: str, asked: Asked, cluster: Cluster) -> UserError:
    """Why a job was not accepted, from what sbatch printed."""
    for pattern, explain in _SUBMISSION:
        if re.search(pattern, text, re.IGNORECASE):
            return explain(text, asked, cluster)
    return UserError("this job", f"was refused: {words_of(text)}", "see `sbatch --help`, or ask the administrators")


def job_refused(text: str, job: str, doing: str) -> UserError:
    """Why a job could not be changed, from what scontrol or scancel printed. doing: `requeue`, `cancel`, …"""
    if UNKNOWN_JOB.search(text):
        return JobGone(f"job {job}", "the scheduler does not know it (any more)", "see `rumpun status`")
    if _OVER.search(text):
        return JobGone(f"job {job}", "has already ended", "see `rumpun status`")
    if re.search(r"permission denied|invalid user id", text, re.IGNORECASE):
        rule = f"you may not {doing} it ({words_of(text)})"
        kind = RequeueRefused if doing == "requeue" else UserError
        return kind(f"job {job}", rule, "only its owner and the administrators may; see whose it is: squeue -j " + job)
    if doing == "requeue" and re.search(r"disabled|not supported|only batch jobs", text, re.IGNORECASE):
        return RequeueRefused(
            f"job {job}",
            f"may not be requeued ({words_of(text)}): --no-requeue, or JobRequeue=0 in slurm.conf",
            'set slurm.route = "successor" (or "array"), or ask for --requeue',
        )
    return UserError(f"job {job}", f"could not {doing} it: {words_of(text)}", "see `scontrol show job " + job + "`")


def _partition(text: str, asked: Asked, cluster: Cluster) -> UserError:
    known = cluster.partitions()
    name = asked.text("partition") or _first(r"invalid partition specified: (\S+)", text)
    if not name:
        fix = f"name one of: {_open(known)} (partition of the cluster profile)"
        return UserError("partition", "none was asked for, and this cluster has no default", fix)
    return UserError(f"partition = {name!r}", "is unknown here", f"one of: {_open(known)}")


def _closed(text: str, asked: Asked, cluster: Cluster) -> UserError:
    known = cluster.partitions()
    name = asked.text("partition") or next((p.name for p in known if p.default), "")
    here = next((p for p in known if p.name == name), None)
    who = ""
    if here:
        for label, allowed in (
            ("accounts", here.allow_accounts),
            ("groups", here.allow_groups),
            ("QOS", here.allow_qos),
        ):
            who += f"; it is for {label} {names(allowed)}" if allowed else ""
    rule = f"you may not use it ({words_of(text)}{who})"
    return UserError(f"partition = {name!r}", rule, f"ask for access, or take another one: {_open(known)}")


def _stopped(text: str, asked: Asked, cluster: Cluster) -> UserError:
    known = cluster.partitions()
    name = asked.text("partition") or next((p.name for p in known if p.default), "")
    rule = f"takes no jobs now ({words_of(text)})"
    states = names(f"{p.name} {p.state}" for p in known)
    return UserError(f"partition = {name!r}", rule, f"wait, or take another one: {states}")


def _account(_: str, asked: Asked, cluster: Cluster) -> UserError:
    mine, name, here = cluster.accounts(), asked.text("account"), _partition_of(asked, cluster)
    value = f"account = {name!r}" if name else "account"
    rule = "is not valid for you here" if name else "the one that you have by default is not valid here"
    if here and here.allow_accounts:
        rule += f" (partition {here.name} is for accounts {names(here.allow_accounts)})"
    if not mine:
        return UserError(value, rule, "accounting does not list yours: ask the administrators for its name")
    return UserError(value, rule, f"your accounts: {names(mine)}")


def _qos(_: str, asked: Asked, cluster: Cluster) -> UserError:
    mine, here = cluster.qos(), _partition_of(asked, cluster)
    rule = "is not valid for you here"
    if here and here.allow_qos:
        rule += f" (partition {here.name} is for QOS {names(here.allow_qos)})"
    fix = f"yours: {names(mine)}" if mine else "accounting does not list yours: ask the administrators for its name"
    return UserError(f"qos = {asked.text('qos') or 'the default'!r}", rule, fix)


def _feature(_: str, asked: Asked, cluster: Cluster) -> UserError:
    here = _nodes_of(asked, cluster)
    known = sorted({feature for node in here for feature in node.features})
    value = f"constraint = {asked.text('constraint')!r}"
    return UserError(value, "names a feature that no node has", f"features: {names(known)}")


def _gres(_: str, asked: Asked, cluster: Cluster) -> UserError:
    here = _nodes_of(asked, cluster)
    kinds = sorted({f"gpu:{n.gpu_type}:{n.gpus}" if n.gpu_type else f"gpu:{n.gpus}" for n in here if n.gpus})
    value = next((f"{n} = {asked.text(n)!r}" for n in ("gres", "gpus-per-node", "gpus") if asked.text(n)), "gres")
    return UserError(value, "is unknown here", f"its nodes have: {names(kinds)}")


def _time(text: str, asked: Asked, cluster: Cluster) -> UserError:
    here = _partition_of(asked, cluster)
    limit = here.max_time_min if here else None
    where = f"partition {here.name}" if here else "this partition"
    rule = f"{where} allows {limit} minutes" if limit else f"{words_of(text)}"
    fix = "see the limits of your account: sacctmgr show assoc"
    if limit:
        fix = f"set slurm.time_min (of jobs without ranks: slurm.stage_time_min) to {limit} or less"
    return UserError(f"time limit of {asked.time_min or 'the default'} minutes", rule, fix)


def _size(text: str, asked: Asked, cluster: Cluster) -> UserError:
    here = _partition_of(asked, cluster)
    if here is None:
        return UserError("this job", words_of(text), f"partitions: {_open(cluster.partitions())}")
    why = lacking(asked, here, cluster.node_facts())
    wanted = f"{asked.nodes} node{'s' * (asked.nodes > 1)}" + (f" with {asked.gpus} GPUs each" if asked.gpus else "")
    return UserError(
        f"{wanted} in partition {here.name}", why or words_of(text), f"ask for less; there: {has(here, cluster)}"
    )


def _array(_: str, asked: Asked, cluster: Cluster) -> UserError:
    most = cluster.config().get("MaxArraySize", "")
    fix = f"at most {int(most) - 1} here (MaxArraySize), counted from 0" if most.isdigit() else "ask for fewer tasks"
    return UserError(f"array = {asked.text('array')!r}", "is not a valid array of jobs", fix)


def _node(_: str, asked: Asked, cluster: Cluster) -> UserError:
    given = ", ".join(f"{name} = {asked.text(name)!r}" for name in ("nodelist", "exclude") if asked.text(name))
    return UserError(given or "a node", "is unknown here", f"nodes: {names(n.name for n in cluster.node_facts())}")


def _policy(text: str, asked: Asked, cluster: Cluster) -> UserError:
    rule = f"is more than your account or QOS allows ({words_of(text)})"
    fix = "see `sacctmgr show assoc user=$USER` and `sacctmgr show qos`: fewer nodes, less time, or fewer jobs at once"
    return UserError("this job", rule, fix)


def _dependency(text: str, asked: Asked, _: Cluster) -> UserError:
    rule = f"cannot be waited for ({words_of(text)})"
    return UserError(f"dependency = {asked.text('dependency')!r}", rule, "see `rumpun status`; then submit again")


def _option(text: str, _: Asked, __: Cluster) -> UserError:
    return UserError("this job", f"sbatch does not understand it: {words_of(text)}", "mend that line of the script")


def _script(text: str, _: Asked, __: Cluster) -> UserError:
    return UserError("the job script", words_of(text), "give a script that can be read and begins with #!/bin/bash")


def _disk(text: str, _: Asked, __: Cluster) -> UserError:
    rule = f"was not taken by the controller ({words_of(text)})"
    return UserError("the job script", rule, "its own disk is full or its limits are reached: tell the administrators")


_SUBMISSION: tuple[tuple[str, Callable[[str, Asked, Cluster], UserError]], ...] = (
    (r"invalid partition|no partition specified|default partition not set", _partition),
    (r"not permitted to use this partition|access/permission denied", _closed),
    (r"inactive or drain|partition in down state|submissions disabled", _stopped),
    (r"invalid account|invalid or unknown association", _account),
    (r"invalid qos", _qos),
    (r"invalid (preferred )?feature", _feature),
    (r"invalid (generic resource|gres)", _gres),
    (r"time limit (is invalid|specification required)", _time),
    (r"violates accounting|QOSMax|AssocMax|limit reached|usage threshold", _policy),
    (r"invalid job array|job array specification", _array),
    (r"invalid node name", _node),
    (r"node configuration is not available|partition configuration not available|node count specification", _size),
    (
        r"more processors requested|count specification invalid|memory required by task|nodes not in this partition",
        _size,
    ),
    (r"required node not available|requested nodes are busy", _size),
    (r"dependency problem|circular job dependency", _dependency),
    (r"i/o error writing script|maxjobcount|temporarily unavailable", _disk),
    (r"unable to open file|does not look like a batch script|script is empty|dos line breaks", _script),
    (r"unrecognized option|specification$|invalid --|ambiguous|requires an argument", _option),
)


def has(partition: Partition, cluster: Cluster) -> str:
    """`4 nodes with 8 cores, 2 GPUs (a100) each, at most 60 minutes`: what a partition offers."""
    nodes = [node for node in cluster.node_facts() if node.name in set(partition.nodes)]
    kinds: dict[str, int] = {}
    for node in nodes:
        gpus = f", {node.gpus} GPUs{f' ({node.gpu_type})' if node.gpu_type else ''}" if node.gpus else ""
        text = f"{node.cpus} cores{gpus}, {node.memory_mb} MB"
        kinds[text] = kinds.get(text, 0) + 1
    offers = " and ".join(f"{count} nodes with {text}" for text, count in kinds.items()) or "no nodes"
    limits = f", {partition.max_nodes} nodes a job" if partition.max_nodes is not None else ""
    limits += f", at most {partition.max_time_min} minutes" if partition.max_time_min else ""
    return offers + limits


def waits_for_repair(asked: Asked, cluster: Cluster) -> str:
    """Where a job fits its partition but too many nodes are away: what it waits for, as one line; else empty.

    A scheduler refuses a trial (`--test-only`) of such a job with the same words as one that is too large.
    """
    here = _partition_of(asked, cluster)
    nodes = cluster.node_facts()
    if here is None or lacking(asked, here, nodes):
        return ""
    out = away(asked, here, nodes)
    if not out:
        return ""
    why = names(f"{node.name} ({'+'.join([node.state, *node.flags]).lower()})" for node in out)
    return f"it will wait: {asked.nodes} nodes are asked for and too many of partition {here.name} are away: {why}"


def too_long(asked: Asked, cluster: Cluster, partition: str) -> UserError | None:
    """A time limit above the partition's, which many clusters accept and then never start."""
    here = next((p for p in cluster.partitions() if p.name == partition), None)
    if here and here.max_time_min and asked.time_min and asked.time_min > here.max_time_min:
        return _time("", asked, cluster)
    return None


def _partition_of(asked: Asked, cluster: Cluster) -> Partition | None:
    known, wanted = cluster.partitions(), asked.text("partition").split(",")[0]
    return next((p for p in known if (p.name == wanted if wanted else p.default)), None)


def _nodes_of(asked: Asked, cluster: Cluster) -> list[NodeFacts]:
    here, nodes = _partition_of(asked, cluster), cluster.node_facts()
    return [node for node in nodes if node.name in set(here.nodes)] if here else nodes


def _open(partitions: list[Partition]) -> str:
    return names(f"{p.name} (default)" if p.default else p.name for p in partitions)


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[1] if match else ""


def over(text: str) -> bool:
    """Whether a refusal says only that the job has ended."""
    return bool(_OVER.search(text))
