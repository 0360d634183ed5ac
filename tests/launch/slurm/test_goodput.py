"""Every second of a link is accounted for once, and under the name of what really happened in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.slurm.telling.goodput import (
    KINDS,
    Bounds,
    Interval,
    Phase,
    Start,
    Step,
    by_kind,
    cut,
    link_intervals,
    overlay,
)
from launch.slurm.telling.timeline import Link, goodput, links_of, local_links, record

T0 = 1_700_000_000.0
QUARTERS = st.integers(0, 400).map(lambda n: n / 4)  # sums of quarters are exact
SOME = st.integers(1, 200).map(lambda n: n / 4)


def check_adds_up(intervals: list[Interval] | tuple[Interval, ...], begin: float, end: float) -> None:
    if not intervals:
        assert end <= begin
        return
    assert intervals[0].begin == begin and intervals[-1].end == end
    assert all(a.end == b.begin for a, b in pairwise(intervals))
    assert all(part.seconds > 0 and part.kind in KINDS for part in intervals)
    assert math.isclose(math.fsum(by_kind(intervals).values()), end - begin, abs_tol=1e-6)


TIMES = st.floats(T0 - 5000, T0 + 5000, allow_nan=False)
EVENTS = st.fixed_dictionaries(
    {
        "event": st.sampled_from(
            ["begin", "stage", "stage_done", "preflight", "ranks", "roll_call", "stepping", "ranks_ended", "end", "new"]
        ),
        "time": TIMES,
        "stage": st.sampled_from(["corpus", "pretrain", "finetune", "eval", "mine"]),
        "phase": st.sampled_from(["pretrain", "finetune"]),
        "seconds": st.none() | st.floats(0, 1e4),
        "outcome": st.sampled_from(["done", "stopped", "failed", "hung", "mistake"]),
        "reason": st.text(max_size=5),
        "parts_s": st.dictionaries(
            st.sampled_from(["loading libraries", "restoring", "computing gradients", "validating", "anything"]),
            st.floats(-10, 1e4),
        ),
    }
)
PHASES = st.builds(
    Phase,
    starts=st.lists(
        st.builds(
            Start,
            time=TIMES,
            after=st.integers(0, 50),
            computed=st.integers(0, 60),
            saved=st.lists(st.integers(0, 60), max_size=3).map(tuple),
            rewinds=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=2).map(tuple),
        ),
        max_size=4,
    ),
    steps=st.lists(st.builds(Step, number=st.integers(0, 60), end=TIMES, seconds=st.floats(0, 500)), max_size=12).map(
        lambda steps: sorted(steps, key=lambda step: step.end)
    ),
    validations=st.lists(TIMES, max_size=3).map(sorted),
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(EVENTS, max_size=12),
    st.builds(
        Bounds,
        start=TIMES,
        end=TIMES,
        submitted=st.none() | TIMES,
        eligible=st.none() | TIMES,
        waited_since=st.none() | TIMES,
        running=st.booleans(),
    ),
    PHASES,
    PHASES,
)
def test_whatever_the_files_say_the_parts_add_up(
    events: list[dict[str, Any]], bounds: Bounds, first: Phase, second: Phase
) -> None:
    """Torn, mixed up and contradictory records, clocks that differ: never a second too many or too few."""
    intervals = link_intervals(events, bounds, phases={"pretrain": first, "finetune": second}, cause="why")
    check_adds_up(intervals, bounds.begin, max(bounds.begin, bounds.end))


@dataclass
class Told:
    """A chain that is told as it happens: what the files will hold, and the truth beside it."""

    now: float = T0
    truth: list[dict[str, float]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[int, Step] = field(default_factory=dict)
    starts: list[dict[str, Any]] = field(default_factory=list)
    saved: int = 0
    end: float = T0

    def spend(self, kind: str, seconds: float) -> None:
        self.now += seconds
        self.truth[-1][kind] = self.truth[-1].get(kind, 0.0) + seconds

    def write(self, event: str, **facts: Any) -> None:
        self.events.append({"event": event, "time": self.now, "job": "7", "restart": len(self.truth) - 1, **facts})

    def phase(self) -> Phase:
        starts = [
            Start(s["time"], s["after"], s["computed"], tuple(s["saved"]), ()) for s in self.starts
        ]  # fmt: skip
        return Phase(starts, sorted(self.steps.values(), key=lambda step: step.end))


@dataclass(frozen=True)
class Fate:
    """What one link will go through, in seconds and counts."""

    waits: tuple[float, float]
    controller: float
    preflight: float
    parts: tuple[float, float, float, float]
    step: float
    compile: float
    steps: int
    save_every: int
    save: float
    within: float
    idle: float
    ends: str


FATES = st.builds(
    Fate,
    waits=st.tuples(SOME, SOME),
    controller=SOME,
    preflight=QUARTERS,
    parts=st.tuples(SOME, SOME, SOME, QUARTERS),
    step=st.integers(4, 40).map(lambda n: n / 4),
    compile=QUARTERS,
    steps=st.integers(3, 12),
    save_every=st.integers(1, 6),
    save=st.integers(1, 8).map(lambda n: n / 4),
    within=st.integers(0, 3).map(lambda n: n / 4),
    idle=SOME,
    ends=st.sampled_from(["stopped", "killed"]),
)


def live(told: Told, fate: Fate, *, last: bool) -> None:
    """One link of a training job, second by second."""
    told.truth.append({})
    first = len(told.truth) == 1
    submitted = told.now
    if first:  # waiting for other jobs is nobody's cost
        told.now += fate.waits[0]
    else:
        told.spend("delay", fate.waits[0])
    eligible = told.now
    told.spend("queue", fate.waits[1])
    start = told.now
    told.spend("controller", fate.controller)
    told.write("begin", nodes=["node1"], submitted=submitted, eligible=eligible, start=start, end_limit=None)
    told.write("stage", stage="finetune")
    told.spend("controller", 0.25)
    told.spend("preflight", fate.preflight)
    told.write("preflight", seconds=fate.preflight, sick={}, facts={})
    told.write("ranks", phase="finetune", attempt=0)
    for step in [n for n in told.steps if n > told.saved]:  # as telemetry does when a phase is resumed
        del told.steps[step]
    begun = {"time": 0.0, "after": told.saved, "computed": told.saved, "saved": []}
    places = ("starting the process", "loading the model", "restoring", "validating")
    for kind, seconds in zip(("processes", "loading", "restoring", "evaluate"), fate.parts, strict=True):
        told.spend(kind, seconds)
        if kind == "loading":
            begun["time"] = float(math.floor(told.now))
    told.starts.append(begun)
    number, saved_at_end = told.saved, False
    for count in range(1, fate.steps + 1):
        number += 1
        if count == 1:
            told.spend("compile", fate.compile)
        told.spend("train", fate.step)
        seconds = fate.step + (fate.compile if count == 1 else 0.0)
        told.steps[number] = Step(number, told.now, seconds)
        begun["computed"] = number
        if count == 1:
            parts = dict(zip(places, fate.parts, strict=True)) | {"computing gradients": seconds}
            told.write("stepping", phase="finetune", step=number, parts_s=parts)
        saved_at_end = count % fate.save_every == 0
        if saved_at_end and count < fate.steps:
            told.spend("save", fate.save)
            told.saved = number
            begun["saved"].append(number)
    if last or fate.ends == "stopped":
        told.spend("save", fate.save)
        told.saved = number
        begun["saved"].append(number)
        told.write("ranks_ended", phase="finetune", outcome="done" if last else "stopped", saved=number, last=number)
        if last:
            told.spend("save", 0.5)
            told.write("stage_done", stage="finetune", seconds=1.0)
            told.spend("controller", 0.25)
        told.write("end", outcome="done" if last else "stopped", reason="SIGTERM", exit=75, next="requeue")
        told.spend("idle", fate.idle)
    else:
        told.spend("lost", fate.within)
        undone = number - told.saved
        if undone == fate.steps:  # nothing of the link was saved: its first step too is only known as lost
            told.truth[-1]["lost"] = told.truth[-1].get("lost", 0.0) + undone * fate.step + fate.compile
            told.truth[-1]["train"] = told.truth[-1]["compile"] = 0.0
        elif undone:
            # the blocking part of the last save is told by the step after it, whose record is gone
            told.truth[-1]["lost"] = told.truth[-1].get("lost", 0.0) + undone * fate.step + fate.save
            told.truth[-1]["train"] -= undone * fate.step
            told.truth[-1]["save"] -= fate.save
    told.end = told.now


@dataclass(frozen=True)
class Accounted:
    """What accounting says of a link that was killed."""

    started: float
    ends: float
    state: str = "PREEMPTED"
    nodes: tuple[str, ...] = ("node1",)
    submitted: float | None = None
    eligible: float | None = None
    exit_code: str | None = "0:0"
    id: str = "7"
    restarts: int = 0


@settings(max_examples=150, deadline=None)
@given(st.lists(FATES, min_size=1, max_size=5))
def test_the_truth_is_found_again(fates: list[Fate]) -> None:
    """A chain is lived through second by second; the account made of its files says what happened in each of them."""
    told, runs = Told(), []
    for number, fate in enumerate(fates, start=1):
        live(told, fate, last=number == len(fates))
        begin = next(e for e in reversed(told.events) if e["event"] == "begin")
        runs.append(Accounted(begin["start"], told.end))
    links = links_of(
        {"finetune": told.events}, phases={"finetune": told.phase()}, runs={"finetune": runs}, now=told.now + 99
    )
    assert len(links) == len(fates)
    begin = T0 + fates[0].waits[0]
    for link, truth in zip(links, told.truth, strict=True):
        check_adds_up(link.intervals, begin, begin + math.fsum(truth.values()))
        begin = link.end
        expected = {kind: seconds for kind, seconds in truth.items() if seconds > 0}
        assert by_kind(link.intervals) == pytest.approx(expected), link
        assert link.cause == ("" if link is links[-1] else "preempted")
    undone = sum(s["computed"] - n["after"] for s, n in pairwise(told.starts))
    assert sum(link.undone for link in links) == undone


def test_marks_that_go_back_in_time_count_from_the_mark_before() -> None:
    parts = cut(0.0, 10.0, [(2.0, "train", ""), (1.0, "save", ""), (6.0, "train", "a"), (6.0, "train", "b")], "queue")
    assert parts == [Interval("queue", 0.0, 2.0), Interval("save", 2.0, 6.0), Interval("train", 6.0, 10.0, "b")]


def test_what_was_lost_hides_neither_waiting_nor_start_up() -> None:
    parts = [Interval("queue", 0, 2), Interval("loading", 2, 4), Interval("train", 4, 6), Interval("save", 6, 8)]
    assert overlay(parts, (1, 7), "lost", "x") == [
        Interval("queue", 0, 2), Interval("loading", 2, 4), Interval("lost", 4, 7, "x"), Interval("save", 7, 8),
    ]  # fmt: skip


def training(*outcomes: tuple[str, str], running: bool = False) -> Link:
    """One link whose ranks were started once for each outcome; each took four steps and saved after the second."""
    told = Told()
    told.truth.append({})
    told.write("begin", nodes=["node1", "node2"], submitted=None, eligible=None, start=told.now, end_limit=None)
    told.write("stage", stage="finetune")
    for attempt, (outcome, reason) in enumerate(outcomes):
        told.write("ranks", phase="finetune", attempt=attempt)
        for step in [n for n in told.steps if n > told.saved]:
            del told.steps[step]
        told.now += 10
        told.starts.append(
            {"time": told.now, "after": told.saved, "computed": told.saved + 4, "saved": [told.saved + 2]}
        )
        for step in range(told.saved + 1, told.saved + 5):
            told.now += 1
            told.steps[step] = Step(step, told.now, 1.0)
        told.saved += 2
        told.now += 5
        if outcome:
            told.write("ranks_ended", phase="finetune", outcome=outcome, reason=reason, saved=told.saved, last=step)
    [link] = links_of(
        {"finetune": told.events},
        phases={"finetune": told.phase()},
        now=told.now,
        running={"finetune": 0} if running else {},
    )
    return link


def test_a_crash_inside_a_link_is_lost_work_with_its_reason() -> None:
    link = training(("failed", "rank 3 (pid 9) was killed by SIGKILL"), ("", ""), running=True)
    lost = [part for part in link.intervals if part.kind == "lost"]
    assert [(part.seconds, part.note) for part in lost] == [(7.0, "rank 3 (pid 9) was killed by SIGKILL")]
    assert by_kind(link.intervals)["train"] == pytest.approx(2 + 4 + 5)
    assert link.running and link.cause == "" and link.undone == 2 and link.outcome == ""


def test_a_link_that_was_killed_loses_what_was_not_saved() -> None:
    link = training(("", ""))
    assert by_kind(link.intervals) == {"processes": 10.0, "train": 2.0, "lost": 2.0}
    assert link.outcome == "killed" and link.cause.startswith("ended without a word")
    [lost] = [part for part in link.intervals if part.kind == "lost"]
    assert lost.note == link.cause


def test_a_start_that_fell_before_its_first_step_is_lost() -> None:
    events = [
        {"event": "ranks", "time": T0, "phase": "finetune"},
        {"event": "ranks_ended", "time": T0 + 30, "phase": "finetune", "outcome": "failed", "reason": "a rank fell"},
        {"event": "ranks", "time": T0 + 32, "phase": "finetune"},
    ]
    parts = link_intervals(events, Bounds(T0, T0 + 50, running=True), phases={})
    assert [(part.kind, part.seconds, part.note) for part in parts] == [
        ("lost", 30.0, "a rank fell"), ("idle", 2.0, ""), ("processes", 18.0, ""),
    ]  # fmt: skip


def test_steps_without_a_record_are_estimated_where_nobody_knows_the_end() -> None:
    """Killed after step 6, of which 4 were saved; there is no accounting, and the next start dropped what it takes again."""
    told = Told()
    told.truth.append({})
    told.write("begin", start=T0)
    told.write("ranks", phase="finetune")
    steps = [Step(n, T0 + 10 + 2 * n, 2.0) for n in range(1, 5)]
    phase = Phase([Start(T0 + 9, 0, 6, (4,)), Start(T0 + 109, 4, 5)], [*steps, Step(5, T0 + 112, 2.0)])
    told.truth.append({})
    told.now = T0 + 100
    told.write("begin", start=T0 + 100)
    told.write("ranks", phase="finetune")
    first, _ = links_of({"finetune": told.events}, phases={"finetune": phase}, running={"finetune": 1}, now=T0 + 113)
    assert by_kind(first.intervals) == {"processes": 10.0, "train": 8.0, "lost": 4.0} and first.undone == 2


def test_a_rewind_sets_its_steps_aside() -> None:
    steps = [Step(n, T0 + n, 1.0) for n in range(1, 7)]
    phase = Phase([Start(T0, 0, 6, (2,), ((2, 4),))], steps)
    events = [{"event": "ranks", "time": T0, "phase": "finetune"}]
    parts = link_intervals(events, Bounds(T0, T0 + 6, running=True), phases={"finetune": phase})
    assert by_kind(parts) == {"train": 4.0, "lost": 2.0}
    assert "rewound" in next(part.note for part in parts if part.kind == "lost")


def test_a_stage_that_was_interrupted_is_lost_and_one_that_ended_is_not() -> None:
    events = [
        {"event": "begin", "time": T0 + 1, "job": "3", "restart": 0, "start": T0},
        {"event": "stage", "time": T0 + 2, "job": "3", "restart": 0, "stage": "corpus"},
        {"event": "stage_done", "time": T0 + 10, "job": "3", "restart": 0, "stage": "corpus"},
        {"event": "stage", "time": T0 + 10, "job": "3", "restart": 0, "stage": "eval"},
        {"event": "stage_done", "time": T0 + 15, "job": "3", "restart": 0, "stage": "eval"},
        {"event": "stage", "time": T0 + 15, "job": "3", "restart": 0, "stage": "tokens"},
    ]
    [link] = links_of(
        {"prepare": events}, phases={}, runs={"prepare": [Accounted(T0, T0 + 21, "TIMEOUT")]}, now=T0 + 99
    )
    assert by_kind(link.intervals) == {"controller": 2.0, "evaluate": 5.0, "stages": 8.0, "lost": 6.0}
    assert link.cause == "time limit"
    [link] = links_of({"prepare": events}, phases={}, running={"prepare": 0}, now=T0 + 99)
    assert by_kind(link.intervals) == {"controller": 2.0, "evaluate": 5.0, "stages": 92.0}


def test_a_run_that_never_reached_the_controller_is_a_link_too() -> None:
    events = [{"event": "begin", "time": T0 + 101, "job": "3", "restart": 1, "start": T0 + 100, "nodes": ["node1"]}]
    runs = [
        Accounted(T0, T0 + 30, "NODE_FAIL", nodes=("node1", "node2"), submitted=T0 - 20, eligible=T0 - 5, id="3"),
        Accounted(T0 + 100, T0 + 200, "CANCELLED"),
    ]
    first, second = links_of({"prepare": events}, phases={}, runs={"prepare": runs}, now=T0 + 999)
    assert by_kind(first.intervals) == {"queue": 5.0, "controller": 30.0}
    assert first.cause == "node2 failed" and first.nodes == ("node1", "node2")
    assert by_kind(second.intervals) == {"queue": 70.0, "controller": 100.0}
    assert second.cause == "cancelled outside rumpun" and (first.number, second.number) == (1, 2)


def test_a_successor_does_not_wait_while_its_predecessor_runs() -> None:
    def link(id: str, begin: float, submitted: float, eligible: float) -> list[dict[str, Any]]:
        return [
            {"event": "begin", "time": begin, "job": id, "restart": 0, "start": begin, "submitted": submitted,
             "eligible": eligible},
            {"event": "end", "time": begin + 50, "job": id, "restart": 0, "outcome": "stopped", "reason": "SIGUSR1"},
        ]  # fmt: skip

    events = link("3", T0 + 10, T0, T0 + 4) + link("4", T0 + 70, T0 + 15, T0 + 62)
    first, second = links_of({"pretrain": events}, phases={}, now=T0 + 999)
    assert by_kind(first.intervals) == {"queue": 6.0, "controller": 50.0}
    assert by_kind(second.intervals) == {"delay": 2.0, "queue": 8.0, "controller": 50.0}


def test_a_job_that_runs_again_has_not_gone_on_with_its_old_link() -> None:
    events = [{"event": "begin", "time": T0 + 1, "job": "3", "restart": 0, "start": T0}]
    [link] = links_of({"pretrain": events}, phases={}, running={"pretrain": 1}, now=T0 + 999)
    assert not link.running and link.end == T0 + 1


def test_who_could_not_be_asked_is_not_declared_dead() -> None:
    events = [{"event": "begin", "time": T0 + 1, "job": "3", "restart": 0, "start": T0}]
    [link] = links_of({"pretrain": events}, phases={}, asked=False, now=T0 + 999)
    assert "may still run" in link.cause and link.outcome == "" and not link.running
    [link] = links_of({"pretrain": events}, phases={}, now=T0 + 999)
    assert "ended without a word" in link.cause and link.outcome == "killed"


def test_goodput_counts_nodes_and_not_the_queue() -> None:
    def link(nodes: int, **seconds: float) -> Link:
        at, parts = T0, []
        for kind, length in seconds.items():
            parts.append(Interval(kind, at, at + length))
            at += length
        return Link("j", "1", 0, 1, tuple(f"n{i}" for i in range(nodes)), T0, False, "done", "", 0, tuple(parts))

    assert goodput([link(1, queue=1000, train=30, lost=10)]) == pytest.approx(0.75)
    assert goodput([link(3, train=30, loading=10), link(1, evaluate=10, idle=30)]) == pytest.approx(100 / 160)
    assert goodput([link(1, queue=5)]) is None
    made = record([link(1, queue=1000, train=30, lost=10)], jobs=True, now=T0)
    assert made["total_s"] == {"queue": 1000, "train": 30, "lost": 10} and made["goodput"] == pytest.approx(0.75)


def test_a_local_run_has_its_starts_and_its_stages() -> None:
    kept = [Step(1, T0 + 4, 2.0), Step(2, T0 + 6, 2.0), Step(3, T0 + 105, 2.0), Step(4, T0 + 107, 2.0)]
    phase = Phase([Start(T0, 0, 4, (2,)), Start(T0 + 100, 2, 4, (4,))], kept)
    stages = [
        {"name": "corpus", "begin": T0 - 50, "seconds": 30.0},
        {"name": "eval", "begin": T0 + 200, "seconds": 9.0},
    ]
    corpus, first, second, last = local_links({"pretrain": phase}, stages, running=False, now=T0 + 999)
    assert by_kind(corpus.intervals) == {"stages": 30.0} and by_kind(last.intervals) == {"evaluate": 9.0}
    assert by_kind(first.intervals) == {"loading": 2.0, "train": 4.0, "lost": 4.0}
    assert first.undone == 2 and "2 steps computed again" in first.cause
    assert by_kind(second.intervals) == {"loading": 3.0, "train": 4.0}
    for link in (first, second):
        check_adds_up(link.intervals, link.begin, link.end)
