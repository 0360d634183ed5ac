"""What becomes of a link that did not finish its job: it goes on by one of three routes, or it says why not.

Invariant: nothing loops without gain. A link is followed by another only where that could help: not after a mistake,
not after the same failure at the same step, not when three in a row have gained nothing, not beyond the budget, and
never where somebody has cancelled the job.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launch.slurm.config import Route, SlurmConfig
from train.exit_codes import DEFECT, DONE, STOPPED, SUPERSEDED

WITHOUT_GAIN = 3
"""Links in a row that may end with nothing new saved."""


@dataclass(frozen=True)
class Ending:
    """How a link ended, as its controller saw it.

    Attributes:
        outcome: done, stopped, failed, hung, mistake, diverged or superseded. reason: one line.
        exit: of `rumpun`. cause: the reason without what differs between equal failures.
        repeated: whether it failed so twice at the same step within this link. hosts: nodes that it happened on.
        leave_out: whether these are to be left out of the next link.
        step: the last that was computed. gained: grows with whatever is done and saved; compared between links.
    """

    outcome: str
    reason: str = ""
    exit: int = DONE
    cause: str = ""
    repeated: bool = False
    hosts: tuple[str, ...] = ()
    leave_out: bool = False
    step: int = 0
    gained: int = 0

    def facts(self) -> dict[str, Any]:
        """For the link's record."""
        return {
            "outcome": self.outcome, "reason": self.reason, "cause": self.cause, "hosts": list(self.hosts),
            "step": self.step, "gained": self.gained,
        }  # fmt: skip


@dataclass(frozen=True)
class Next:
    """What follows: a route, or "none" and why. `exit` is what the link's process ends with."""

    route: str
    why: str
    exit: int


def _former(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """How each link before has ended. One whose requeue was refused has said it twice: the last word holds."""
    ends: dict[int, Mapping[str, Any]] = {}
    link = 0
    for event in events:
        link += event["event"] == "begin"
        if event["event"] == "end":
            ends[link] = event
    return list(ends.values())


def decide(
    ending: Ending,
    *,
    events: Sequence[Mapping[str, Any]],
    settings: SlurmConfig,
    route: Route,
    last_of_array: bool = False,
    stopped: str | None = None,
) -> Next:
    """Whether and how a link is followed by another.

    Args:
        events: of this job before this ending, since it was submitted. stopped: why it shall not go on by itself.
    """
    if ending.outcome == "done":
        return Next("none", "finished", DONE)
    if ending.outcome == "superseded":
        return Next("none", "a newer start goes on", SUPERSEDED)
    if ending.outcome in ("mistake", "diverged"):
        return Next("none", "starting again would not mend it", ending.exit)
    code = ending.exit or DEFECT
    if stopped is not None:
        return Next("none", f"{stopped} by `rumpun`", STOPPED if ending.outcome == "stopped" else code)
    ends = _former(events)
    links = sum(event["event"] == "begin" for event in events)
    if ending.outcome in ("failed", "hung"):
        same = [e for e in ends if e["outcome"] in ("failed", "hung") and e.get("cause") == ending.cause]
        if ending.repeated or any(e.get("step") == ending.step for e in same):
            return Next("none", f"it failed in the same way at the same step (after step {ending.step}) before", code)
    if links > settings.requeues:
        why = f"it went on {links - 1} times, and slurm.requeues = {settings.requeues} allows no more"
        return Next("none", why, code)
    recent = ends[-(WITHOUT_GAIN - 1) :]
    if len(recent) == WITHOUT_GAIN - 1 and all(e.get("gained") == ending.gained for e in recent):
        why = f"{WITHOUT_GAIN} links in a row saved nothing new: the time limit or the warning is too short for a step"
        return Next("none", why, code)
    if route == "array":
        if last_of_array:
            return Next("none", "this was the last link of the array (slurm.links)", code)
        return Next("array", "the next link of the array goes on", DONE)
    return Next(route, "", STOPPED)
