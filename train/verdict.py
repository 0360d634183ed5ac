"""Which rank holds up the others: from what every rank last reported and where its threads stand.

Invariant: a verdict needs nothing of the hung processes but files, and a C-level signal handler where their interpreter
is blocked; who cannot even answer that is said to give no answer. Durations are by the watcher's own clock and only
count while it ran itself: a machine that slept, or a job that was suspended as a whole, is no hang.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.files import write_json

REQUEST, VERDICT, STACKS = "stacks.request", "verdict.json", "stacks"
ANSWERED = "asked for its stacks:"
STACK_SIGNAL = signal.SIGQUIT
ANSWER_S = 3.0
"""Seconds that a rank has to write its stacks; its thread looks once a second."""
SIGNAL_S = 1.0
POLL_S = 0.05


class Beat(NamedTuple):
    """What a rank last reported: `passed` places since it started, `in_step` of them since its step changed."""

    rank: int
    host: str
    pid: int
    place: str
    step: int | None
    passed: int
    in_step: int
    stepped: bool

    @property
    def where(self) -> str:
        """The place in words."""
        return f"'{self.place}'" + (f" of step {self.step}" if self.step is not None else "")

    @property
    def order(self) -> tuple[int, int]:
        """How far it is; counted anew in every step, so that ranks which differ in one do not stay apart."""
        return (-1 if self.step is None else self.step, self.in_step)


def beat_file(folder: Path, rank: int) -> Path:
    """Where a rank reports."""
    return folder / f"rank-{rank:04d}.json"


def stack_file(folder: Path, rank: int) -> Path:
    """Where a rank leaves its stacks."""
    return folder / STACKS / f"rank-{rank:04d}.txt"


def read_beats(folder: Path, ranks: int) -> dict[int, Beat]:
    """The last report of every rank that has made one; one that is being written is left out."""
    found = {}
    for rank in range(ranks):
        with suppress(OSError, ValueError, TypeError):
            found[rank] = Beat(**json.loads(beat_file(folder, rank).read_text(encoding="utf-8")))
    return found


Frame = tuple[str, int, str]


def main_frames(text: str) -> list[Frame]:
    """(file, line, function) of the main thread, innermost first, from the last dump of a stack file."""
    named = re.search(r"main thread (0x[0-9a-f]+)", text)
    if named is None:
        return []
    parts = re.split(r"^(?:Current thread|Thread) (0x[0-9a-f]+).*$", text, flags=re.MULTILINE)
    dumps = [body for ident, body in zip(parts[1::2], parts[2::2], strict=True) if int(ident, 16) == int(named[1], 16)]
    if not dumps:
        return []
    lines = re.findall(r'^  File "(.*)", line (\d+) in (.*)$', dumps[-1], flags=re.MULTILINE)
    return [(file, int(line), function) for file, line, function in lines]


def waits_for_others(frames: Sequence[Frame]) -> bool:
    """Whether these frames end in communication between ranks."""
    return any("/torch/distributed/" in file or "/deepspeed/" in file for file, _, _ in frames[:3])


def frame_words(frames: Sequence[Frame]) -> str:
    """The innermost frame; where that is a library's, also the innermost one that is ours."""

    def words(frame: Frame) -> str:
        return f"{frame[2]} ({Path(frame[0]).name}:{frame[1]})"

    if not frames:
        return "unknown code"
    root = str(Path(__file__).resolve().parent.parent)
    own = next((f for f in frames if f[0].startswith(root) and "site-packages" not in f[0]), None)
    return words(frames[0]) + (f", called by {words(own)}" if own not in (None, frames[0]) else "")


def _process_words(beat: Beat) -> str:
    """What this machine's kernel says of a process that does not answer."""
    if beat.host != socket.gethostname():
        return "its process or its host is gone or stopped"
    try:
        state = Path(f"/proc/{beat.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (OSError, IndexError):
        return "its process is gone" if sys.platform == "linux" else "its process is gone or stopped"
    known = {"T": "its process is stopped (SIGSTOP?)", "D": "its process waits for a disk or file system"}
    return known.get(state, "its process is gone" if state in "ZX" else f"its process is in state {state}")


def _ranks_words(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 0-3, 7`."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return f"rank{'s' if len(ranks) > 1 else ''} " + ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


@dataclass(frozen=True)
class Witness:
    """All that is known of one rank when nobody moves. `answer`: "thread", "signal", or "" for none."""

    rank: int
    beat: Beat | None
    still_s: float
    answer: str
    frames: list[Frame]

    @property
    def facts(self) -> dict[str, Any]:
        """For verdict.json."""
        known = {} if self.beat is None else {k: getattr(self.beat, k) for k in ("host", "pid", "place", "step")}
        return {
            "rank": self.rank, **known, "still_s": round(self.still_s, 1), "answer": self.answer or None,
            "frames": [f"{file}:{line} {function}" for file, line, function in self.frames[:5]],
        }  # fmt: skip

    def accused(self, why: str) -> str:
        """The sentence about a rank that holds up the others."""
        if self.beat is None:
            return f"rank {self.rank} never reported: it was not started, or it hangs before its first line"
        who = f"rank {self.rank} (host {self.beat.host}, pid {self.beat.pid})"
        where = f"at {self.beat.where} for {self.still_s:.0f} s"
        if not self.answer:
            return f"{who} gives no answer: {_process_words(self.beat)}; it was last {where}"
        return f"{who} {why}: {where}, in {frame_words(self.frames)}"


def accuse(witnesses: Sequence[Witness]) -> tuple[list[int], str]:
    """The ranks that hold up the others, and the sentences that say why.

    Who cannot answer comes first, then whose interpreter is blocked, then who has passed the fewest places, then,
    where all are at the same place, who does not wait for others.
    """
    silent = [w for w in witnesses if w.beat is None or not w.answer]
    blocked = [w for w in witnesses if w.answer == "signal"]
    guilty, why = silent + blocked, "blocks its interpreter in a call outside Python"
    if not guilty:
        orders = {w.rank: w.beat.order for w in witnesses if w.beat}
        behind = [w for w in witnesses if orders[w.rank] == min(orders.values())]
        guilty, why = behind, "is behind"
        if len(behind) == len(witnesses):
            guilty, why = [w for w in behind if not waits_for_others(w.frames)], "waits for nobody and does not go on"
    rest = [w for w in witnesses if w not in guilty]
    if not guilty:
        first = witnesses[0]
        assert first.beat is not None
        return [], (
            f"all ranks wait for each other at {first.beat.where}, in {frame_words(first.frames)}: "
            "look at the network between them"
        )
    text = "; ".join(w.accused(why) for w in guilty[:3])
    if len(guilty) > 3:
        text += f"; so do {_ranks_words([w.rank for w in guilty[3:]])}"
    if rest and rest[0].beat is not None:
        others = _ranks_words([w.rank for w in rest])
        text += (
            f". {others[0].upper()}{others[1:]} wait{'s' * (len(rest) == 1)} at {rest[0].beat.where}, "
            f"in {frame_words(rest[0].frames[:1])}"
        )
    return sorted(w.rank for w in guilty), text


class Watch:
    """Sees whether anybody moves, and judges when nobody does.

    Args:
        folder: where the ranks report; emptied before every start. hang_after_s: seconds in which nobody passes a place
            that make a hang, start_within_s the same until a first step has ended. patience_s: seconds more before this
            watcher acts; each deputy has more than the one before it. gap_s: the most that one look counts for.
    """

    def __init__(
        self, folder: Path, *, ranks: int, hang_after_s: float, start_within_s: float,
        patience_s: float = 0.0, gap_s: float = 3.0,
    ) -> None:  # fmt: skip
        self._folder, self._ranks = folder, ranks
        self._limits = (start_within_s, hang_after_s)
        self._patience_s, self._gap_s = patience_s, gap_s
        self._looked = time.monotonic()
        self._passed = dict.fromkeys(range(ranks), -1)
        self._still_s = dict.fromkeys(range(ranks), 0.0)
        self._stepped = False

    def look(self, own: Beat | None = None) -> bool:
        """Whether it is time to judge. `own`: the watcher's own report, which needs no working disk."""
        now = time.monotonic()
        spent_s, self._looked = min(now - self._looked, self._gap_s), now
        beats = read_beats(self._folder, self._ranks)
        if own is not None:
            beats[own.rank] = own
        for rank in range(self._ranks):
            beat = beats.get(rank)
            if beat is not None and beat.passed != self._passed[rank]:
                self._passed[rank], self._still_s[rank] = beat.passed, 0.0
                self._stepped |= beat.stepped
            else:
                self._still_s[rank] += spent_s
        return min(self._still_s.values()) >= self._limits[self._stepped] + self._patience_s

    def judge(self) -> str:
        """Ask every rank for its stacks, write verdict.json, and return its line. Takes up to four seconds."""
        asked = time.monotonic()
        with suppress(OSError):
            (self._folder / REQUEST).touch()
        beats = read_beats(self._folder, self._ranks)
        waiting = set(beats)
        while waiting and time.monotonic() < asked + ANSWER_S:
            waiting = {rank for rank in waiting if ANSWERED not in self._stacks(rank)}
            time.sleep(POLL_S)
        answers = dict.fromkeys(set(beats) - waiting, "thread")
        answers |= dict.fromkeys(self._signal([beats[rank] for rank in waiting]), "signal")
        witnesses = [
            Witness(r, beats.get(r), self._still_s[r], answers.get(r, ""), main_frames(self._stacks(r)))
            for r in range(self._ranks)
        ]
        guilty, text = accuse(witnesses)
        still_s = min(self._still_s.values())
        line = f"hang: no rank moved for {still_s:.0f} s: {text}. Stacks of all: {self._folder / STACKS}"
        if not (self._folder / VERDICT).exists():
            facts = {"line": line, "guilty": guilty, "ranks": [w.facts for w in witnesses]}
            with suppress(Exception):  # a full disk must not keep the line from the log
                write_json(self._folder / VERDICT, facts)
        return line

    def _stacks(self, rank: int) -> str:
        try:
            return stack_file(self._folder, rank).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _signal(self, silent: Sequence[Beat]) -> list[int]:
        """Ask processes of this host by a signal, which C code answers; returns the ranks that did."""
        here = [b for b in silent if b.host == socket.gethostname()]
        before = {b.rank: len(self._stacks(b.rank)) for b in here}
        for beat in here:
            with suppress(OSError):
                os.kill(beat.pid, STACK_SIGNAL)
        asked = time.monotonic()
        while time.monotonic() < asked + SIGNAL_S and any(len(self._stacks(r)) == n for r, n in before.items()):
            time.sleep(POLL_S)
        if here:
            time.sleep(POLL_S)  # a dump is written line by line
        return [rank for rank, length in before.items() if len(self._stacks(rank)) > length]
