"""Which steps of a ledger count: those that were not undone by a later start.

Invariant: the steps that count are 1, 2, 3 …, and the places they cover are gapless from 0, whatever was undone and
computed again in between. A start goes on from a step that a checkpoint vouches for, or from nothing before any.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

Record = Mapping[str, Any]


class Start(NamedTuple):
    """One start of the phase; it went on after `step`, and undid `undone` steps that came after it."""

    line: int
    step: int
    undone: int
    ranks: int
    nodes: int
    zero_stage: int
    batch: int
    job: str | None


class SetAside(NamedTuple):
    """Places whose steps a rewind took back: the weights went back to those after `to_step`, and training went on."""

    to_step: int
    step: int
    first: int
    end: int
    reason: str


class Broken(Exception):
    """A record that cannot follow those before it; the message says why."""


@dataclass
class Tape:
    """What the records amount to; `add` takes them one by one and raises `Broken`.

    Attributes:
        lines, ends: line and end of the places of every step that counts; step s is entry s - 1.
        undone: lines of the steps that were undone.
        starts, set_aside, stops: see there; stops as (step, reason).
        found: starts whose checkpoint had lost its line in the crash. older: starts from another than the newest one.
        ended: whether the phase says that it is over.
    """

    header: Record
    lines: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("q"))
    undone: set[int] = field(default_factory=set)
    starts: list[Start] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    stops: list[tuple[int, str]] = field(default_factory=list)
    found: int = 0
    older: int = 0
    ended: bool = False
    _saved: list[int] = field(default_factory=list)
    _open: bool = False

    @property
    def step(self) -> int:
        """The last step."""
        return len(self.ends)

    def end_of(self, step: int) -> int:
        """The place after those of a step; 0 for step 0."""
        return self.ends[step - 1] if step else 0

    def add(self, line: int, record: Record) -> None:
        """Take the next record."""
        kinds: dict[str, Callable[[int, Record], None]] = {
            "start": self._start,
            "step": self._step,
            "checkpoint": self._checkpoint,
            "rewind": self._rewind,
            "stop": self._stop,
            "end": self._end,
        }
        if record["kind"] not in kinds:
            _broken(f"is a {record['kind']!r}, which is none of {', '.join(['header', *kinds])}")
        if record["kind"] not in ("start", "checkpoint") and not self._open:
            _broken(
                f"is a {record['kind']!r}, but no start comes before it" + (" after the stop" if self.stops else "")
            )
        kinds[record["kind"]](line, record)

    def _start(self, line: int, record: Record) -> None:
        step = record["step"]
        if record["restart"] != len(self.starts):
            _broken(f"says it is restart {record['restart']}, but {len(self.starts)} starts come before it")
        if step and step not in self._saved:
            _broken(f"goes on after step {step}, for which no checkpoint vouches")
        if not step and self._saved:
            _broken(f"starts over, although the checkpoint after step {self._saved[-1]} was there")
        if record["position"] != self.end_of(step):
            _broken(f"goes on at place {record['position']}, but step {step} ended at place {self.end_of(step)}")
        self.older += bool(self._saved) and step != self._saved[-1]
        undone = self.lines[step:]
        self.undone.update(undone)
        del self.lines[step:], self.ends[step:]
        self._saved = [s for s in self._saved if s <= step]
        self.set_aside = [w for w in self.set_aside if w.step <= step]
        facts = {name: record[name] for name in ("ranks", "nodes", "zero_stage", "batch", "job")}
        self.starts.append(Start(line=line, step=step, undone=len(undone), **facts))
        self._open, self.ended = True, False

    def _step(self, line: int, record: Record) -> None:
        step, first, end = record["step"], record["first"], record["end"]
        if step != self.step + 1:
            _broken(f"is step {step}, but step {self.step + 1} comes after step {self.step}")
        if first != self.end_of(self.step):
            kind = "leaves out" if first > self.end_of(self.step) else "repeats"
            low, high = sorted((first, self.end_of(self.step)))
            _broken(f"step {step} {kind} the places {low}..{high - 1}: it begins at {first}")
        batch = self.starts[-1].batch
        if not first < end <= self.header["end"] or (end - first != batch and end != self.header["end"]):
            _broken(f"step {step} covers the places {first}..{end - 1}, which is no batch of {batch}")
        if record["epoch"] != first // self.header["epoch_samples"]:
            _broken(f"step {step} is of epoch {first // self.header['epoch_samples']}, not {record['epoch']}")
        self.lines.append(line)
        self.ends.append(end)

    def _checkpoint(self, line: int, record: Record) -> None:
        if not 0 < record["step"] <= self.step:
            _broken(f"is a checkpoint after step {record['step']}, but the last step was {self.step}")
        self._saved.append(record["step"])
        self.found += bool(record.get("found"))

    def _rewind(self, line: int, record: Record) -> None:
        window = SetAside(record["to_step"], record["step"], record["first"], record["end"], record["reason"])
        if window.step != self.step or window.end != self.end_of(self.step):
            _broken(f"rewinds after step {window.step} at place {window.end}, but step {self.step} was the last one")
        if window.to_step not in self._saved:
            _broken(f"rewinds to step {window.to_step}, for which no checkpoint vouches")
        if window.first != self.end_of(window.to_step):
            _broken(
                f"sets the places {window.first}..{window.end - 1} aside, but those since step {window.to_step} "
                f"begin at {self.end_of(window.to_step)}"
            )
        self.set_aside.append(window)

    def _stop(self, line: int, record: Record) -> None:
        if record["step"] != self.step:
            _broken(f"stops after step {record['step']}, but the last step was {self.step}")
        self.stops.append((record["step"], record["reason"]))
        self._open = False

    def _end(self, line: int, record: Record) -> None:
        if record["step"] != self.step or self.end_of(self.step) != self.header["end"]:
            _broken(
                f"says that the phase is over after step {record['step']}, but the places "
                f"{self.end_of(self.step)}..{self.header['end'] - 1} were not used"
            )
        self.ended = True


def _broken(what: str) -> NoReturn:
    raise Broken(what)
