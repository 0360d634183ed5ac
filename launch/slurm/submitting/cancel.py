"""`rumpun cancel`: the jobs of a run end, and none goes on by itself.

Invariant: that they shall not go on is written down before the first of them is told. Jobs that wait are taken out of
the queue first, those at the end of the chain before those at its beginning: none begins meanwhile. Ranks save.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from launch.slurm.chain import Chain
from launch.slurm.submitting.jobs import NAMES, following, kind_of

if TYPE_CHECKING:
    from launch.slurm.scheduler.commands import JobState, Slurm

CANCELLED = "cancelled"
_RECENT = 4


@dataclass(frozen=True)
class Ended:
    """What became of one job: its name, id, what it was doing, and what it was told."""

    name: str
    id: str
    was: str
    told: str


def chain_of(run: Path) -> dict[str, Any]:
    """The jobs of a run by name. Raises `UserError` where it is no run, or was never submitted."""
    if not run.is_dir():
        raise UserError(f"run {run}", "no such folder", "give the folder of a run, for example runs/demo")
    jobs = Chain(run).jobs().get("jobs")
    if not jobs:
        raise UserError(
            f"run {run}", "was never submitted as jobs", f"nothing is there to cancel; to submit: rumpun submit {run}"
        )
    return dict(jobs)


def cancel(run: Path, names: Sequence[str], slurm: Slurm, *, now: bool = False) -> list[Ended]:
    """End jobs of a run, and those that wait for them.

    Args:
        names: of the jobs; empty means all. now: ranks get what the cluster gives every cancelled job (KillWait, often
            30 s) instead of the time that their save takes.

    Returns:
        A line for each job that was in the queue, in the order of the chain; none where none was.

    Raises:
        UserError: no such job; the scheduler refuses.
    """
    entries = chain_of(run)
    chosen = following(kind_of(name).name for name in names) if names else set(entries)
    if names and not set(names) & set(entries):
        raise UserError(
            f"run {run}",
            f"has no job {', '.join(names)}",
            f"its jobs are {', '.join(n for n in NAMES if n in entries)}",
        )
    units = {name: recent_ids(entry) for name, entry in entries.items() if name in chosen}
    states = slurm.jobs([id for ids in units.values() for id in ids])
    active = {id: state for id, state in states.items() if state.active}
    if not active:
        return []
    chain = Chain(run)
    chain.stop(
        [n for name, ids in units.items() for id in ids if id in active for n in numbers_of(chain, name, id)], CANCELLED
    )
    order = sorted(units, key=lambda name: NAMES.index(name) if name in NAMES else len(NAMES))
    # of an array that runs, this takes the links that wait
    slurm.cancel([id for name in reversed(order) for id in reversed(units[name]) if id in active], pending_only=True)
    found = []
    for name in order:
        for id in units[name]:
            if id not in active:
                continue
            state, trains = active[id], bool(entries[name].get("trains", kind_of(name).trains))
            if state.waiting:
                told = "taken out of the queue"
            elif trains and not now and state.state != "COMPLETING":
                slurm.cancel([id], signal="USR1")
                told = "asked to save; it ends when that is done"
            else:
                slurm.cancel([id])
                told = "ended at once" if not trains else "ended: it may save for as long as the cluster lets it"
            found.append(Ended(name, id, _doing(run, name, state), told))
    return found


def ids_of(entry: Mapping[str, Any]) -> list[str]:
    """Every id that a job of a chain has had, the present one last."""
    return list(dict.fromkeys(str(id) for id in (*entry.get("former", ()), entry.get("id")) if id))


def recent_ids(entry: Mapping[str, Any]) -> list[str]:
    """Its id, and those before it that may still be saving."""
    return ids_of(entry)[-_RECENT:]


def numbers_of(chain: Chain, name: str, id: str) -> list[str]:
    """Under which ids a job may look up whether it shall go on: its own, and that of its link that began last, which
    has a number of its own in an array."""
    begun = [str(event["job"]) for event in chain.events(name) if event["event"] == "begin"]
    return list(dict.fromkeys([id, *begun[-1:]]))


def _doing(run: Path, name: str, state: JobState) -> str:
    """What a job was doing, in words."""
    if state.waiting:
        return f"waiting ({state.reason})" if state.reason else "waiting"
    where = f" on {', '.join(state.nodes[:4])}{' …' if len(state.nodes) > 4 else ''}" if state.nodes else ""
    # a link of an array has a number of its own
    since = state.started or 0.0
    mine = [e for e in Chain(run).events(name) if str(e.get("job")) == state.id or e.get("time", 0.0) >= since > 0]
    stages = [str(event.get("stage")) for event in mine if event["event"] == "stage"]
    return f"{state.state.lower()}{where}" + (f", at {stages[-1]}" if stages else "")


def cancel_lines(run: Path, ended: Sequence[Ended]) -> list[str]:
    """What the user is told."""
    if not ended:
        return [f"nothing to cancel: no job of {run} is in the queue"]
    wide = max(len(e.name) for e in ended)
    lines = [f"{e.name:{wide}}  {e.id}  was {e.was}: {e.told}" for e in ended]
    if any(e.told.startswith("asked to save") for e in ended):
        lines.append(f"to end without waiting for a save: rumpun cancel {shlex.quote(str(run))} --now")
    return [*lines, f"finished stages and checkpoints are kept; to go on: rumpun submit {shlex.quote(str(run))}"]
