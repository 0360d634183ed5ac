"""Where the time of a chain of jobs went: every link cut into intervals that add up.

Invariant: the intervals of a link are contiguous, none is negative, and together they are the link's time, from the
moment nothing but nodes was wanting (or its predecessor ended) to its end, whatever clocks and torn files say. Waiting
for the other jobs of the chain is nobody's cost and not counted. Pure: records in, intervals out.

A link's time is cut where something was written down: by the scheduler (handed in, eligible, started, ended), by the
controller (begin, stage, ranks, stepping, ranks_ended, end) and by the trainer (the end of each step). What lies after
the last step that a later start went on from is lost work: it was computed again.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

KINDS: dict[str, tuple[str, str]] = {
    "delay": ("held back between links", "wait"),
    "queue": ("queue", "wait"),
    "controller": ("allocation and controller", "start-up"),
    "preflight": ("preflight", "start-up"),
    "processes": ("processes and imports", "start-up"),
    "loading": ("loading data and model", "start-up"),
    "restoring": ("restoring the state", "start-up"),
    "compile": ("compile: first step over the usual one", "start-up"),
    "train": ("training", "train"),
    "save": ("saving", "save"),
    "evaluate": ("evaluation", "evaluate"),
    "stages": ("data stages", "stages"),
    "lost": ("lost work", "lost"),
    "idle": ("idle until the end", "idle"),
}
"""Kind of an interval → (what it is called, the group that it is drawn and summed with)."""
USEFUL = ("train", "evaluate", "stages")
"""Groups that count as goodput."""
WAITS = tuple(kind for kind, (_, group) in KINDS.items() if group == "wait")

PHASES = ("pretrain", "finetune")
_EVALUATES = ("eval", "probe")
_PLACES = {
    "starting the process": "processes",
    "loading libraries": "processes",
    "preparing": "processes",
    "restoring": "restoring",
    "validating": "evaluate",
}
_STEP_PLACES = (
    "waiting for data", "computing gradients", "exchanging the loss", "updating the weights",
)  # fmt: skip
_ORDER = ("processes", "loading", "restoring", "evaluate")


@dataclass(frozen=True)
class Interval:
    """[begin, end) in epoch seconds, all of one kind. `note`: a stage, or why it was lost."""

    kind: str
    begin: float
    end: float
    note: str = ""

    @property
    def seconds(self) -> float:
        """Its length."""
        return self.end - self.begin


@dataclass(frozen=True)
class Step:
    """A step that still counts: its number, when it ended (epoch seconds), how long it took."""

    number: int
    end: float
    seconds: float


@dataclass(frozen=True)
class Start:
    """A start of a phase as its ledger tells it.

    Attributes:
        time: epoch seconds, without fractions. after: it goes on after this step. computed: the last step it took.
        saved: steps whose checkpoints it committed. rewinds: (back to the weights of, seen up to) steps.
    """

    time: float
    after: int
    computed: int = 0
    saved: tuple[int, ...] = ()
    rewinds: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Phase:
    """What a training phase has left: starts, the steps that still count, and when it validated."""

    starts: Sequence[Start] = ()
    steps: Sequence[Step] = ()
    validations: Sequence[float] = ()

    def kept(self, number: int, *, all_of_last: bool) -> float:
        """The last step of start `number` that was never undone.

        Args:
            all_of_last: nothing of the last start is lost: it runs, or it saved all before it ended.
        """
        later = [start.after for start in self.starts[number + 1 :]]
        if later:
            return min(later)
        start = self.starts[number]
        return math.inf if all_of_last else max(start.saved, default=start.after)


def cut(begin: float, end: float, marks: Iterable[tuple[float, str, str]], first: str) -> list[Interval]:
    """The time [begin, end) cut at marks (time, kind, note), each of which holds until the next.

    Marks count in the given order: one that is earlier than the mark before it (clocks differ) begins where that one
    does. Neighbours of one kind and note become one.
    """
    end = max(begin, end)
    found: list[Interval] = []
    at, kind, note = begin, first, ""

    def close(until: float) -> None:
        if until <= at:
            return
        if found and (found[-1].kind, found[-1].note) == (kind, note):
            found[-1] = Interval(kind, found[-1].begin, until, note)
        else:
            found.append(Interval(kind, at, until, note))

    for time, next_kind, next_note in marks:
        time = min(max(time, at), end)
        close(time)
        at, kind, note = time, next_kind, next_note
    close(end)
    return found


def overlay(intervals: Sequence[Interval], window: tuple[float, float], kind: str, note: str) -> list[Interval]:
    """The intervals with the part inside the window turned into one kind; start-up and waiting stay what they are."""
    low, high = window
    found: list[Interval] = []
    for part in intervals:
        inside = (max(part.begin, low), min(part.end, high))
        if inside[0] >= inside[1] or KINDS[part.kind][1] in ("wait", "start-up"):
            pieces = [part]
        else:
            pieces = [
                Interval(part.kind, part.begin, inside[0], part.note),
                Interval(kind, *inside, note),
                Interval(part.kind, inside[1], part.end, part.note),
            ]
        for piece in pieces:
            if piece.end <= piece.begin:
                continue
            if found and (found[-1].kind, found[-1].note) == (piece.kind, piece.note):
                piece = Interval(piece.kind, found.pop().begin, piece.end, piece.note)
            found.append(piece)
    return found


def by_kind(intervals: Iterable[Interval]) -> dict[str, float]:
    """Seconds of each kind, in the order of `KINDS`, without those that did not occur."""
    total = dict.fromkeys(KINDS, 0.0)
    for interval in intervals:
        total[interval.kind] += interval.seconds
    return {kind: seconds for kind, seconds in total.items() if seconds > 0}


@dataclass(frozen=True)
class Bounds:
    """When a link was handed in, became eligible, started and ended (epoch seconds), and whether it still runs.

    `waited_since`: the end of the link before it, where it is the same job again.
    """

    start: float
    end: float
    submitted: float | None = None
    eligible: float | None = None
    waited_since: float | None = None
    running: bool = False

    @property
    def begin(self) -> float:
        """Where the link's time begins."""
        if self.waited_since is not None:
            return min(self.waited_since, self.start)
        known = [time for time in (self.eligible, self.submitted) if time is not None and time <= self.start]
        return known[0] if known else self.start


@dataclass
class _Window:
    """One start of ranks inside a link: its events, and where its time ends."""

    phase: str
    begin: float
    end: float
    stepping: Mapping[str, Any] | None = None
    ended: Mapping[str, Any] | None = None
    last: bool = False


def link_intervals(
    events: Sequence[Mapping[str, Any]], bounds: Bounds, *, phases: Mapping[str, Phase], cause: str = ""
) -> list[Interval]:
    """The intervals of one link.

    Args:
        events: of this link, oldest first (launch/slurm/chain.py). phases: what training has left, by name.
        cause: why the link ended before its work was done: the note of what was lost at its end.
    """
    marks: list[tuple[float, str, str]] = []
    if bounds.waited_since is not None and bounds.eligible is not None and bounds.eligible <= bounds.start:
        marks += [(bounds.waited_since, "delay", ""), (bounds.eligible, "queue", "")]
    marks.append((bounds.start, "controller", ""))
    lost: list[tuple[float, float, str]] = []
    window: _Window | None = None
    stage, open_since = "", None
    # the failure that ended the link has the link's cause: a lost node shows as ranks that lost each other
    last_ranks = next((event for event in reversed(events) if event["event"] == "ranks"), None)
    last_ranks = last_ranks if any(event["event"] == "end" for event in events) else None
    for event in events:
        kind, time = event["event"], float(event["time"])
        if window is not None and kind in ("ranks", "ranks_ended", "stage_done", "end"):
            window.end, window.ended = time, event if kind == "ranks_ended" else None
            _train(window, bounds, phases, marks, lost, cause)
            window = None
        if kind == "stage":
            stage, open_since = str(event.get("stage", "")), time
            marks.append((time, *_work_of(stage)))
        elif kind == "stage_done":
            open_since = None
            marks.append((time, "controller", ""))
        elif kind == "preflight":
            marks += [(time - float(event.get("seconds") or 0.0), "preflight", ""), (time, "controller", "")]
        elif kind == "ranks":
            window = _Window(str(event.get("phase", stage)), time, bounds.end, last=event is last_ranks)
            marks.append((time, "processes", ""))
        elif kind == "stepping" and window is not None:
            window.stepping = event
        elif kind == "ranks_ended":  # what is done is committed next
            marks.append((time, "save" if event.get("outcome") == "done" else "idle", ""))
        elif kind == "end":
            marks.append((time, "idle", ""))
    if window is not None:
        _train(window, bounds, phases, marks, lost, cause)
    last = events[-1]["event"] if events else ""
    if open_since is not None and last in ("stage", "end") and stage not in PHASES and not bounds.running:
        until = float(events[-1]["time"]) if last == "end" else bounds.end
        lost.append((open_since, until, cause))
    intervals = cut(bounds.begin, bounds.end, marks, "queue")
    for low, high, why in lost:
        intervals = overlay(intervals, (low, high), "lost", why)
    return intervals


def _work_of(stage: str) -> tuple[str, str]:
    if stage in PHASES:
        return "controller", ""
    return ("evaluate" if stage in _EVALUATES else "stages"), stage


def _train(
    window: _Window,
    bounds: Bounds,
    phases: Mapping[str, Phase],
    marks: list[tuple[float, str, str]],
    lost: list[tuple[float, float, str]],
    cause: str,
) -> None:
    """Add the marks of one start of ranks, and what of it was lost."""
    phase = phases.get(window.phase, Phase())
    outcome = (window.ended or {}).get("outcome")
    own = outcome not in (None, "done", "stopped") and not (window.last and cause)
    why = str((window.ended or {}).get("reason") or "") if own else cause
    number = _number_of(phase, window)
    running = window.ended is None and bounds.running
    saved_all = running or outcome in ("done", "stopped")
    kept = phase.kept(number, all_of_last=saved_all) if number is not None else math.inf
    steps = _inside(phase.steps, window.begin, window.end)
    usual = _usual(steps, phase.steps)
    first = steps[0].end - steps[0].seconds if steps else _first_step(window)
    if first is None:  # no step has ended
        if not saved_all:
            marks.append((window.begin, "lost", why))
        return
    first = min(max(first, window.begin), window.end)
    _start_up(window, first, marks)
    if steps and usual is not None and steps[0].seconds > usual:
        marks += [(first, "compile", ""), (first + steps[0].seconds - usual, "train", "")]
    else:
        marks.append((first, "train", ""))
    saves = {step for start in phase.starts for step in start.saved}
    kept_until = first
    for before, step in pairwise(steps):
        begin = max(before.end, step.end - step.seconds)
        if before.number in saves and begin > before.end:
            marks += [(before.end, "save", ""), (begin, "train", "")]
        if before.number <= kept:
            kept_until = begin
    if steps and steps[-1].number <= kept:
        kept_until = steps[-1].end
    marks += _tail(steps[-1].end if steps else None, window, phase, outcome, running)
    for back, seen in phase.starts[number].rewinds if number is not None else ():
        ends = {step.number: step.end for step in steps}
        if seen in ends:
            lost.append((ends.get(back, first), ends[seen], f"rewound from step {seen} to the weights of step {back}"))
    computed = phase.starts[number].computed if number is not None else 0
    if not saved_all or (kept < math.inf and computed > kept):
        lost.append((kept_until if steps else first, window.end, why))


def _tail(
    last: float | None, window: _Window, phase: Phase, outcome: str | None, running: bool
) -> list[tuple[float, str, str]]:
    """What came after the last step: the save, a validation, the model."""
    if last is None or running:
        return []
    if outcome == "done":
        validated = [time for time in phase.validations if last < time <= window.end]
        return [(last, "evaluate", ""), (validated[-1], "save", "")] if validated else [(last, "save", "")]
    return [(last, "save", "")] if outcome == "stopped" else []


def _number_of(phase: Phase, window: _Window) -> int | None:
    """Which start of the ledger this start of ranks became: None where it did not come so far."""
    # the ledger's clock drops fractions
    inside = [n for n, s in enumerate(phase.starts) if math.floor(window.begin) <= s.time <= window.end]
    return inside[-1] if inside else None


def _inside(steps: Sequence[Step], begin: float, end: float) -> Sequence[Step]:
    low = bisect_right(steps, begin, key=lambda step: step.end)
    return steps[low : bisect_right(steps, end, key=lambda step: step.end)]


def _usual(steps: Sequence[Step], others: Sequence[Step]) -> float | None:
    """Seconds of an ordinary step: of this start without its first, else of the phase."""
    found = [step.seconds for step in steps[1:]] or [step.seconds for step in others if step not in steps[:1]]
    return median(found) if found else None


def _first_step(window: _Window) -> float | None:
    """When the first step began, where only the controller has seen it."""
    if window.stepping is None:
        return None
    parts = window.stepping.get("parts_s") or {}
    return float(window.stepping["time"]) - sum(float(parts.get(place, 0.0)) for place in _STEP_PLACES)


def _start_up(window: _Window, first: float, marks: list[tuple[float, str, str]]) -> None:
    """The time before the first step, by the places that rank 0 passed; what nobody saw is that of the processes."""
    parts = (window.stepping or {}).get("parts_s") or {}
    seconds = dict.fromkeys(_ORDER, 0.0)
    for place, spent in parts.items():
        if place not in _STEP_PLACES:
            seconds[_PLACES.get(place, "loading")] += max(0.0, float(spent))
    at = first - sum(seconds.values())
    marks.append((window.begin, "processes", ""))
    for kind in _ORDER:
        if seconds[kind] > 0:
            marks.append((max(at, window.begin), kind, ""))
        at += seconds[kind]
