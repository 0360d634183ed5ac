"""What the scheduler says of a job, as one value, whichever of its commands said it.

Times are asked for as epoch seconds (SLURM_TIME_FORMAT=%s); the ISO form of local time is read too, for wrappers that
drop the environment.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from launch.slurm.scheduler.hostlist import expand

# States in which nothing of a job runs or waits any more. SPECIAL_EXIT and the *_HOLD states are jobs in the queue.
ENDED = frozenset(
    re.findall(
        r"\w+",
        "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED GONE LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED "
        "RECONFIG_FAIL REVOKED TIMEOUT",
    )
)
WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"))
_NOTHING = frozenset(("", "n/a", "none", "(null)", "unknown", "none assigned", "invalid", "0", "unlimited", "infinite"))

# The fields that may hold anything come last.
QUEUE_FIELDS = re.findall(
    r"\w+",
    "JobID ArrayJobID ArrayTaskID State RestartCnt SubmitTime EligibleTime StartTime EndTime Partition NodeList "
    "Reason Name",
)
QUEUE_FORMAT = ",".join(f"{field}:|" for field in QUEUE_FIELDS)  # a suffix without a size: nothing is cut off
ACCOUNT_FIELDS = re.findall(
    r"\w+", "jobidraw jobid state submit eligible start end partition nodelist exitcode reason jobname"
)


@dataclass(frozen=True)
class JobState:
    """One job at one moment.

    Attributes:
        id: as it was asked for; of one task of an array `21_3`.
        state: as SLURM's documentation spells it, without suffixes; `GONE` where neither the controller nor accounting
            knows the job.
        reason: why it waits, or why it stopped; empty where there is none.
        nodes: node names, empty while it waits.
        submitted, eligible, started, ends: epoch seconds. submitted: of the last requeue, where there was one. started:
            of a waiting job the controller's estimate. ends: when it ended, or will at the latest.
        restarts: how often it was requeued.
        exit_code: `code:signal` as accounting tells it; None while the job is in the queue.
        raw: of a task of an array, the number that it has as a job of its own.
    """

    id: str
    name: str = ""
    state: str = "GONE"
    reason: str = ""
    nodes: tuple[str, ...] = ()
    submitted: float | None = None
    eligible: float | None = None
    started: float | None = None
    ends: float | None = None
    restarts: int = 0
    partition: str = ""
    exit_code: str | None = None
    raw: str = ""

    @property
    def active(self) -> bool:
        """Whether it waits, runs or cleans up: it may still change by itself."""
        return self.state not in ENDED

    @property
    def waiting(self) -> bool:
        """Whether it is in the queue, not on nodes."""
        return self.state in WAITING


def plain_state(text: str) -> str:
    """`CANCELLED by 0` and `NODE_FAIL+` as CANCELLED and NODE_FAIL."""
    words = text.replace("+", " ").split()
    return words[0].upper() if words else "GONE"


def time_of(text: str) -> float | None:
    """Epoch seconds of a time as SLURM prints it; None for Unknown, N/A and the like."""
    text = text.strip()
    if text.lower() in _NOTHING:
        return None
    with suppress(ValueError):
        return float(text)
    with suppress(ValueError):
        return time.mktime(time.strptime(text[:19], "%Y-%m-%dT%H:%M:%S"))
    return None


def seconds_of(text: str) -> int | None:
    """Seconds of `days-hours:minutes:seconds`, `hours:minutes:seconds`, `minutes:seconds`, `20` or `20 sec` (seconds).

    None where there is no limit (UNLIMITED, INFINITE, NOT_SET and the like).
    """
    text = text.strip().removesuffix("sec").removesuffix("s").strip()
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdigit() for part in parts) or (dash and not days.isdigit()) or len(parts) > 3:
        return None
    numbers = [int(part) for part in parts]
    if dash:  # after a day count come hours, then minutes, then seconds
        numbers += [0] * (3 - len(numbers))
    seconds = 0
    for number in numbers:
        seconds = seconds * 60 + number
    return seconds + 86400 * int(days or 0)


def from_queue(lines: Iterable[str]) -> list[JobState]:
    """The jobs that squeue printed in QUEUE_FORMAT; a line of another shape (a wrapper's greeting) is passed over."""
    found = []
    for line in lines:
        cells = line.rstrip("\n").split("|", len(QUEUE_FIELDS) - 1)
        if len(cells) < len(QUEUE_FIELDS):
            continue
        raw, array, task, state, restarts, *times, partition, nodes, reason, name = (cell.strip() for cell in cells)
        if not raw.isdigit():
            continue
        submitted, eligible, started, ends = map(time_of, times)
        found.append(
            JobState(
                id=f"{array}_{task}" if task.isdigit() else raw,
                name=name.removesuffix("|"),
                state=plain_state(state),
                reason="" if reason.lower() in _NOTHING else reason,
                nodes=_nodes(nodes),
                submitted=submitted,
                eligible=eligible,
                started=started,
                ends=ends,
                restarts=int(restarts) if restarts.isdigit() else 0,
                partition=partition,
                raw=raw,
            )
        )
    return found


def from_accounting(lines: Iterable[str], fields: Sequence[str] = ACCOUNT_FIELDS) -> list[JobState]:
    """Every run of every job that sacct printed (--parsable2, -D), in its order, restarts counted.

    Args:
        fields: what each line holds, the name last; a field that a release lacks may be missing.
    """
    found: list[JobState] = []
    for line in lines:
        cells = line.rstrip("\n").split("|", len(fields) - 1)
        told = dict.fromkeys(ACCOUNT_FIELDS, "") | dict(zip(fields, map(str.strip, cells), strict=False))
        if len(cells) < len(fields) or not told["jobidraw"].isdigit():
            continue
        base, _, task = told["jobid"].partition("_")
        job = f"{base}_{task}" if task.isdigit() else told["jobidraw"]
        # a number is used again after the scheduler's state was lost: a former job of another name is another job
        restarts = sum(run.id == job and run.name == told["jobname"] for run in found)
        found.append(
            JobState(
                id=job,
                name=told["jobname"],
                state=plain_state(told["state"]),
                reason="" if told["reason"].lower() in _NOTHING else told["reason"],
                nodes=_nodes(told["nodelist"]),
                submitted=time_of(told["submit"]),
                eligible=time_of(told["eligible"]),
                started=time_of(told["start"]),
                ends=time_of(told["end"]),
                restarts=restarts,
                partition=told["partition"],
                exit_code=told["exitcode"] or None,
                raw=told["jobidraw"],
            )
        )
    return found


def runs_in(found: Iterable[JobState], job: str) -> list[JobState]:
    """Of what accounting told: every run of this job, oldest first. Former jobs of the same number are left out."""
    runs = [run for run in found if _is(run, job)]
    return [run for run in runs if run.name == runs[-1].name]


def of_job(found: Iterable[JobState], job: str) -> JobState | None:
    """The state of a job among those found: of an array, of the task that matters most (one that runs, else one that
    waits, else the last that ended); None where it is not among them."""
    exact = [state for state in found if _is(state, job)]
    if exact:
        return replace(exact[-1], id=job)
    tasks = [state for state in found if state.id.partition("_")[0] == job]
    if not tasks:
        return None
    by_rank = sorted(tasks, key=lambda s: (0 if not s.active else 1 if s.waiting else 2, s.started or 0.0))
    return replace(by_rank[-1], id=job)


def _is(state: JobState, job: str) -> bool:
    """Whether this is the job asked for: `21_3`, or the number that the task has as a job of its own. A task may have
    the array's number, which then still means the array."""
    return state.id == job or (state.raw == job and state.id.partition("_")[0] != job)


def _nodes(text: str) -> tuple[str, ...]:
    return () if text.lower() in _NOTHING else tuple(expand(text))
