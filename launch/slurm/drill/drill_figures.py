"""What a drill measured, and what follows from it for the warning before a job's end.

    lead = 1.5 × longest step + 1.5 × save + leaving + 30 s

The warning may come at the worst moment, just after a step has begun: that step ends, its state is saved, the ranks
leave together. Half as much again is for a slower file system than today's. SLURM looks at time limits every 30 s, so
that the warning may come late by as much; that it may also come up to 60 s early costs time of the job and saves
nothing. A preemption is told at once, so its grace needs no such 30 s.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from launch.slurm.chain import Chain

if TYPE_CHECKING:
    from launch.recipe import Recipe
    from launch.slurm.clusters.profile import ClusterProfile

COARSE_S = 30.0
"""Seconds by which the scheduler may be late."""
EARLY_S = 60.0
"""Seconds by which its warning may come too early."""
MARGIN = 1.5
RULE = "1.5 × longest step + 1.5 × save + leaving + 30 s"
_SAVES_COST = 20
"""A checkpoint every so many times what saving takes, where nothing else survives a preemption."""

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Sent:
    """A signal that the drill has sent.

    Attributes:
        moment: what it was to hit. link: the number of the start that got it, from 0. time: seconds since the epoch.
        step: the last that was known to have ended. whole: when the checkpoint of the last step was complete, as the
            file system tells; None where nothing was saved.
    """

    moment: str
    link: int
    time: float
    step: int
    whole: float | None = None


@dataclass(frozen=True)
class Moment:
    """How one signal was survived.

    Attributes:
        took_s: from the signal until all ranks were gone. save_s: from the end of the last step until its checkpoint
            was whole; None where nothing had to be saved. leave_s: from then until the ranks were gone.
        saved: the step that is saved. went_on: the first step of the next start; None where there was none.
        wrong: why this is a failure; empty where it is none.
    """

    moment: str
    step: int
    took_s: float
    save_s: float | None
    leave_s: float
    saved: int
    went_on: int | None
    wrong: str = ""

    def facts(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(vars(self))


@dataclass(frozen=True)
class Figures:
    """All that a drill measured; seconds.

    Attributes:
        start: from the beginning of a start to the end of its first step, the slowest of all. start_parts: its parts.
        step, longest: usual and longest step of `steps`. save, leave: the longest of all moments.
        requeue: from the end of a link to the beginning of the next, requeue_to_step: to the end of its first step;
            both the longest, None where nothing was requeued.
    """

    start: float
    start_parts: Mapping[str, float]
    step: float
    longest: float
    steps: int
    save: float
    leave: float
    requeue: float | None
    requeue_to_step: float | None
    moments: Sequence[Moment]

    @property
    def grace(self) -> int:
        """Whole seconds that a preempted job needs."""
        return math.ceil(MARGIN * self.longest + MARGIN * self.save + self.leave)

    @property
    def lead(self) -> int:
        """Whole seconds that the warning must come before the end."""
        return math.ceil(MARGIN * self.longest + MARGIN * self.save + self.leave + COARSE_S)

    @property
    def formula(self) -> str:
        """The rule with its numbers."""
        return (
            f"{MARGIN:g} × {self.longest:.2f} (longest step) + {MARGIN:g} × {self.save:.2f} (save) + "
            f"{self.leave:.2f} (leaving) + {COARSE_S:.0f} (the scheduler looks at time limits that often; "
            "that it may warn up to 60 s early saves nothing)"
        )

    def facts(self) -> dict[str, Any]:
        """What `drill.json` holds of it."""
        rounded = {name: round(seconds, 3) for name, seconds in self.start_parts.items()}
        return {
            "start_s": round(self.start, 3), "start_parts_s": rounded, "step_s": round(self.step, 4),
            "longest_step_s": round(self.longest, 4), "steps": self.steps, "save_s": round(self.save, 3),
            "leave_s": round(self.leave, 3), "requeue_s": _rounded(self.requeue),
            "requeue_to_step_s": _rounded(self.requeue_to_step), "lead_s": self.lead, "grace_s": self.grace,
            "rule": RULE, "moments": [moment.facts() for moment in self.moments],
        }  # fmt: skip


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def links_of(events: Sequence[Event]) -> list[list[Event]]:
    """The events of each start, in order."""
    found: list[list[Event]] = []
    for event in events:
        if event["event"] == "begin":
            found.append([])
        if found:
            found[-1].append(event)
    return found


def named(link: Sequence[Event], name: str) -> Event | None:
    """The first event of that name."""
    return next((event for event in link if event["event"] == name), None)


def figures(events: Sequence[Event], *, sent: Sequence[Sent], records: Sequence[Mapping[str, Any]]) -> Figures:
    """What the events of a drill, its signals and the records of its steps say.

    Args:
        records: of metrics.jsonl, those of training steps.

    Raises:
        UserError: too little was measured to say anything.
    """
    links = links_of(events)
    starts = [(start, parts) for link in links if (start := _start_of(link)) for parts in [_parts(link, start)]]
    seconds = [float(record["step_s"]) for record in records]
    if not starts or len(seconds) < 3:
        raise UserError("the drill", "saw too few steps to measure", "run it again, with more --steps")
    firsts = {int(stepping["step"]) for link in links if (stepping := named(link, "stepping"))}
    usual = [float(r["step_s"]) for r in records if r["step"] not in firsts] or seconds
    moments = [_moment(one, links, records) for one in sent]
    slowest, parts = max(starts, key=lambda pair: pair[0])
    queued = any(link[0].get("start") for link in links)
    waits = [(a, b) for a, b in itertools.pairwise(links) if queued and named(a, "end")]
    return Figures(
        start=slowest, start_parts=parts, step=statistics.median(usual), longest=max(seconds), steps=len(seconds),
        save=max((m.save_s for m in moments if m.save_s is not None), default=0.0),
        leave=max((m.leave_s for m in moments if m.save_s is not None), default=0.0),
        requeue=max((b[0]["time"] - _end(a) for a, b in waits), default=None),
        requeue_to_step=max((s["time"] - _end(a) for a, b in waits if (s := named(b, "stepping"))), default=None),
        moments=moments,
    )  # fmt: skip


def _end(link: Sequence[Event]) -> float:
    event = named(link, "end")
    assert event is not None
    return float(event["time"])


def _start_of(link: Sequence[Event]) -> float | None:
    stepping = named(link, "stepping")
    return None if stepping is None else float(stepping["time"] - link[0]["time"])


def _parts(link: Sequence[Event], whole_s: float) -> dict[str, float]:
    """Where the time of a start went: preflight, starting the ranks on their nodes, then rank 0's own places."""
    parts: dict[str, float] = {}
    preflight, ranks, call = named(link, "preflight"), named(link, "ranks"), named(link, "roll_call")
    if preflight is not None:
        parts["preflight"] = float(preflight["seconds"])
    if ranks is not None and call is not None:
        parts["starting the step"] = float(call["seconds"])
    own = (named(link, "stepping") or {}).get("parts_s") or {}
    parts |= {str(name): float(seconds) for name, seconds in own.items()}
    if call is not None:  # the roll call is waited for within rank 0's first place
        first = next(iter(own), None)
        if first is not None:
            parts[first] = max(0.0, parts[first] - parts["starting the step"])
    parts["the rest"] = max(0.0, whole_s - sum(parts.values()))
    return parts


def _moment(sent: Sent, links: Sequence[Sequence[Event]], records: Sequence[Mapping[str, Any]]) -> Moment:
    """How the start that got this signal ended, and how the next one began."""
    link = links[sent.link]
    ended = named(link, "ranks_ended")
    after = named(links[sent.link + 1], "stepping") if sent.link + 1 < len(links) else None
    if ended is None:
        return Moment(sent.moment, sent.step, 0.0, None, 0.0, 0, None, "its ranks were never seen to end")
    saved, last = int(ended["saved"]), int(ended["last"])
    took = max(0.0, float(ended["time"]) - sent.time)
    stepped = named(link, "stepping") is not None
    save = leave = None
    if stepped and sent.whole is not None:
        # the signal came while that step ran, or before it
        step_end = max((float(r["time"]) for r in records if r["step"] == last and "time" in r), default=sent.time)
        save = min(took, max(0.0, sent.whole - max(sent.time, step_end)))
        leave = min(took, max(0.0, float(ended["time"]) - sent.whole))
    went_on = None if after is None else int(after["step"])
    wrong = ""
    if ended["outcome"] != "stopped":
        wrong = f"ended as {ended['outcome']}: {ended.get('reason', '')}"
    elif stepped and saved != last:
        wrong = f"step {last} was done and step {saved} was saved"
    elif went_on is not None and went_on != saved + 1:
        wrong = f"went on at step {went_on} and not at {saved + 1}"
    if went_on is None and not wrong:  # the next start was signalled before its first step: the one after it tells
        later = next((s for link in links[sent.link + 1 :] if (s := named(link, "stepping"))), None)
        went_on = None if later is None else int(later["step"])
        if went_on is not None and went_on != saved + 1:
            wrong = f"went on at step {went_on} and not at {saved + 1}"
    return Moment(
        sent.moment, sent.step, took, save, took if leave is None else leave, saved, went_on, wrong
    )  # fmt: skip


def check(found: Figures, recipe: Recipe, profile: ClusterProfile) -> list[str]:
    """Lines about what is enough.

    Raises:
        UserError: a moment was not survived; the warning or the grace of a preemption is too short.
    """
    for moment in found.moments:
        if moment.wrong:
            raise UserError(f"a signal {moment.moment}", moment.wrong, "read the logs of the drill, named above")
    lead, keeping = recipe.slurm.signal_lead_s, recipe.checkpoint
    lines = []
    if lead < found.lead:
        raise UserError(
            f"slurm.signal_lead_s = {lead}", f"must be at least {found.lead} here ({found.formula})",
            f"set slurm.signal_lead_s = {_up(found.lead)}, for example with --set",
        )  # fmt: skip
    lines.append(f"slurm.signal_lead_s = {lead} is enough")
    grace = profile.grace_s
    whose = f"grace_s = {grace} of cluster {profile.name}"
    if grace is not None and grace < found.grace:
        every = max(30, math.ceil(_SAVES_COST * found.save))
        if keeping.every_s is None or keeping.every_s > every:
            steps = keeping.every_steps or round((keeping.every_s or every) / found.step)
            raise UserError(
                whose,
                f"preemption kills before the save is whole ({found.grace} s); checkpoints every {steps} steps are "
                "what survives",
                f"set checkpoint.every_s = {every}",
            )
        lines.append(
            f"{whose} is too short to save in ({found.grace} s): what survives a preemption is a checkpoint every "
            f"{keeping.every_s:g} s"
        )
    elif grace is not None:
        lines.append(f"{whose} is enough for a preemption ({found.grace} s)")
    lines += _starting(found, recipe, grace)
    if recipe.launch.grace_s < found.grace:
        raise UserError(
            f"launch.grace_s = {recipe.launch.grace_s:g}", f"ranks need {found.grace} s to end their step and save",
            f"set launch.grace_s = {_up(found.grace)}",
        )  # fmt: skip
    return lines


def _starting(found: Figures, recipe: Recipe, grace: int | None) -> list[str]:
    """What is true of starts. Raises `UserError` where the time limit of a link leaves no time for a step."""
    limit_s, lead = recipe.slurm.time_min * 60, recipe.slurm.signal_lead_s
    needed_s = found.start + found.longest + lead + EARLY_S
    if limit_s < needed_s:
        raise UserError(
            f"slurm.time_min = {recipe.slurm.time_min}",
            f"leaves no time to train: start-up {found.start:.0f} s, a step {found.longest:.0f} s, the warning "
            f"{lead} s before the end, or up to {EARLY_S:.0f} s sooner",
            f"set slurm.time_min = {math.ceil(2 * needed_s / 60)} or more",
        )
    slow = max((moment.took_s for moment in found.moments), default=0.0)
    if slow > (lead if grace is None else grace):
        return [
            f"a start that is signalled ends only after {slow:.0f} s, at its first boundary: it may be killed before, "
            "and loses nothing but itself"
        ]
    return []


def _up(seconds: int) -> int:
    """A round number that is not less."""
    return -(-seconds // 10) * 10


def lead_warning(run: Path, recipe: Recipe) -> str | None:
    """A line where the recipe's warning is shorter than the last drill of this run found necessary; None where it is
    not, or where there was no drill."""
    from data_prep.files import read_json

    lead: object = None
    with suppress(UserError, OSError, KeyError, TypeError):
        lead = read_json(Chain(run).drill_file)["lead_s"]
    if not isinstance(lead, int | float) or recipe.slurm.signal_lead_s >= lead:
        return None
    return (
        f"warning: slurm.signal_lead_s = {recipe.slurm.signal_lead_s} is shorter than the {lead:.0f} s that the last "
        "drill of this run found necessary to save; what is not saved is computed again"
    )
