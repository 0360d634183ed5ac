"""A ledger's file when it is opened: made, checked line by line, cut where a crash has torn it, and taken over.

Invariant: a start with a fence appends to a file that no other process has open: it goes on in a copy, which gets the
name by one rename after it is whole on the disk. A crash before the rename leaves the file as it was, and the copy to
the next start's sweep. Lines that an older start appends after it was copied are lost with their steps, as in a crash.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.history.fence import Fence, beside, fsync_folder, put_fenced, sweep_beside
from train.history.records import FORMAT, LedgerFault, chain_of, parse, seal, sealed_lines


@dataclass
class Found:
    """What is in a ledger that is opened again.

    Attributes:
        bytes, chain: up to its last whole line. starts: starts so far. last_step: the last step, also an undone one.
        saved: the checkpoints that count.
    """

    header: dict[str, Any] | None = None
    bytes: int = 0
    chain: str = ""
    starts: int = 0
    last_step: int = 0
    saved: list[int] = field(default_factory=list)


def open_ledger(path: Path, header: Mapping[str, Any], fence: Fence | None) -> tuple[int, Found]:
    """(descriptor for appending, what is there); see `Ledger.open`."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if fence is None:
            return _opened(path, path, header)
        sweep_beside(path.parent, fence)
        copy = beside(path, fence)
        try:
            if path.exists():
                shutil.copyfile(path, copy)
            descriptor, found = _opened(path, copy, header)
            try:
                os.fsync(descriptor)
                put_fenced(copy, path, fence)
                fsync_folder(path.parent)
            except BaseException:
                os.close(descriptor)
                raise
        except OSError:
            fence.check()  # a newer start sweeps what this one prepares
            raise
        finally:
            with suppress(FileNotFoundError):
                copy.unlink()
    return descriptor, found


def _opened(name: Path, path: Path, header: Mapping[str, Any]) -> tuple[int, Found]:
    """(descriptor for appending, what is there) of the ledger that lies at `path` and is to be told as `name`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        found = _read(path, name)
        if found.header is None:
            found.header = {"kind": "header", "format": FORMAT, "history": uuid.uuid4().hex, **header}
            line, found.chain = seal(found.header, "")
            os.ftruncate(descriptor, 0)  # a header that a crash has torn
            write_all(descriptor, line)
            found.bytes = len(line)
            os.fsync(descriptor)
            fsync_folder(path.parent)
        else:
            _same(name, found.header, header)
            if os.fstat(descriptor).st_size > found.bytes:
                os.ftruncate(descriptor, found.bytes)
                os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, found


def _read(path: Path, name: Path) -> Found:
    """What is in a ledger; the seal of every line is checked, and only the few that are not steps are parsed."""
    found = Found()
    for line_number, offset, line in sealed_lines(path, name):
        found.bytes, found.chain = offset + len(line), chain_of(line) or ""
        if line.startswith(b'{"kind":"step","step":'):
            found.last_step = int(line[22:].split(b",", 1)[0])
            continue
        record = parse(name, line_number, line)
        if line_number == 1:
            if record["kind"] != "header":
                raise LedgerFault(name, 1, f"is a {record['kind']!r}, not the header")
            found.header = record
        if record["kind"] == "start":
            found.starts += 1
            found.saved = still_saved(found.saved, record["step"])
        if record["kind"] == "checkpoint":
            found.saved.append(record["step"])
    return found


def still_saved(saved: Sequence[int], step: int) -> list[int]:
    """The checkpoints that count after a start that goes on after `step`: later ones were lost, and come again."""
    return [s for s in saved if s <= step]


def _same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raise `UserError` where a ledger is of another phase, data, seed or order."""
    if old.get("format", 0) > FORMAT:
        raise UserError(
            str(path), f"was written by a newer rumpun (format {old['format']}, this one reads {FORMAT})",
            "use that version",
        )  # fmt: skip
    for key, value in new.items():
        if old.get(key) != value:
            raise UserError(
                f"{path}: {key} = {json.dumps(old.get(key))}",
                f"this run has {json.dumps(value)}",
                "set it back, or start over beside it with --fresh",
            )


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of it, however little the system takes at once."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
