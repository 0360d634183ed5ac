"""Why a job waits, in plain words: what each of the scheduler's reasons means, and what one can do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from launch.slurm.telling.plain import plain


@dataclass(frozen=True)
class Reason:
    """A reason in words. `final`: it will not go away by waiting."""

    meaning: str
    advice: str
    final: bool = False


REASONS: dict[str, Reason] = {
    "None": Reason("the scheduler has not looked at it yet", "wait a moment"),
    "Priority": Reason(
        "other jobs come first",
        "wait; `rumpun history` shows how long it took before; fewer nodes or a shorter time_min fit into gaps",
    ),
    "Resources": Reason("it is next, and waits for nodes to become free", "wait; asking for fewer nodes starts sooner"),
    "Dependency": Reason("waits for another job of the chain", "nothing to do: it starts when that one has ended well"),
    "DependencyNeverSatisfied": Reason(
        "a job that it needs has failed or was cancelled, so it will never start",
        "mend that job, then `rumpun submit` again: finished stages are kept",
        final=True,
    ),
    "BeginTime": Reason(
        "may not start before a set time: after a requeue the scheduler holds a job back for a while", "wait"
    ),
    "Cleaning": Reason("the nodes of its last link are still being cleaned up", "wait"),
    "Prolog": Reason("its nodes are being prepared (prolog)", "wait"),
    "JobHeldUser": Reason("is held by its owner, or was requeued with a hold", "scontrol release {id}", final=True),
    "JobHeldAdmin": Reason(
        "is held by an administrator", "ask the administrator; only they can release it", final=True
    ),
    "JobHoldMaxRequeue": Reason(
        "was requeued too often (MaxBatchRequeue of the cluster), and is held", "scontrol release {id}", final=True
    ),
    "launch failed requeued held": Reason(
        "a node could not start it (prolog, home folder or user unknown there); it is held",
        "look at the node with the administrator, then scontrol release {id}",
        final=True,
    ),
    "ReqNodeNotAvail": Reason(
        "nodes that it needs are down, drained or reserved",
        "wait for maintenance to end (`sinfo -R` says why), or ask for fewer nodes",
    ),
    "NodeDown": Reason("a node that it needs is down", "wait, or ask for other nodes"),
    "Reservation": Reason("waits for its reservation to begin", "wait, or submit without the reservation"),
    "PartitionDown": Reason("its partition is down: jobs are queued, none starts", "wait, or choose another partition"),
    "PartitionInactive": Reason("its partition takes no jobs now", "choose another partition", final=True),
    "PartitionNodeLimit": Reason(
        "asks for more nodes than its partition has or allows", "submit again with fewer --nodes", final=True
    ),
    "PartitionTimeLimit": Reason(
        "asks for more time than its partition allows",
        "submit again with a lower slurm.time_min: training goes over several links",
        final=True,
    ),
    "BadConstraints": Reason("no node has what it asks for", "change the constraint of the profile", final=True),
    "InvalidAccount": Reason("its account does not exist", "set `account` in the profile", final=True),
    "InvalidQOS": Reason("its quality of service does not exist", "set `qos` in the profile", final=True),
    "Licenses": Reason("waits for a licence", "wait"),
    "JobArrayTaskLimit": Reason("waits for earlier jobs of its array", "nothing to do: they run one after another"),
    "SystemFailure": Reason("the scheduler or a node failed while it was started", "wait; it is tried again"),
    "NonZeroExitCode": Reason("ended with an error", "rumpun logs shows its end", final=True),
    "TimeLimit": Reason("was ended at its time limit", "rumpun history shows what was lost"),
    "FedJobLock": Reason("waits for another cluster of the federation", "wait"),
}

_WHAT = (
    ("wall", "time"), ("minutes", "processor time"), ("gres", "GPUs"), ("gpu", "GPUs"), ("cpu", "cores"),
    ("node", "nodes"), ("mem", "memory"), ("submit", "jobs"), ("job", "jobs"), ("billing", "billed units"),
)  # fmt: skip


def reason_of(reason: str) -> Reason | None:
    """What a reason means; None where there is nothing to say. Unknown ones are told as the scheduler gives them."""
    name = reason.strip().strip("()")
    if not name or name == "None":
        return None
    if name in REASONS:
        return REASONS[name]
    # ReqNodeNotAvail,_UnavailableNodes:node[3-4] and the like carry what they are about
    head, _, rest = re.sub(r"[_ ]+", " ", name).partition(",")
    if head in REASONS:
        about = plain(rest.strip(), 120)
        return Reason(REASONS[head].meaning + (f" ({about})" if about else ""), REASONS[head].advice)
    if name.replace("_", " ") in REASONS:
        return REASONS[name.replace("_", " ")]
    if "requeued held" in name.replace("_", " "):
        return REASONS["launch failed requeued held"]
    if re.match(r"(QOS|Assoc)|.*(Limit|PerUser|PerAccount)$", name):
        what = next((word for key, word in _WHAT if key in name.lower()), "resources")
        qos = name.startswith("QOS")
        whose, table = ("quality of service", "qos") if qos else ("account", "assoc")
        return Reason(
            f"would use more {what} than the limit of its {whose} allows ({plain(name)})",
            "wait until your other jobs end, ask for less, or ask the administrator: "
            f"`sacctmgr show {table}` lists the limits",
        )
    return Reason(f"the scheduler says {plain(name, 120)}", "see `man squeue`, JOB REASON CODES")


def waiting(reason: str, *, id: str, after: Sequence[str] = (), states: Mapping[str, str] | None = None) -> str:
    """One sentence on why a job waits.

    Args:
        after: jobs that it needs, by name. states: in words, what each of them is doing.
    """
    found = reason_of(reason)
    if found is None:
        return "waits; the scheduler has not said why yet"
    if reason.strip("()") == "Dependency" and after:
        doing = {name: (states or {}).get(name, "") for name in after}
        open_ones = [name for name in after if doing[name] != "done"] or after
        # that the other one waits too is to be seen in its own line
        said = [name if doing[name] in ("", "waits") else f"{name} ({doing[name]})" for name in open_ones]
        return f"waits for {' and '.join(said)}"
    return f"{found.meaning}. {_capital(found.advice.format(id=id))}"


def _capital(text: str) -> str:
    return text if text.startswith(("scontrol", "rumpun")) else text[:1].upper() + text[1:]
