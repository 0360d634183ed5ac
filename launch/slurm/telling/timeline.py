"""The links of a run's jobs, each with its intervals and why it ended: what `rumpun history` and the report show.

Pure: events, accounting and what training has left in, links and a JSON value out. A run without jobs has links too:
the starts in its ledgers and the stages that it built.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from launch.slurm.telling.causes import Run, cause_of, event_of
from launch.slurm.telling.goodput import KINDS, USEFUL, WAITS, Bounds, Interval, Phase, by_kind, link_intervals
from launch.slurm.telling.plain import plain

FORMAT = 1
_SAME_START_S = 5.0
_RAN = frozenset(("REQUEUED", "PREEMPTED", "NODE_FAIL", "TIMEOUT", "FAILED", "CANCELLED", "OUT_OF_MEMORY", "COMPLETED"))


@dataclass(frozen=True)
class Link:
    """One start of one job.

    Attributes:
        job: its name in the chain. id, restart: the scheduler's. number: from 1, in the order of the job's links.
        outcome: done, stopped, failed, killed, or "" while it runs. cause: why it ended early.
        undone: steps that it computed and a later link computes again.
    """

    job: str
    id: str
    restart: int
    number: int
    nodes: tuple[str, ...]
    start: float
    running: bool
    outcome: str
    cause: str
    undone: int
    intervals: tuple[Interval, ...]

    @property
    def begin(self) -> float:
        """When nothing but nodes was wanting, or its predecessor ended."""
        return self.intervals[0].begin if self.intervals else self.start

    @property
    def end(self) -> float:
        """When it ended, or what is known up to now."""
        return self.intervals[-1].end if self.intervals else self.start


def links_of(
    events: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    phases: Mapping[str, Phase],
    runs: Mapping[str, Sequence[Run]] | None = None,
    running: Mapping[str, int] | None = None,
    asked: bool = True,
    stops: Mapping[str, str] | None = None,
    now: float,
) -> list[Link]:
    """The links of all jobs, in the order in which they started.

    Args:
        events: of every job (launch/slurm/chain.py). runs: of every job, what accounting says of each of its runs.
        running: the jobs that run now, each with how often it was requeued before. asked: whether anybody could be
            asked for that. stops: why ids were asked to end. now: epoch seconds.
    """
    found: list[Link] = []
    for job, told in events.items():
        known = (runs or {}).get(job, ())
        groups = _groups(told, known)
        groups += _unseen(groups, known)
        groups.sort(key=lambda group: group[1])
        before: Link | None = None
        for number, group in enumerate(groups, start=1):
            following = groups[number] if number < len(groups) else None
            link = _link(
                job, number, *group,
                before=before, following=following, phases=phases,
                running=(running or {}).get(job), asked=asked, stops=stops or {}, now=now,
            )  # fmt: skip
            found.append(link)
            before = link
    return sorted(found, key=lambda link: link.start)


_Group = tuple[list[Mapping[str, Any]], float, Run | None]


def _groups(events: Sequence[Mapping[str, Any]], runs: Sequence[Run]) -> list[_Group]:
    """The events of each link, with its start; those of two links that overlap are told apart by id and restart."""
    groups: list[tuple[tuple[str, Any], list[Mapping[str, Any]]]] = []
    for event in events:
        key = (str(event.get("job", "")), event.get("restart", 0))
        mine = next((group for known, group in reversed(groups) if known == key), None)
        if event["event"] == "begin" or mine is None:
            groups.append((key, [event]))
        else:
            mine.append(event)
    found: list[_Group] = []
    for (id, _), group in groups:
        start = float(group[0].get("start") or group[0]["time"])
        near = [run for run in runs if run.started is not None and abs(run.started - start) <= _SAME_START_S]
        # a task of an array has another id in accounting
        near.sort(key=lambda run: (run.id != id, abs((run.started or 0.0) - start)))
        found.append((group, start, near[0] if near else None))
    return found


def _unseen(groups: Sequence[_Group], runs: Sequence[Run]) -> list[_Group]:
    """Runs that ended before the controller could write a line."""
    found: list[_Group] = []
    for run in runs:
        if run.started is None or run.ends is None or run.state not in _RAN or run.ends <= run.started:
            continue
        if not any(run is known or abs(run.started - start) <= _SAME_START_S for _, start, known in groups):
            found.append(([], run.started, run))
    return found


def _link(
    job: str,
    number: int,
    events: list[Mapping[str, Any]],
    start: float,
    run: Run | None,
    *,
    before: Link | None,
    following: _Group | None,
    phases: Mapping[str, Phase],
    running: int | None,
    asked: bool,
    stops: Mapping[str, str],
    now: float,
) -> Link:
    begin, end_event = event_of(events, "begin"), event_of(events, "end")
    id = str(events[0].get("job", "")) if events else run.id if run is not None else ""
    restart = int(begin.get("restart") or (0 if run is None or events else run.restarts))
    # where it was requeued and runs again, its next link has not said so yet
    runs_now = following is None and running is not None and running <= restart
    until = following[1] if following is not None else now
    if run is not None and run.ends is not None and run.state in _RAN:
        end = run.ends
    elif runs_now:
        end = now
    elif end_event:
        end = float(end_event["time"])
    else:
        end = _last_sign(events, phases, start, until)
    end = max(min(end, until), start)
    next_nodes = None if following is None else event_of(following[0], "begin").get("nodes")
    cause = "" if runs_now and not end_event else cause_of(events, run, stop=stops.get(id), next_nodes=next_nodes)
    unknown = not asked and run is None and following is None and not end_event
    if unknown:
        cause = "its files tell no end; it may still run"
    submitted, eligible, since = _handed_in(begin, run, id, before)
    going_on = (runs_now and not end_event) or unknown
    bounds = Bounds(start, end, submitted=submitted, eligible=eligible, waited_since=since, running=going_on)
    return Link(
        job=job,
        id=id,
        restart=restart,
        number=number,
        nodes=tuple(plain(node, 64) for node in begin.get("nodes") or getattr(run, "nodes", ()) or ()),
        start=start,
        running=going_on and not unknown,
        outcome="" if going_on else str(end_event.get("outcome") or "killed"),
        cause=cause,
        undone=_undone(start, end, events, phases),
        intervals=tuple(link_intervals(events, bounds, phases=phases, cause=cause)),
    )


def _handed_in(
    begin: Mapping[str, Any], run: Run | None, id: str, before: Link | None
) -> tuple[float | None, float | None, float | None]:
    """(submitted, eligible, waited since) of a link: a job that goes on waits from the end of its former link."""
    submitted, eligible = begin.get("submitted"), begin.get("eligible")
    if run is not None:
        submitted, eligible = submitted or run.submitted, eligible or run.eligible
    submitted = None if submitted is None else float(submitted)
    eligible = None if eligible is None else float(eligible)
    if before is not None and before.id == id:
        return submitted, eligible, before.end
    if before is not None and submitted is not None and submitted <= before.end:  # its successor, queued meanwhile
        return submitted, eligible, before.end
    return submitted, eligible, None


def _last_sign(events: Sequence[Mapping[str, Any]], phases: Mapping[str, Phase], start: float, until: float) -> float:
    """The last moment at which a link without an end was seen alive.

    The records of steps that were computed again are gone: they are taken to have lasted as long as the others.
    """
    signs = [float(event["time"]) for event in events] or [start]
    trained = next((str(e.get("phase")) for e in reversed(events) if e["event"] in ("ranks", "ranks_ended")), None)
    if trained is not None and events[-1]["event"] != "ranks_ended":
        steps = phases.get(trained, Phase()).steps
        signs += [step.end for step in steps if start <= step.end <= until][-1:]
        if steps and until > start and (undone := _undone(start, until, events[-1:], phases, only=trained)):
            signs.append(max(signs) + undone * median(step.seconds for step in steps))
    return max(signs)


def _undone(
    start: float,
    end: float,
    events: Sequence[Mapping[str, Any]],
    phases: Mapping[str, Phase],
    only: str | None = None,
) -> int:
    """Steps that starts of this link computed and later starts went back behind. `only`: of a phase's last start."""
    found = 0
    for name in {only} if only else {str(event.get("phase")) for event in events if event["event"] == "ranks"}:
        phase = phases.get(name, Phase())
        inside = [n for n, begun in enumerate(phase.starts[:-1]) if int(start) <= begun.time <= end]
        for number in inside[-1:] if only else inside:
            begun = phase.starts[number]
            kept = max(phase.kept(number, all_of_last=True), begun.after)
            found += max(0, int(begun.computed - kept))
    return found


def local_links(
    phases: Mapping[str, Phase], stages: Sequence[Mapping[str, Any]], *, running: bool, now: float
) -> list[Link]:
    """The links of a run without jobs: each start of a phase, and each stage that was built.

    Args:
        stages: name, begin and seconds of the finished stages that do not train. running: whether the run goes on now.
    """
    found: list[Link] = []
    for name, phase in phases.items():
        for number, start in enumerate(phase.starts, start=1):
            last = number == len(phase.starts)
            until = phase.starts[number].time if not last else now
            steps = [step for step in phase.steps if start.time <= step.end <= until]
            kept = phase.kept(number - 1, all_of_last=True)
            undone = 0 if last else max(0, int(start.computed - max(kept, start.after)))
            end = max(
                [start.time, *(step.end for step in steps), *(v for v in phase.validations if start.time <= v <= until)]
            )
            ongoing = last and running
            if undone and phase.steps:  # their records are gone; what they took is not known exactly
                end = min(until, end + undone * median(step.seconds for step in phase.steps))
            end = now if ongoing else end
            events = [{"event": "ranks", "time": start.time, "phase": name}]
            if not ongoing and not undone:
                events.append({"event": "ranks_ended", "time": end, "phase": name, "outcome": "stopped"})
            cause = f"interrupted; {undone} steps computed again" if undone else ""
            bounds = Bounds(start.time, end, running=ongoing)
            intervals = [_as_loading(i) for i in link_intervals(events, bounds, phases=phases, cause=cause)]
            found.append(
                Link(
                    job=name,
                    id="",
                    restart=number - 1,
                    number=number,
                    nodes=(),
                    start=start.time,
                    running=ongoing,
                    outcome="" if ongoing else "ended",
                    cause=cause,
                    undone=undone,
                    intervals=tuple(intervals),
                )
            )
    for stage in stages:
        begin, end = stage["begin"], stage["begin"] + max(0.0, stage["seconds"])
        kind = "evaluate" if stage["name"] in ("eval", "probe") else "stages"
        found.append(
            Link(
                job=stage["name"],
                id="",
                restart=0,
                number=1,
                nodes=(),
                start=begin,
                running=False,
                outcome="done",
                cause="",
                undone=0,
                intervals=(Interval(kind, begin, end, stage["name"]),) if end > begin else (),
            )
        )
    return sorted(found, key=lambda link: link.start)


def _as_loading(interval: Interval) -> Interval:
    """A ledger begins when the processes are up: what comes before the first step is loading."""
    return replace(interval, kind="loading") if interval.kind in ("processes", "controller") else interval


def goodput(links: Iterable[Link]) -> float | None:
    """Share of the time on nodes that did what counts, each link weighed by its nodes; None where there was none."""
    useful = held = 0.0
    for link in links:
        weight = max(1, len(link.nodes))
        for kind, seconds in by_kind(link.intervals).items():
            if kind not in WAITS:
                held += weight * seconds
                useful += weight * seconds if KINDS[kind][1] in USEFUL else 0.0
    return useful / held if held > 0 else None


def record(links: Sequence[Link], *, jobs: bool, now: float) -> dict[str, Any]:
    """The timeline as a JSON value: what `chain/timeline.json` holds and the report reads.

    Args:
        jobs: whether the links are jobs of a scheduler. now: when it was made, epoch seconds.
    """
    total = by_kind(interval for link in links for interval in link.intervals)
    return {
        "format": FORMAT,
        "made_at": now,
        "jobs": jobs,
        "kinds": {
            kind: {"label": label, "group": group, "place": place}  # files sort their keys
            for place, (kind, (label, group)) in enumerate(KINDS.items())
        },
        "useful": list(USEFUL),
        "goodput": goodput(links),
        "total_s": total,
        "links": [
            {
                "job": link.job,
                "id": link.id,
                "number": link.number,
                "nodes": list(link.nodes),
                "begin": link.begin,
                "start": link.start,
                "end": link.end,
                "running": link.running,
                "outcome": link.outcome,
                "cause": link.cause,
                "undone_steps": link.undone,
                "intervals": [
                    {"kind": part.kind, "begin": part.begin, "end": part.end, "note": plain(part.note, 200)}
                    for part in link.intervals
                ],
            }
            for link in links
        ],
    }
