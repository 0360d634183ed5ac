"""What becomes of each job of a run that is submitted again: kept as it is, new, or new in place of another.

Invariant: a job is kept where submitting it anew would change nothing but its place in the queue; and a new one waits
until those that it replaces have ended.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from launch.slurm.submitting.cancel import recent_ids
from launch.slurm.submitting.jobs import Job

if TYPE_CHECKING:
    from launch.slurm.scheduler.commands import JobState, Slurm
    from launch.slurm.submitting.submit import Prepared

_PASSED_OVER = re.compile(r"#SBATCH --exclude=|\s+--set slurm\.(nodes|tasks_per_node|time_min)=")


@dataclass
class Decision:
    """What becomes of one job of a chain.

    Attributes:
        keep: its id, where it is in the queue as it should be; then `state` says how.
        ended: jobs that must have ended before the new one begins; `waiting` and `running` are those of them to
            cancel and to ask to save.
    """

    job: Job
    keep: str | None = None
    state: str = ""
    waiting: list[str] = field(default_factory=list)
    running: list[str] = field(default_factory=list)
    id: str = ""

    @property
    def ended(self) -> list[str]:
        """Both."""
        return [*self.waiting, *self.running]


def decide(prepared: Prepared, slurm: Slurm | None) -> list[Decision]:
    """What becomes of each job, given what is in the queue. Without a scheduler all are new.

    Raises:
        UserError: jobs of this run are in the queue with other settings; what a job needs is neither built nor there.
    """
    entries = prepared.former.get("jobs", {})
    states = slurm.jobs(sorted({id for e in entries.values() for id in recent_ids(e)})) if slurm and entries else {}
    found: dict[str, Decision] = {}
    for job in prepared.jobs:
        entry = entries.get(job.name, {})
        active = {id: states[id] for id in recent_ids(entry) if id in states and states[id].active}
        decision = Decision(job)
        current = active.get(str(entry.get("id")))
        renewed = any(found[name].keep is None for name in job.after if name in found)
        if job.name not in prepared.texts or (current and _stays(prepared, job, entry, current, renewed)):
            if current:
                decision.keep, decision.state = current.id, current.state
        else:
            decision.waiting = [id for id, state in active.items() if state.waiting]
            decision.running = [id for id, state in active.items() if not state.waiting]
        found[job.name] = decision
    _check_settings(prepared, found.values(), states)
    if len(prepared.texts) < len(prepared.jobs):
        found = _chosen(prepared, found)
    return list(found.values())


def _stays(prepared: Prepared, job: Job, entry: Mapping[str, Any], state: JobState, renewed: bool) -> bool:
    """Whether a job that is in the queue is as it should be."""
    if not state.waiting:  # a running one goes on, but on other nodes it must be another job
        return not job.trains or all(entry.get(key) == value for key, value in _moved(job).items())
    if renewed:  # it waits for a job that is replaced
        return False
    script = prepared.order.run / str(entry.get("script", ""))
    return script.is_file() and _essence(script.read_text()) == _essence(prepared.texts[job.name])


def _moved(job: Job) -> dict[str, Any]:
    return {"nodes": job.shape.nodes, "tasks_per_node": job.shape.tasks_per_node, "partition": job.shape.partition}


def _essence(text: str) -> list[str]:
    """A script without its comments and without what does not make another job of it: the nodes to avoid, and the shape
    of training jobs among the arguments (their own directives say it)."""
    lines = [line for line in text.splitlines() if line.startswith("#SBATCH") or not line.startswith("#")]
    return [line.rstrip(" \\") for line in lines if line and not _PASSED_OVER.match(line)]


def _check_settings(prepared: Prepared, decisions: Iterable[Decision], states: Mapping[str, JobState]) -> None:
    from launch.slurm.submitting.order import former_order

    if not any(state.active for state in states.values()):
        return
    order = prepared.order
    former, now = former_order(order.run).settings(), order.settings()
    if former != now:
        differ = sorted({*former[1]} ^ {*now[1]}) or [f"{a} -> {b}" for a, b in zip(former, now, strict=True) if a != b]
        raise UserError(
            f"run {order.run}", f"has jobs in the queue with other settings ({'; '.join(map(str, differ[:3]))})",
            f"rumpun cancel {order.run} first, or give this one another name with --run",
        )  # fmt: skip


def _chosen(prepared: Prepared, found: dict[str, Decision]) -> dict[str, Decision]:
    """The decisions of --only: this job, after what of its needs is in the queue."""
    for name in prepared.texts:
        for need in found[name].job.after:
            if found[need].keep is None:
                raise UserError(
                    f"--only {name}", f"needs {need}, which is neither built nor in the queue",
                    "submit that first, or leave --only away",
                )  # fmt: skip
    return {name: d for name, d in found.items() if name in prepared.texts or d.keep}


def options_of(decision: Decision, ids: Mapping[str, str], *, hold: bool) -> list[str]:
    """The options of a submission: for whom it waits.

    Args:
        ids: of the jobs that are submitted or kept, by name. hold: whether a job that waits for none shall be held.
    """
    needs = [ids[name] for name in decision.job.after if name in ids]
    waits = [f"afterok:{':'.join(needs)}"] if needs else []
    waits += [f"afterany:{':'.join(decision.ended)}"] if decision.ended else []
    found = [f"--dependency={','.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else []
    return [*found, *(["--hold"] if hold and not needs else [])]
