"""One process at a time in a run folder; the lock ends with its holder, however that dies.

The lock is `flock` on `folder/.lock`, kept by the kernel and not by the file's existence: after `kill -9` or a power
cut nothing is left to clean up. The file's content only says who holds it. Children do not keep the lock alive: the
descriptor is closed on exec, and after a plain fork in the child.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import sys
import weakref
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from data_prep.errors import UserError
from data_prep.files import disk_errors

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """Context manager that holds `folder/.lock`.

    Args:
        folder: an existing folder, or one to create.

    Raises:
        UserError: another process holds it (the message says which, where and since when), or the file system has no
            locks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / ".lock"
        self._descriptor: int | None = None

    def __enter__(self) -> RunLock:
        with disk_errors(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take(descriptor)
            with disk_errors(self.path):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, json.dumps(_myself()).encode(), 0)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        _held.add(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is None:
            return
        # The file stays: removing it would let a third process lock a new file while a second waits on this one.
        try:
            os.ftruncate(self._descriptor, 0)
        except OSError:
            pass
        finally:
            self._forget()

    def _take(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                str(self.folder), f"is in use by {describe_holder(self.path)}", _how_to_free(self.path)
            ) from error
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise UserError(
                    str(self.folder),
                    f"lies on a file system without locks ({error.strerror})",
                    "put runs elsewhere with --runs DIR, or ask the administrator to mount it with locking",
                ) from error
            raise

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_holder(path: Path) -> dict[str, Any]:
    """What a lock file says of its holder: pid, host, command, started_at. Empty where it says nothing."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def describe_holder(path: Path) -> str:
    """One phrase for the holder in a lock file: process, host, command and start."""
    holder = read_holder(path)
    if not holder:
        return "another process that has just started"
    return (
        f"process {holder.get('pid')} on {holder.get('host')} ({holder.get('command')}), "
        f"since {holder.get('started_at')}"
    )


def _how_to_free(path: Path) -> str:
    holder = read_holder(path)
    if not holder:
        return "wait a moment and try again"
    stop = f"kill {holder.get('pid')}"
    if holder.get("host") != socket.gethostname():
        stop = f"ssh {holder.get('host')} {stop}"
    return f"wait until it ends, or stop it with `{stop}` (it resumes from its last checkpoint)"


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]).strip() or "python",
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _close_in_child() -> None:
    # A fork shares the lock with its parent. Closing the copy does not release it; keeping it would hold the lock after
    # the parent's death.
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_close_in_child)
