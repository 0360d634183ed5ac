"""The request log: what was asked, answered and paid, one JSON line each, so that nothing is asked twice.

Invariant: a line is handed to the operating system before its answer is handed to the caller, so a killed process asks
again only what was on its way; it is on the disk (fsync) within a second or when the log is closed. A line without its
newline was never finished: it is cut off. Each process writes a file of its own and reads those of all.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.endpoint.request import Reply, Request
from data_prep.files import disk_errors

_SYNC_EVERY_S = 1.0
_FILE_BITS = 16
_MOST_FILES = (1 << _FILE_BITS) - 1
_LINE = re.compile(rb'\{"key": ?"([0-9a-f]{32})", ?"cost": ?([0-9.eE+-]+)(, ?"reply")?')


class RequestLog:
    """The log in a folder, opened for reading and appending; a context manager.

    Args:
        folder: made where missing. Holds requests*.jsonl and, for people, requests*.failed.jsonl: what the last run
            gave up.
        name: instead of "requests"; logs of several names in one folder know nothing of each other.

    Attributes:
        spent: cost of every line that was there when the log was opened.
        path: the file that this process writes.
        damaged: lines of which this process wanted the reply and could not read it.

    Raises:
        UserError: the disk is full or the folder may not be written (also while appending).
    """

    def __init__(self, folder: Path, *, name: str = "requests") -> None:
        self.folder, self._name = folder, name
        self.spent, self.damaged = 0.0, 0
        self._places: dict[bytes, int] = {}  # digest → offset and number of the file, in one small object
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self.path, self._file = self._own_file()
        self._let_go = weakref.finalize(self, os.close, self._file)  # one that nobody closed frees its file too
        self._failed_path = self.path.with_suffix(".failed.jsonl")
        self._failed_path.unlink(missing_ok=True)
        written = {path for path in folder.glob(f"{name}*.jsonl") if not path.name.endswith(".failed.jsonl")}
        self._files = sorted(written | {self.path})
        for number in range(len(self._files)):
            self._index(number)
        self._size = os.fstat(self._file).st_size
        self._own = self._files.index(self.path)
        self._synced_s = time.monotonic()

    def _own_file(self) -> tuple[Path, int]:
        """The first file that no other process holds, locked, and cut back to whole lines."""
        for number in range(_MOST_FILES):
            path = self.folder / (f"{self._name}-{number}.jsonl" if number else f"{self._name}.jsonl")
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                continue
            except OSError:  # a file system without locks: nobody can tell whose file this is, so take a new one
                os.close(file)
                path = self.folder / f"{self._name}-{os.uname().nodename}-{os.getpid()}-{time.time_ns()}.jsonl"
                return path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o644)
            _cut_tail(file)
            return path, file
        raise RuntimeError(f"{self.folder}: {_MOST_FILES} processes write this log")

    def _index(self, number: int) -> None:
        """Note where the replies of one file stand; the replies themselves are read when they are wanted."""
        offset = 0
        with self._files[number].open("rb") as stream:
            for line in stream:
                found = _LINE.match(line)
                if found and line.endswith(b"}\n"):
                    self.spent += float(found[2])
                    if found[3]:
                        self._places[bytes.fromhex(found[1].decode())] = offset << _FILE_BITS | number
                offset += len(line)

    def __len__(self) -> int:
        return len(self._places)

    def find(self, request: Request) -> Reply | None:
        """The reply to this request in the log, None where it was never answered or its line is damaged."""
        place = self._places.get(bytes.fromhex(request.key))
        if place is None:
            return None
        try:
            with self._files[place & _MOST_FILES].open("rb") as stream:
                stream.seek(place >> _FILE_BITS)
                line = json.loads(stream.readline())
            return Reply.from_json(line["reply"]) if line["key"] == request.key else None
        except (OSError, ValueError, KeyError, TypeError):
            self.damaged += 1
            return None

    def answered(self, request: Request, reply: Reply) -> None:
        """Append an answer and what it cost."""
        line = {"key": request.key, "cost": reply.cost, "reply": reply.to_json(), "label": request.label}
        self._places[bytes.fromhex(request.key)] = self._append(line) << _FILE_BITS | self._own

    def lost(self, request: Request, cost: float, why: str) -> None:
        """Append the most that a request can have cost whose answer never came."""
        self._append({"key": request.key, "cost": cost, "lost": why})

    def failed(self, request: Request, kind: str, why: str) -> None:
        """List a request that this run gave up; the next run asks it again."""
        line = {"key": request.key, "label": request.label, "kind": kind, "why": why}
        with disk_errors(self._failed_path), self._failed_path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _append(self, line: dict[str, Any]) -> int:
        data = (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "replace")
        offset = self._size
        with disk_errors(self.path):
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._file, rest) :]
            except OSError:
                os.ftruncate(self._file, offset)  # the disk is full: no half line stays
                raise
            self._size += len(data)
            if time.monotonic() - self._synced_s >= _SYNC_EVERY_S:
                self.sync()
        return offset

    def forget_replies(self) -> None:
        """Cut this process's file down to one line with what it cost."""
        self._places = {key: place for key, place in self._places.items() if place & _MOST_FILES != self._own}
        cost = 0.0
        with self.path.open("rb") as stream:
            for line in stream:
                cost += float(found[2]) if (found := _LINE.match(line)) else 0.0
        with disk_errors(self.path):
            os.ftruncate(self._file, 0)
        self._size = 0
        if cost:
            self._append({"key": "0" * 32, "cost": cost, "forgotten": True})

    def sync(self) -> None:
        """Have everything written so far on the disk; does nothing once closed."""
        if self._let_go.alive:
            os.fsync(self._file)
        self._synced_s = time.monotonic()

    def close(self) -> None:
        """Sync and let go of the file; closing twice does nothing."""
        self.sync()
        self._let_go()

    def __enter__(self) -> RequestLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cut_tail(file: int) -> None:
    """Shorten the file to its last newline."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - (1 << 16))
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < os.fstat(file).st_size:
        os.ftruncate(file, end)
