"""What is remembered of nodes: `runs/.nodes/NODE.jsonl`, one line an event, and whom it keeps out of the next jobs.

All runs beside each other share the folder: a node that failed one run is left out by the next. A line says until when
(`until`), decided when it is written, so that a person reads in the file what a program will do. Lines are only ever
appended, also by `--forget`; a damaged line is passed over and told.

Who is kept out, and for how long:
- a node failure, a sick node and a node that did not come: at once;
- a killed or hung rank and a slow node: when it happened twice on this node while no other node had it in the same
  runs, for a program's own mistake visits other nodes too;
- for 12 h, doubled each time it happens again within 30 days, to at most 7 days;
- never more than a tenth of the partition's nodes, or one where that is less: the worst first, the others are named.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import disk_errors

HOUR = 3600.0
DAY = 24 * HOUR
FIRST_S, LONGEST_S = 12 * HOUR, 7 * DAY
MEMORY_S = 30 * DAY  # what is older counts no more
SAME_S = 600.0  # several events of one job within this time are one incident: it may be requeued onto the node at once
TWICE_S = 60.0  # a crash of the same job so much later is a second one
SHARE = 0.1
AT_ONCE = frozenset({"failed", "sick", "roll_call_missing"})
TWICE = frozenset({"rank_killed", "hung", "slow"})
FORGOTTEN = "forgotten"
_LOCK_S = 2.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Event:
    """One line: what happened on a node, when (epoch s), in which job of which run, and until when it keeps it out."""

    time: float
    node: str
    kind: str
    what: str
    job: str = ""
    run: str = ""
    until: float = 0.0


@dataclass
class Exclusions:
    """Who is kept out now.

    Attributes:
        excluded: node → why, and until when.
        spared: node → why it would be kept out too, were the limit not reached.
        damaged: places of lines that could not be read.
    """

    excluded: dict[str, str] = field(default_factory=dict)
    spared: dict[str, str] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)


def folder_of(runs: Path) -> Path:
    """Where the runs of a folder remember nodes."""
    return runs / ".nodes"


def _file(folder: Path, node: str) -> Path:
    if not _NAME.fullmatch(node):
        raise UserError(f"node {node!r}", "is no name of a node", "give the name as `sinfo -N` shows it")
    return folder / f"{node}.jsonl"


def remember(folder: Path, node: str, kind: str, what: str, *, job: str = "", run: str = "") -> Event:
    """Append what happened on a node, and decide until when it is kept out.

    Args:
        folder: the memory, see `folder_of`; it is made where it is missing.
        node: its name as the scheduler writes it.
        kind: failed, hung, sick, slow, rank_killed or roll_call_missing.
        what: one line for a person.
        job: the job's id.
        run: the run's name.

    Raises:
        UserError: the folder cannot be written, or the kind or the node's name is none.
    """
    if kind not in AT_ONCE | TWICE | {FORGOTTEN}:
        raise UserError(f"kind {kind!r}", "is none", f"use one of {', '.join(sorted(AT_ONCE | TWICE))}")
    path, now = _file(folder, node), time.time()
    what = " ".join(what.split())[:1000]
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as stream:
            _lock(stream.fileno())
            events, _ = _read(path)
            others = events_of(folder)[0] if kind in TWICE else {}
            until = _until(Event(now, node, kind, what, job, run), events, {**others, node: events})
            event = Event(round(now, 3), node, kind, what, job, run, round(until, 3))
            fields = {name: value for name, value in event.__dict__.items() if name != "node"}
            line = json.dumps(fields, ensure_ascii=False).encode() + b"\n"
            if stream.tell() and not _ends_whole(path):  # a line that was cut off must not swallow this one
                line = b"\n" + line
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
    return event


def _lock(descriptor: int) -> None:
    """One writer at a time; a file system without locks, or one whose holder died, only delays."""
    until = time.monotonic() + _LOCK_S
    while time.monotonic() < until:
        with suppress(OSError):
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.02)


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def _read(path: Path) -> tuple[list[Event], list[str]]:
    """Events since the node was last forgotten, and the places of damaged lines."""
    events: list[Event] = []
    damaged = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            event = Event(
                time=float(values["time"]),
                node=path.stem,
                kind=str(values["kind"]),
                what=str(values["what"]),
                job=str(values.get("job", "")),
                run=str(values.get("run", "")),
                until=float(values.get("until", 0.0)),
            )
        except (ValueError, TypeError, KeyError, AttributeError):
            damaged.append(f"{path.name}, line {number}")
            continue
        events = [] if event.kind == FORGOTTEN else [*events, event]
    return events, damaged


def events_of(folder: Path) -> tuple[dict[str, list[Event]], list[str]]:
    """Node → its events in the order of the file, and the places of damaged lines. No folder: nothing is remembered."""
    found, damaged = {}, []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            events, bad = _read(path)
        except OSError as error:
            damaged.append(f"{path.name} ({error.strerror})")
            continue
        damaged += bad
        if events:
            found[path.stem] = events
    return found, damaged


def _counts(event: Event, events: Iterable[Event], everyone: Mapping[str, Sequence[Event]]) -> bool:
    """Does an event keep its node out? `everyone`: all nodes' events."""
    if event.kind in AT_ONCE:
        return True
    recent = event.time - MEMORY_S
    elsewhere = {
        (other.kind, other.run)
        for node, theirs in everyone.items()
        for other in theirs
        if node != event.node and other.time > recent
    }
    own = [
        former
        for former in (*events, event)
        if former.kind == event.kind and former.time > recent and (former.kind, former.run) not in elsewhere
    ]
    return event in own and _incidents(own, apart_s=TWICE_S) > 1


def _incidents(events: Sequence[Event], *, apart_s: float) -> int:
    """How often it happened: events of one job within so many seconds are one."""
    heads: list[Event] = []
    for event in events:
        if not (heads and heads[-1].job == event.job and event.time - heads[-1].time < apart_s):
            heads.append(event)
    return len(heads)


def _until(event: Event, events: Sequence[Event], everyone: Mapping[str, Sequence[Event]]) -> float:
    """Until when this event keeps its node out (epoch s); 0: it does not."""
    if event.kind == FORGOTTEN or not _counts(event, events, everyone):
        return 0.0
    causes = [former for former in events if former.until and former.time > event.time - MEMORY_S]
    if causes and causes[-1].job == event.job and event.time - causes[-1].time < SAME_S:
        return causes[-1].until  # the same incident, seen once more
    length = min(LONGEST_S, FIRST_S * 2.0 ** _incidents(causes, apart_s=SAME_S))
    return max(event.time + length, causes[-1].until if causes else 0.0)


def exclusions(folder: Path, *, known: Sequence[str], now: float | None = None) -> Exclusions:
    """Who is kept out now, who is spared, and what could not be read.

    Args:
        folder: the memory.
        known: the partition's nodes: others are not looked at, and a tenth of these is the limit (at least one).
        now: epoch s; None: the present.
    """
    now = time.time() if now is None else now
    events, damaged = events_of(folder)
    candidates = []
    for node in dict.fromkeys(known):
        causes = [event for event in events.get(node, []) if event.until > now and event.time > now - MEMORY_S]
        if causes:
            last = max(causes, key=lambda event: event.until)
            longest = last.until - last.time  # doubled each time: the worst have the longest
            candidates.append((-longest, -len(events[node]), node, last))
    limit = max(1, int(SHARE * len(set(known))))
    found = Exclusions(damaged=damaged)
    for place, (*_, node, event) in enumerate(sorted(candidates, key=lambda each: each[:3])):
        why = f"{event.kind}: {event.what} (until {moment(event.until)})"
        (found.excluded if place < limit else found.spared)[node] = why
    return found


def excluded(folder: Path, *, known: Sequence[str], now: float | None = None) -> dict[str, str]:
    """Node → why, for the nodes that the next job is to be kept away from; see `exclusions`."""
    return exclusions(folder, known=known, now=now).excluded


def forget(folder: Path, node: str) -> int:
    """Let a node's past count no more; returns how many events that were.

    Raises:
        UserError: nothing is remembered of this node.
    """
    events = events_of(folder)[0]
    if node not in events:
        there = ", ".join(sorted(events)) or "none"
        raise UserError(f"node {node!r}", "nothing is remembered of it", f"remembered are: {there}")
    remember(folder, node, FORGOTTEN, "forgotten by hand")
    return len(events[node])


def moment(when: float) -> str:
    """Local time to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def table(folder: Path, *, now: float | None = None) -> list[dict[str, Any]]:
    """A row a node, those kept out first: node, until (epoch s, 0: not), counts (kind → n), last (Event)."""
    now = time.time() if now is None else now
    rows = []
    for node, events in events_of(folder)[0].items():
        counts: dict[str, int] = {}
        for event in events:
            counts[event.kind] = counts.get(event.kind, 0) + 1
        until = max(event.until for event in events)
        rows.append({"node": node, "until": until if until > now else 0.0, "counts": counts, "last": events[-1]})
    return sorted(rows, key=lambda row: (-row["until"], row["node"]))
