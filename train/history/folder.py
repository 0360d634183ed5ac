"""Names in a checkpoint folder, and moves in it that a crash can not tear.

Invariant: whatever is called `step-N` is whole. It appears by one rename after everything in it is on the disk, it
leaves by one rename before anything in it is deleted, and where it is replaced by another of the same step, the old
one stays under a name that `recover` knows until the new one is in place. Only rank 0 moves anything.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from pathlib import Path

from data_prep.files import disk_errors, write_atomically

MANIFEST = "manifest.json"
LATEST = "latest"
_STEP = re.compile(r"step-(\d{8,})")
_REPLACED = ".replaced-"
_DAMAGED = ".damaged-"


def step_name(step: int) -> str:
    """`step-00000120`: sorts by step in any listing."""
    return f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    """The steps that have a checkpoint here, newest first; [] where the folder does not exist."""
    if not folder.is_dir():
        return []
    matches = (_STEP.fullmatch(path.name) for path in folder.iterdir() if path.is_dir())
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def building_name(step: int, attempt: int) -> str:
    """Where the ranks write; every attempt has its own, so that parts of two attempts never meet."""
    return f".{step_name(step)}.{attempt}.building"


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


def put(source: Path, place: Path) -> None:
    """Rename a finished folder to its place; a crash at any moment leaves the old one or the new one."""
    aside = place.with_name(_REPLACED + place.name)
    if place.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(place, aside)
    os.rename(source, place)
    fsync_folder(place.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove(place: Path) -> None:
    """Delete a checkpoint or an unfinished one.

    It loses its name first: a half-deleted one is never taken for a damaged one, and a rank that is still writing into
    an unfinished one finds it gone.
    """
    leaving = place.with_name(f".{place.name.removeprefix('.')}.removing")
    shutil.rmtree(leaving, ignore_errors=True)
    os.rename(place, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def point_latest(folder: Path, step: int) -> None:
    """Let `latest` name this step."""
    write_atomically(folder / LATEST, (step_name(step) + "\n").encode())
    fsync_folder(folder)


def latest_in(folder: Path) -> str:
    """What `latest` says; "" where it is missing or unreadable."""
    try:
        return (folder / LATEST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def set_damaged_aside(folder: Path, steps: list[int]) -> None:
    """Rename damaged checkpoints out of the way; the newest one stays for whoever looks into it, no other."""
    for step in sorted(steps):
        for old in folder.glob(f"{_DAMAGED}*"):
            shutil.rmtree(old, ignore_errors=True)
        os.rename(folder / step_name(step), folder / damaged_name(step))
    fsync_folder(folder)


def damaged_name(step: int) -> str:
    """What a damaged checkpoint is renamed to."""
    return _DAMAGED + step_name(step)


def recover(folder: Path) -> None:
    """Undo the half of `put` that a crash may have left: an old checkpoint whose successor did not arrive returns."""
    for aside in folder.glob(f"{_REPLACED}*"):
        place = folder / aside.name.removeprefix(_REPLACED)
        if place.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(aside, place)
            fsync_folder(folder)


def sweep(folder: Path, *, before_attempt: int | None = None) -> None:
    """Delete what crashed or failed saves left. With `before_attempt`, only unfinished saves of earlier attempts."""
    if before_attempt is None:
        with disk_errors(folder):
            recover(folder)
        for path in folder.glob(".step-*.removing"):
            shutil.rmtree(path, ignore_errors=True)
        for path in folder.glob(f".{LATEST}.*.tmp"):
            path.unlink(missing_ok=True)
    for path in folder.glob(".step-*.building"):
        attempt = path.name.split(".")[2]
        if before_attempt is None or not attempt.isdecimal() or int(attempt) < before_attempt:
            shutil.rmtree(path, ignore_errors=True)
