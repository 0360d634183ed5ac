"""Which start of a phase its history belongs to: a later start takes it away from every earlier one.

After a network split, or where a node's daemon died, ranks of an older start may still be alive while a newer one
trains. No message reaches them, and file systems know no compare-and-swap; so two things come together:

- `fence.json` names the start that owns the history. Whoever is about to change something reads it first (`check`).
- A check alone leaves a gap: a process may be stopped for an hour between it and the change. So each change is one
  rename of something whose name carries the start, and the newer start *first* removes what older ones have prepared
  (`sweep_beside`, train/history/folder.py: sweep). An older start's rename then fails, however late it comes: it was
  prepared before the sweep, and is gone; or after it, and then the check that follows finds the newer start.

Invariant: what is renamed into a history after a claim is of the start that claimed, or of a later one.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.files import disk_errors, write_atomically, write_json

FILE = "fence.json"
_BESIDE = re.compile(r"\..+\.(\d+-[0-9a-f]{8})\.tmp")
_LOOKS, _PAUSE_S = 5, 0.05  # a file that is replaced while it is opened is missing for a moment on network file systems
_WAIT_S = 5.0


class Superseded(Exception):
    """A newer start has taken over. Nothing failed: this one ends, and changes nothing more.

    The message is one line.
    """


@dataclass(frozen=True)
class Fence:
    """A start's claim on the history in `folder`; see `claim`.

    Attributes:
        start: names the start; `number_of` orders starts.
    """

    folder: Path
    start: str

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None) -> Fence | None:
        """The fence of a job file's "fence", None where it has none."""
        return None if facts is None else cls(Path(facts["folder"]), str(facts["start"]))

    def facts(self) -> dict[str, str]:
        """What a job file holds of it."""
        return {"folder": str(self.folder.resolve()), "start": self.start}

    def check(self) -> None:
        """Raise `Superseded` where the history is no longer this start's. Reads one small file."""
        said = _read(self.folder)
        if said.get("start") != self.start:
            raise Superseded(_line(self.folder, said))

    @property
    def lost(self) -> bool:
        """Whether `check` raises; also where the file cannot be read at all."""
        try:
            self.check()
        except (Superseded, OSError):
            return True
        return False


def number_of(start: str) -> int:
    """Orders starts: a later claim has a higher number. 0 for what is no start."""
    number = start.split("-", 1)[0]
    return int(number) if number.isdecimal() else 0


def claim(folder: Path, *, job: str | None, restart: int = 0, after: Fence | None = None) -> Fence:
    """Take the history in `folder` for a new start of ranks; every earlier start has lost it when this returns.

    Args:
        folder: of the phase's history; made where it is missing.
        job: the scheduler's id of the job, None where there is none. restart: how often the scheduler restarted it.
        after: the claim that this one follows in the same process: where somebody else took over since, it is refused.

    Raises:
        Superseded: a later restart of the same job, or somebody since `after`, has the history.
        UserError: the folder cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with briefly_alone(folder / f".{FILE}.lock"):
        said = _read(folder, looks=1)
        if after is not None:
            after.check()
        if job is not None and said.get("job") == job and int(said.get("restart", 0)) > restart:
            raise Superseded(_line(folder, said))
        # later than every earlier one, also where the clock was set back; by the clock where the folder is a new one
        number = max(number_of(str(said.get("start", ""))) + 1, time.time_ns() // 1_000_000)
        start = f"{number}-{uuid.uuid4().hex[:8]}"
        facts = {"start": start, "job": job, "restart": restart, "host": socket.gethostname(), "time": _now()}
        write_json(folder / FILE, facts)
        fsync_folder(folder)
    return Fence(folder, start)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _read(folder: Path, *, looks: int = _LOOKS) -> dict[str, Any]:
    """What the file says; {} where it is missing. Opened anew each time: only an open asks the server."""
    for look in range(looks):
        try:
            found = json.loads((folder / FILE).read_bytes())
            return found if isinstance(found, dict) else {}
        except ValueError:
            pass
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                raise
        if look + 1 < looks:
            time.sleep(_PAUSE_S)
    return {}


def _line(folder: Path, said: Mapping[str, Any]) -> str:
    if not said:
        return f"superseded: {folder} was taken away for another start; this one ends and changes nothing more"
    who = f"job {said['job']}, restart {said.get('restart', 0)}, " if said.get("job") else ""
    return (
        f"superseded: a newer start ({who}from {said.get('host')}, since {said.get('time')}) has taken over {folder}; "
        "this one ends and changes nothing more"
    )


@contextmanager
def briefly_alone(path: Path) -> Iterator[None]:
    """Hold a lock for a few lines of code, of which none waits: reading something and writing it anew.

    Whoever does not get it within some seconds goes on without: its holder was cut off from the storage, or the file
    system has no locks, and what is guarded so is only two claims in the same few milliseconds.
    """
    with disk_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        until = time.monotonic() + _WAIT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES) or time.monotonic() > until:
                    break
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def beside(path: Path, fence: Fence) -> Path:
    """Where a start prepares what it will rename to `path`."""
    return path.with_name(f".{path.name}.{fence.start}.tmp")


def prepared_by(path: Path) -> str | None:
    """The start that prepared this file by `beside`, None where none did."""
    match = _BESIDE.fullmatch(path.name)
    return match[1] if match else None


def put_fenced(prepared: Path, path: Path, fence: Fence) -> None:
    """Rename what lies ready under `beside(path, fence)` to its place, unless a newer start has the history."""
    fence.check()
    try:
        os.replace(prepared, path)
    except OSError:
        fence.check()  # the newer start has swept it away since: no failure of the disk
        raise


def write_fenced(path: Path, data: bytes, fence: Fence | None) -> None:
    """Write a file whole or not at all, and not at all where a newer start has the history.

    Raises:
        Superseded: it has. UserError: the disk is full, for example.
    """
    if fence is None:
        write_atomically(path, data)
        return
    prepared = beside(path, fence)
    with disk_errors(path):
        try:
            with prepared.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            put_fenced(prepared, path, fence)
        except OSError:
            fence.check()  # a newer start sweeps what this one prepares
            raise
        finally:
            with suppress(FileNotFoundError):
                prepared.unlink()


def write_json_fenced(path: Path, value: Any, fence: Fence | None) -> None:
    """As `data_prep.files.write_json`, by `write_fenced`."""
    write_fenced(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode(), fence)


def sweep_beside(folder: Path, fence: Fence | None) -> None:
    """Remove what starts before this one have prepared in `folder` and not put in place; without a fence, of any."""
    if fence is not None:
        fence.check()
    for path in folder.glob(".*.tmp"):
        start = prepared_by(path)
        if start and (fence is None or number_of(start) < number_of(fence.start)):
            path.unlink(missing_ok=True)


def fsync_folder(folder: Path) -> None:
    """Put a folder's entries (names, not contents) on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems have no such call; their renames are synchronous
            raise
    finally:
        os.close(descriptor)
