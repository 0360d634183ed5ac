"""Where a run stands: its jobs with states, progress, what they wait for and how they failed.

Invariant: what is shown is what the files and the scheduler say; what neither says is shown as unknown. Nothing here
asks the scheduler: its answer comes in as a value, None where there is no scheduler or nothing to ask about.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from launch.slurm.chain import Chain
from launch.slurm.telling.causes import event_of
from launch.slurm.telling.goodput import PHASES
from launch.slurm.telling.phase_files import last_records, total_steps
from launch.slurm.telling.plain import first_line, plain
from launch.slurm.telling.standing import standing

if TYPE_CHECKING:
    from launch.slurm.scheduler.job_state import JobState

_RECENT = 50
_QUIET_S, _QUIET_STEPS = 60.0, 20.0
ENDED = ("done", "failed", "stopped", "cancelled", "never started", "lost")
"""States in which a job will not do anything by itself any more."""


@dataclass(frozen=True)
class Progress:
    """How far a training phase is. None: not known.

    Attributes:
        step_s: seconds from one step to the next, saves included. quiet_s: since the last record.
    """

    phase: str
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    step_s: float | None = None
    quiet_s: float | None = None
    finished: bool = False


@dataclass(frozen=True)
class JobStatus:
    """One job of the chain.

    Attributes:
        state: waits, running, done, failed, stopped, cancelled, "never started", lost (nobody knows it any more),
            submitted (nobody was asked).
        why: what it waits for, or why it ended; "" where there is nothing to say.
        eta_s: seconds until its training is done, time in the queue left out. more_links: further links in that time.
        links, restarts: starts by the scheduler so far; and how often training was started again.
        failure: the last failure in one line, with its time of day in epoch seconds in `failed_at`.
    """

    name: str
    id: str
    after: tuple[str, ...]
    state: str
    why: str
    stages: tuple[str, ...]
    stages_done: tuple[str, ...]
    stage: str
    progress: Progress | None
    eta_s: float | None
    more_links: int
    nodes: tuple[str, ...]
    links: int
    restarts: int
    failure: str
    failed_at: float | None
    starts_at: float | None
    ends_at: float | None


@dataclass(frozen=True)
class RunStatus:
    """A run: its jobs, or, where it has none, its stages and phases.

    Attributes:
        notes: what the reader should know about where this comes from.
    """

    run: str
    cluster: str
    submitted_at: float | None
    jobs: tuple[JobStatus, ...] = ()
    phases: tuple[Progress, ...] = ()
    stages: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def ended(self) -> bool:
        """Whether no job will do anything by itself any more."""
        return all(job.state in ENDED for job in self.jobs)

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return asdict(self)


def open_ids(run: Path) -> dict[str, str]:
    """Job → id, of the jobs of a run that have not ended by their own word."""
    chain = Chain(run)
    found = {}
    for name, job in _jobs(chain).items():
        events = chain.events(name)
        if event_of(_last_link(events), "end").get("outcome") != "done":
            found[name] = _id_now(job, events)
    return found


def ids_to_ask(run: Path) -> list[str]:
    """The ids that the scheduler is to be asked about."""
    return list(open_ids(run).values())


def read_status(
    run: Path, states: Mapping[str, JobState] | None, *, now: float, notes: Sequence[str] = ()
) -> RunStatus:
    """The status of a run folder.

    Args:
        states: what the scheduler says of `ids_to_ask`, None where it was not asked. now: epoch seconds.
    """
    chain = Chain(run)
    told = chain.jobs()
    stages = tuple(
        sorted(path.parent.name for path in run.glob("*/stage.json") if not path.parent.name.startswith("."))
    )
    jobs: dict[str, JobStatus] = {}
    for name, job in _jobs(chain).items():
        jobs[name] = _job(chain, name, job, states, jobs, now)
    phases = () if jobs else tuple(p for p in (_progress(run, phase, None, now) for phase in PHASES) if p is not None)
    return RunStatus(
        run=str(run),
        cluster=plain(told.get("cluster") or "", 60),
        submitted_at=told.get("submitted_at"),
        jobs=tuple(jobs.values()),
        phases=phases,
        stages=stages,
        notes=tuple(notes),
    )


def _jobs(chain: Chain) -> dict[str, dict[str, Any]]:
    """The jobs that were submitted, each after those that it needs."""
    left: dict[str, dict[str, Any]] = dict(chain.jobs().get("jobs", {}))
    found: dict[str, dict[str, Any]] = {}
    while left:
        ready = [name for name, job in left.items() if not set(job.get("after", ())) & set(left)]
        name = ready[0] if ready else next(iter(left))  # a circle can only be a damaged file
        found[name] = left.pop(name)
    return found


def _last_link(events: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The events of the newest link."""
    begins = [n for n, event in enumerate(events) if event["event"] == "begin"]
    if not begins:
        return events
    begin = events[begins[-1]]
    key = (begin.get("job"), begin.get("restart"))
    return [event for event in events[begins[-1] :] if (event.get("job"), event.get("restart")) == key]


def _id_now(job: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """The id under which a job goes on: its successor's, where a link has named one after the submission."""
    id = str(job.get("id", ""))
    for event in events:
        if event["event"] == "end" and str(event.get("job")) == id:
            words = str(event.get("next") or "").split()
            if len(words) == 2 and words[0] == "successor":
                id = words[1]
    return id


def _job(
    chain: Chain,
    name: str,
    job: Mapping[str, Any],
    states: Mapping[str, JobState] | None,
    before: Mapping[str, JobStatus],
    now: float,
) -> JobStatus:
    events = chain.events(name)
    link = _last_link(events)
    id = _id_now(job, events)
    state = None if states is None else states.get(id)
    resubmitted = _resubmitted(job, link, id)
    if resubmitted or (state is not None and state.restarts > int(event_of(link, "begin").get("restart") or 0)):
        link = ()  # a newer start of the job has not written anything yet
    begin = event_of(link, "begin")
    stages = tuple(map(str, job.get("stages", ())))
    done = tuple(stage for stage in stages if (chain.run / stage / "stage.json").exists())
    after = tuple(map(str, job.get("after", ())))
    stopped = chain.stopped(id) if chain.stop_file.exists() else None
    word, why = standing(
        link, state, id=id, stop=stopped, after={n: before[n].state for n in after if n in before},
        complete=bool(stages) and len(done) == len(stages),
    )  # fmt: skip
    running = word in ("running", "ending")
    phase = next((s for s in stages if s in PHASES), None)
    # what an earlier start wrote says nothing of the pace of this one
    began = float(event_of(link, "ranks").get("time", math.inf)) if running else None
    progress = None if phase is None else _progress(chain.run, phase, began, now)
    limit = state.ends if state is not None and state.ends else begin.get("end_limit")
    eta_s, more_links = (None, 0) if not running else _eta(progress, link, limit, now)
    failed_at, failure = _failure(events, word)
    started = sum(event["event"] == "ranks" for event in events)
    links = sum(event["event"] == "begin" for event in events)
    nodes = state.nodes if state is not None and state.nodes else tuple(map(str, begin.get("nodes", ())))
    return JobStatus(
        name=name,
        id=id,
        after=after,
        state=word,
        why=why,
        stages=stages,
        stages_done=done,
        stage=str(event_of(link, "stage").get("stage", "")) if running else "",
        progress=progress,
        eta_s=eta_s,
        more_links=more_links,
        nodes=tuple(plain(node, 64) for node in nodes) if running else (),
        links=max(links, 1 + state.restarts if state is not None and running else 0),
        restarts=max(0, (started or links) - 1, state.restarts if state is not None else 0),
        failure=failure,
        failed_at=failed_at,
        starts_at=state.started if state is not None and state.waiting else None,
        ends_at=float(limit) if running and limit else None,
    )


def _resubmitted(job: Mapping[str, Any], link: Sequence[Mapping[str, Any]], id: str) -> bool:
    """Whether the newest link is of an earlier submission: the job of now has not begun."""
    told = str(event_of(link, "begin").get("job", "")).partition("_")[0]
    if not told or told == id or id in str(event_of(link, "end").get("next") or "").split():
        return False
    # each task of an array gets a number of its own when it starts, after that of the array
    return not (job.get("route") == "array" and told.isdigit() and id.isdigit() and int(told) > int(id))


def _progress(run: Path, phase: str, began: float | None, now: float) -> Progress | None:
    """How far a phase is; None where it has not begun. `began`: of the start that runs, epoch seconds."""
    folder = run / "history" / phase
    finished = (run / phase / "stage.json").exists()
    records = [r for r in last_records(folder / "metrics.jsonl") if "loss" in r and isinstance(r.get("step"), int)]
    if not records:
        return Progress(phase, finished=True) if finished else None
    timed = [r for r in records[-_RECENT:] if isinstance(r.get("time"), (int, float)) and r["time"] >= (began or 0.0)]
    apart = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairwise(timed) if b["step"] > a["step"]]
    pace = None
    if apart:
        pace = max(median(apart), (timed[-1]["time"] - timed[0]["time"]) / max(1, timed[-1]["step"] - timed[0]["step"]))
    loss = records[-1].get("loss")
    return Progress(
        phase=phase,
        step=records[-1]["step"],
        steps=total_steps(folder / "ledger.jsonl"),
        loss=float(loss) if isinstance(loss, (int, float)) and math.isfinite(loss) else None,
        step_s=pace,
        quiet_s=max(0.0, now - timed[-1]["time"]) if timed else None,
        finished=finished,
    )


def quiet(progress: Progress) -> bool:
    """Whether a running phase has not taken a step for longer than its pace explains."""
    limit = max(_QUIET_S, _QUIET_STEPS * (progress.step_s or 0.0))
    return progress.quiet_s is not None and progress.quiet_s > limit


def _eta(
    progress: Progress | None, link: Sequence[Mapping[str, Any]], limit: float | None, now: float
) -> tuple[float | None, int]:
    """(seconds until the last step, further links) of a job that trains; (None, 0) where nothing tells."""
    if progress is None or progress.steps is None or progress.step_s is None or quiet(progress):
        return None, 0
    needed = max(0, progress.steps - progress.step) * progress.step_s
    left = None if limit is None else float(limit) - now
    if left is None or needed <= left:
        return needed, 0
    begin, first = event_of(link, "begin"), event_of(link, "stepping")
    start = float(begin.get("start") or begin.get("time") or now)
    start_up = max(0.0, float(first.get("time", start)) - start)
    a_link = float(limit or 0.0) - start - start_up
    if a_link <= 0:
        return None, 0
    more = math.ceil((needed - max(0.0, left)) / a_link)
    return needed + more * start_up, more


def _failure(events: Sequence[Mapping[str, Any]], word: str) -> tuple[float | None, str]:
    """(when, one line) of the last failure that the files tell of."""
    if word == "done":
        return None, ""
    for event in reversed(events):
        bad = event["event"] in ("ranks_ended", "end") and event.get("outcome") in (
            "failed", "hung", "diverged", "mistake", "superseded",
        )  # fmt: skip
        if bad:
            return float(event["time"]), first_line(event.get("reason") or event["outcome"])
    return None, ""
