"""Who may write into a run folder: one whole walk, or side by side several jobs of which each has stages of its own.

The locks are `flock`, kept by the kernel and not by a file's existence: after `kill -9` or a power cut nothing is left
to clean up. A whole walk holds `RUN/.lock` alone; a job shares it, and holds `RUN/.locks/STAGE` alone for each of its
stages. A file's content only says who holds it. Children do not keep a lock alive: the descriptor is closed on exec,
and after a plain fork in the child.

A node that was cut off may hold a lock for a job that the scheduler has long started again. The newer restart then
replaces the file by one of its own; the older one finds another's name in it (`RunLock.check`), and ends.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import uuid
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.history.fence import Superseded, briefly_alone

LOCK = ".lock"
STAGE_LOCKS = ".locks"
_held: weakref.WeakSet[RunLock] = weakref.WeakSet()
_TRIES = 20


@dataclass(frozen=True)
class _Lock:
    """A lock that is held. `alone`: the file's content is ours."""

    path: Path
    descriptor: int
    alone: bool


class RunLock:
    """Context manager that holds a run folder, or some of its stages.

    Args:
        folder: an existing folder, or one to create.
        stages: hold these, beside other jobs that hold others; None: hold the folder alone.
        job: the scheduler's id of this job. restart: how often the scheduler started it before. A lock that an older
            restart of the same job still holds is taken away from it.

    Raises:
        UserError: another process holds it (the message says which, where, since when, and how to stop it), or the
            file system has no locks.
        Superseded: a newer restart of the same job holds it, or has held it.
    """

    def __init__(
        self, folder: Path, *, stages: Sequence[str] | None = None, job: str | None = None, restart: int = 0
    ) -> None:
        self.folder = folder
        self.path = folder / LOCK
        self._stages, self._job, self._restart = stages, job, restart
        self._token = uuid.uuid4().hex
        self._locks: list[_Lock] = []

    def __enter__(self) -> RunLock:
        with disk_errors(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._stages is not None:
                (self.folder / STAGE_LOCKS).mkdir(exist_ok=True)
        try:
            self._locks.append(self._take(self.path, alone=self._stages is None))
            for stage in self._stages or ():
                self._locks.append(self._take(self.folder / STAGE_LOCKS / stage, alone=True))
        except BaseException:
            self._release()
            raise
        _held.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def check(self) -> None:
        """Raise `Superseded` where a newer restart of the same job has taken a lock away. Reads small files."""
        for lock in self._locks:
            if not lock.alone or not lock.path.exists():  # removed by hand: nobody else has it
                continue
            holder = read_holder(lock.path)
            if holder.get("token") != self._token:
                raise Superseded(_lost(lock.path, holder))

    def _take(self, path: Path, *, alone: bool) -> _Lock:
        for _ in range(_TRIES):
            with disk_errors(path):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if self._locked(path, descriptor, alone=alone):
                    if not _is(path, descriptor):  # it was replaced while it was opened
                        os.close(descriptor)
                        continue
                    if alone:
                        self._sign(path, descriptor)
                    return _Lock(path, descriptor, alone)
                os.close(descriptor)
            except BaseException:
                with suppress(OSError):
                    os.close(descriptor)
                raise
            taken = self._take_away(path, alone=alone)
            if taken is not None:
                return taken
        raise UserError(str(self.folder), "is being taken by several processes at once", "wait a moment and try again")

    def _locked(self, path: Path, descriptor: int, *, alone: bool) -> bool:
        """Whether the lock is ours now; False where it can be taken away. Raises where it is another's."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if self._is_older(holder := read_holder(path)) and not self._shared(descriptor):
                return False
            self._refuse_if_newer(path, holder)
            busy = self._busy_stages() if self._shared(descriptor) else []
            place, more = (busy[0], f" and {len(busy) - 1} more" if len(busy) > 1 else "") if busy else (path, "")
            what = self.folder if path == self.path else f"stage {path.name} of {self.folder}"
            raise UserError(str(what), f"is in use by {describe_holder(place)}{more}", _how_to_free(place)) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise UserError(
                    str(self.folder),
                    f"lies on a file system without locks ({error.strerror})",
                    "put runs elsewhere with --runs DIR, or ask the administrator to mount it with locking",
                ) from error
            raise
        return True

    def _sign(self, path: Path, descriptor: int) -> None:
        # what a holder that was killed has left there still tells which restart it was
        self._refuse_if_newer(path, read_holder(path))
        with disk_errors(path):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(self._myself()).encode(), 0)

    def _take_away(self, path: Path, *, alone: bool) -> _Lock | None:
        """Put a file of our own in the place of one that an older restart of this job holds; None: look again."""
        new = path.with_name(f".{path.name}.{self._token[:8]}")
        with briefly_alone(path.with_name(f".{path.name}.guard")):
            if not self._is_older(read_holder(path)):
                return None
            descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                if alone:
                    os.pwrite(descriptor, json.dumps(self._myself()).encode(), 0)
                os.replace(new, path)
            except BaseException:
                os.close(descriptor)
                new.unlink(missing_ok=True)
                raise
        return _Lock(path, descriptor, alone)

    def _is_older(self, holder: dict[str, Any]) -> bool:
        return self._job is not None and holder.get("job") == self._job and _restart(holder) < self._restart

    def _refuse_if_newer(self, path: Path, holder: dict[str, Any]) -> None:
        if self._job is not None and holder.get("job") == self._job and _restart(holder) > self._restart:
            raise Superseded(_lost(path, holder))

    @staticmethod
    def _shared(descriptor: int) -> bool:
        """Whether those who hold a lock share it."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        return True

    def _busy_stages(self) -> list[Path]:
        """The stages that jobs hold."""
        found = []
        for path in sorted((self.folder / STAGE_LOCKS).glob("[!.]*")):
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if not self._shared(descriptor):
                        found.append(path)
                finally:
                    os.close(descriptor)
        return found

    def _release(self) -> None:
        # The files stay: removing one would let a third process lock a new file while a second waits on this one.
        for lock in self._locks:
            with suppress(OSError):
                if lock.alone:
                    os.ftruncate(lock.descriptor, 0)
        self._forget()

    def _forget(self) -> None:
        for lock in self._locks:
            os.close(lock.descriptor)
        self._locks = []

    def _myself(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).strip() or "python",
            "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "job": self._job,
            "restart": self._restart,
            "token": self._token,
        }


def _is(path: Path, descriptor: int) -> bool:
    """Whether this open file is the one of that name."""
    try:
        named, opened = os.stat(path), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _restart(holder: dict[str, Any]) -> int:
    return int(holder.get("restart") or 0)


def read_holder(path: Path) -> dict[str, Any]:
    """What a lock file says of its holder: pid, host, command, started_at, job, restart. Empty where it says nothing.

    Opened anew each time: on network file systems only that asks the server.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe_holder(path: Path) -> str:
    """One phrase for the holder in a lock file: its job, process, host, command and start."""
    holder = read_holder(path)
    if not holder:
        return "another process that has just started"
    job = f"job {holder['job']}: " if holder.get("job") else ""
    return (
        f"{job}process {holder.get('pid')} on {holder.get('host')} ({holder.get('command')}), "
        f"since {holder.get('started_at')}"
    )


def _lost(path: Path, holder: dict[str, Any]) -> str:
    who = f"restart {_restart(holder)} of job {holder.get('job')}" if holder.get("job") else "another process"
    return (
        f"superseded: {who} (on {holder.get('host', 'another node')}) has taken over {path}; "
        "this one ends and changes nothing more"
    )


def _how_to_free(path: Path) -> str:
    holder = read_holder(path)
    if not holder:
        return "wait a moment and try again"
    if holder.get("job"):
        return f"wait until it ends, or stop it with `scancel {holder['job']}` (it resumes from its last checkpoint)"
    stop = f"kill {holder.get('pid')}"
    if holder.get("host") != socket.gethostname():
        stop = f"ssh {holder.get('host')} {stop}"
    return f"wait until it ends, or stop it with `{stop}` (it resumes from its last checkpoint)"


def _close_in_child() -> None:
    # A fork shares the lock with its parent. Closing the copy does not release it; keeping it would hold the lock after
    # the parent's death.
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_close_in_child)
