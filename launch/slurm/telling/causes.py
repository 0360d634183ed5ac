"""Why a link of a chain ended before its work was done, in a few words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from launch.slurm.telling.plain import first_line, plain

_STOPPED_BY_US = {"cancelled": "cancelled by the user", "resized": "stopped to go on with other nodes"}
_NEAR_LIMIT_S = 900.0


class Run(Protocol):
    """One run of a job as accounting knows it (`launch.slurm.scheduler.commands.JobState`); times are epoch seconds."""

    @property
    def id(self) -> str:
        """As accounting writes it."""
        ...

    @property
    def restarts(self) -> int:
        """How often it was requeued before this run."""
        ...

    @property
    def state(self) -> str:
        """COMPLETED, PREEMPTED, NODE_FAIL …"""
        ...

    @property
    def nodes(self) -> tuple[str, ...]:
        """Where it ran."""
        ...

    @property
    def submitted(self) -> float | None:
        """When it was handed in, or requeued."""
        ...

    @property
    def eligible(self) -> float | None:
        """When nothing but nodes was wanting."""
        ...

    @property
    def started(self) -> float | None:
        """When it got its nodes."""
        ...

    @property
    def ends(self) -> float | None:
        """When it lost them; of a running one: when its time limit is."""
        ...

    @property
    def exit_code(self) -> str | None:
        """As accounting writes it: code:signal."""
        ...


def event_of(events: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """The last event of a kind; empty where there is none."""
    return next((event for event in reversed(events) if event["event"] == kind), {})


def cause_of(
    events: Sequence[Mapping[str, Any]],
    run: Run | None,
    *,
    stop: str | None = None,
    next_nodes: Sequence[str] | None = None,
) -> str:
    """A few words; "" where the link did all that it was there for.

    Args:
        events: of the link. run: what accounting says of it, None where it is switched off.
        stop: why we asked the job to end (launch/slurm/chain.py), None where we did not.
        next_nodes: the nodes of the next link, which show the one that failed by its absence.
    """
    end = event_of(events, "end")
    outcome, state = end.get("outcome"), run.state if run is not None else ""
    if outcome == "done":
        return ""
    if outcome == "stopped":
        return _stopped(events, end, state, stop)
    if outcome == "superseded":
        return "a later start of the same job had taken over"
    nodes = event_of(events, "begin").get("nodes") or (run.nodes if run is not None else ())
    if state == "NODE_FAIL":  # what the ranks said is only that they lost the others
        return _failed_node(nodes, next_nodes)
    if outcome is not None:
        reason = event_of(events, "ranks_ended").get("reason") if not end.get("reason") else end["reason"]
        return first_line(reason or "failed without a message", 120)
    words = {
        "PREEMPTED": "preempted",
        "TIMEOUT": "time limit",
        "BOOT_FAIL": "a node did not boot",
        "OUT_OF_MEMORY": "out of memory",
        "REQUEUED": "requeued by hand",
        "DEADLINE": "its deadline passed",
        "REVOKED": "taken by another cluster",
        "COMPLETED": "ended without a word",
    }
    if state in words:
        return words[state]
    if state == "CANCELLED":
        return _STOPPED_BY_US.get(stop or "", "cancelled outside rumpun")
    if state == "FAILED" and run is not None:
        return f"killed or failed (exit code {plain(run.exit_code or 'unknown', 20)})"
    if stop in _STOPPED_BY_US:
        return _STOPPED_BY_US[stop]
    return "ended without a word (no accounting tells)"


def _stopped(events: Sequence[Mapping[str, Any]], end: Mapping[str, Any], state: str, stop: str | None) -> str:
    if stop is not None:
        return _STOPPED_BY_US.get(stop, plain(stop, 60))
    if state == "PREEMPTED":
        return "preempted"
    reason = str(end.get("reason") or event_of(events, "ranks_ended").get("reason") or "")
    limit = event_of(events, "begin").get("end_limit")
    left_s = float(limit) - float(end["time"]) if limit else math.inf
    if "time limit" in reason or state == "TIMEOUT" or ("USR" in reason and left_s < _NEAR_LIMIT_S):
        return "time limit"
    if state == "REQUEUED" and end.get("next") != "requeue":
        return "requeued by hand"
    if (
        "TERM" in reason
    ):  # a job that requeues itself in the time that preemption leaves it is not accounted as preempted
        return "preempted (SIGTERM)" if state == "REQUEUED" else "preempted or asked to end (SIGTERM)"
    if "USR" in reason:
        return f"warned of its time limit or of a preemption ({plain(reason, 20)})"
    return first_line(f"asked to stop ({reason})" if reason else "asked to stop", 120)


def _failed_node(nodes: Sequence[str], next_nodes: Sequence[str] | None) -> str:
    """Which node failed, as far as it shows."""
    names = [plain(node, 40) for node in nodes]
    gone = [name for name in names if name not in (next_nodes or names)]
    if len(gone) == 1 or len(names) == 1:
        return f"{(gone or names)[0]} failed"
    return f"one of {', '.join((gone or names)[:6])} failed" if names else "a node failed"
