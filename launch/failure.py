"""How a start of the ranks ended badly, in words: which rank, of what, where its log is.

Invariant: the first rank that failed is the cause; what the others said afterwards is only that they lost it.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from train.exit_codes import DEFECT, HUNG

_LINES = 12


class RankFailure(Exception):
    """A rank ended by a signal or an exception; the message holds the end of its log and where the rest is.

    Attributes:
        line: what happened, without the log. cause: the same without what differs between equal failures.
        exit_code: what the command ends with. hosts: the nodes that it happened on, where they are known.
        again_here: whether starting again on the same nodes could help.
        repeated: whether it happened twice at one step.
    """

    exit_code = DEFECT
    again_here = True
    repeated = False

    def __init__(self, message: str, *, line: str, cause: str, hosts: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.line, self.cause, self.hosts = line, cause, tuple(hosts)


class Hung(RankFailure):
    """Nobody moved any more; the line is the verdict."""

    exit_code = HUNG

    def __init__(self, line: str, *, hosts: Sequence[str] = ()) -> None:
        cause = normalised(re.sub(r"\bfor \d+ s|pid \d+|host \S+", "", line))
        super().__init__(line, line=line, cause=cause, hosts=hosts)


class NodeFailure(RankFailure):
    """Nodes did not come, are sick, or are gone."""

    again_here = False


def hosts_of(verdict: Mapping[str, Any]) -> list[str]:
    """The nodes of the ranks that a verdict accuses; none where all wait for each other."""
    guilty = set(verdict.get("guilty", ()))
    return sorted({w["host"] for w in verdict.get("ranks", ()) if w["rank"] in guilty and "host" in w})


def normalised(line: str) -> str:
    """A line without numbers, addresses and folders, so that equal failures are equal."""
    line = re.sub(r"(/[^\s/:'\"]+)+", "PATH", line)
    return " ".join(re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", line).split())


_LOST = re.compile(
    r"connection (closed|reset)|closed by peer|broken pipe|ncclRemoteError|remote process exited|socket timeout", re.I
)


def only_lost_others(said: str) -> bool:
    """Whether the last line of a rank's log says no more than that another rank is gone: then it is no culprit."""
    lines = said.splitlines()
    return bool(lines) and _LOST.search(lines[-1]) is not None


def signal_name(code: int) -> str:
    """The signal of a negative exit code."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


class Logs:
    """What the ranks of one start write; logs of earlier starts stay in front of it in the same files."""

    def __init__(self, folder: Path, ranks: int) -> None:
        self.folder = folder
        self.places = [folder / f"rank-{rank}" for rank in range(ranks)]
        for place in self.places:
            place.mkdir(parents=True, exist_ok=True)
        self._begin = [self._size(place / "stderr.log") for place in self.places]

    @staticmethod
    def _size(path: Path) -> int:
        return path.stat().st_size if path.exists() else 0

    def errors(self, rank: int) -> str:
        """What a rank has written to its standard error since it was started."""
        path = self.places[rank] / "stderr.log"
        if not path.exists():
            return ""
        with path.open("rb") as stream:
            stream.seek(self._begin[rank])
            return stream.read().decode(errors="replace").strip()

    def end(self, first: int) -> str:
        """The last lines of the rank that failed first; where it left none, of one that left a traceback."""
        texts = {rank: self.errors(rank) for rank in (first, *range(len(self.places)))}
        told = [rank for rank, text in texts.items() if text]
        if not told:
            return "the ranks left no message"
        rank = first if texts[first] else max(told, key=lambda r: ("Traceback" in texts[r], len(texts[r])))
        return f"End of {self.places[rank] / 'stderr.log'}:\n" + "\n".join(texts[rank].splitlines()[-_LINES:])


def rank_failure(phase: str, rank: int, code: int, logs: Logs, *, who: str, host: str | None = None) -> RankFailure:
    """The failure of a start whose first rank to fail ended with this code. `who`: the rank in words.

    A rank that only lost another is named, and its host is not blamed.
    """
    if code < 0:
        cause = signal_name(code)
        line = f"{who} was killed by {cause}"
        if cause == "SIGKILL":
            line += " (by the system, for want of memory? `dmesg` tells)"
    else:
        last = logs.errors(rank).splitlines()[-1:]
        cause = normalised(last[0]) if last else f"exit code {code}"
        line = f"{who} ended with exit code {code}" + (f" ({last[0].strip()[:200]})" if last else "")
    message = f"{phase} failed in a rank: {line}. {logs.end(rank)}\nAll logs: {logs.folder}"
    return RankFailure(
        message, line=line, cause=cause, hosts=[host] if host and not only_lost_others(logs.errors(rank)) else []
    )
