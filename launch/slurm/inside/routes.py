"""The three routes by which a stopped job goes on, for sites that forbid one or another.

- `requeue`: the same job runs again. Its dependants keep waiting for it.
- `successor`: a new job with the same script, after this one has ended; the dependants are made to wait for that one.
- `array`: the next task of an array that was queued as a whole; nothing needs to be done.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from launch.lock import RunLock
from train.exit_codes import STOPPED

if TYPE_CHECKING:
    from launch.slurm.chain import Chain
    from launch.slurm.inside.allocation import Allocation
    from launch.slurm.scheduler.commands import Slurm

RUNS = ("RUNNING", "SUSPENDED", "CONFIGURING")


def requeue(slurm: Slurm, place: Allocation, *, without: Sequence[str]) -> int:
    """Run this job again, without these nodes. Afterwards this process may end, with whatever exit code.

    Who stays until it is killed keeps all nodes for KillWait; who leaves before the scheduler has accepted would end
    the job. Raises `UserError` where the site or the job forbids it.
    """
    avoid = nodes_to_avoid(slurm, place, without)
    # the scheduler ends the job with SIGTERM first, which commands that are started here must outlive
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    slurm.requeue(place.job_id)
    if avoid:
        _leave_out(slurm, place.job_id, avoid)
    return STOPPED


def nodes_to_avoid(slurm: Slurm, place: Allocation, without: Sequence[str]) -> list[str]:
    """The nodes that the next link stays away from: those that this one did, which it would forget, and `without`.

    Of these as many as leave the partition enough others: a job that excludes too many would wait for ever.
    """
    if not without:
        return []
    told = slurm.show(place.job_id)
    listed = told.get("ExcNodeList", "")
    before = slurm.hosts(listed) if listed not in ("", "(null)") else []
    mine = set(told.get("Partition", "").split(","))
    known = {node.name for node in slurm.node_facts() if mine & set(node.partitions)}
    room = max(0, len(known - set(before)) - len(place.nodes))
    more = [node for node in without if node not in before]
    return [*before, *more[:room]] if more[:room] else []


def _leave_out(slurm: Slurm, job_id: str, nodes: Sequence[str]) -> None:
    """Nodes can be excluded only while the job is pending, which it is from now on; the scheduler may need a moment."""
    for pause_s in (0.2, 0.5, 1.0, 2.0):
        try:
            slurm.update(job_id, ExcNodeList=",".join(nodes))
            return
        except UserError:
            time.sleep(pause_s)


@contextmanager
def alone(chain: Chain, within_s: float = 60.0) -> Iterator[None]:
    """Hold the chain of a run, which a `rumpun submit` may be changing just now; waits for that to end.

    Raises `UserError` where it does not.
    """
    lock, until = RunLock(chain.folder), time.monotonic() + within_s
    while True:
        try:
            lock.__enter__()
            break
        except UserError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def succeed(slurm: Slurm, place: Allocation, chain: Chain, name: str, *, without: Sequence[str]) -> str:
    """Submit a job that goes on after this one, and make the jobs that wait for this one wait for it. Returns its id.

    Raises `UserError` where it cannot be submitted, or a dependant cannot be changed; then nothing is changed.
    """
    record = chain.jobs()
    avoid = nodes_to_avoid(slurm, place, without)
    options = [f"--dependency=afterany:{place.job_id}", *([f"--exclude={','.join(avoid)}"] if avoid else [])]
    new = slurm.submit(chain.script(name), options=options)
    jobs: dict[str, Any] = record.get("jobs", {})
    changed: list[tuple[str, str]] = []
    try:
        for other in jobs.values():
            if name in other["after"]:
                ids = [jobs[need]["id"] if need != name else new for need in other["after"] if need in jobs]
                before = [jobs[need]["id"] for need in other["after"] if need in jobs]
                slurm.update(other["id"], Dependency="afterok:" + ":".join(ids))
                changed.append((other["id"], "afterok:" + ":".join(before)))
    except UserError:
        slurm.cancel([new])
        for job_id, dependency in changed:
            slurm.update(job_id, Dependency=dependency)
        raise
    if name in jobs:
        jobs[name] = {**jobs[name], "id": new, "former": [*jobs[name].get("former", []), place.job_id]}
        chain.write_jobs({key: value for key, value in record.items() if key != "format"})
    return new


def give_up_array(slurm: Slurm, place: Allocation) -> None:
    """No further link of this array shall start."""
    if place.array is not None:
        slurm.cancel([place.array[0]], pending_only=True)
