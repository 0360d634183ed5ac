"""Names in a checkpoint folder, and moves in it that a crash can not tear.

Invariant: whatever is called `step-N` is whole. It appears by one rename after everything in it is on the disk, it
leaves by one rename before anything in it is deleted, and where it is replaced by another of the same step, the old
one stays under a name that `recover` knows until the new one is in place. Only rank 0 moves anything, and nothing any
more once a newer start has the history (train/history/fence.py).
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

from data_prep.files import disk_errors
from train.history.fence import Fence, Superseded, fsync_folder, number_of, prepared_by, sweep_beside, write_fenced

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


def building_name(step: int, attempt: int, start: str | None = None) -> str:
    """Where the ranks write; every attempt of every start has its own, so that parts of two never meet."""
    return f".{step_name(step)}.{f'{start}.' if start else ''}{attempt}.building"


def put(source: Path, place: Path) -> None:
    """Rename a finished folder to its place; a crash at any moment leaves the old one or the new one.

    Where there is no source (a newer start has swept it away) nothing is changed.
    """
    try:
        os.rename(source, place)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        aside = place.with_name(_REPLACED + place.name)
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(place, aside)
        try:
            os.rename(source, place)
        except OSError:
            os.rename(aside, place)
            raise
        fsync_folder(place.parent)
        shutil.rmtree(aside, ignore_errors=True)
        return
    fsync_folder(place.parent)


def remove(place: Path, fence: Fence | None = None) -> None:
    """Delete a checkpoint or an unfinished one.

    It loses its name first: a half-deleted one is never taken for a damaged one, and a rank that is still writing into
    an unfinished one finds it gone. Where a newer start turns out to have the history, it gets its name back.

    Raises `Superseded` in that case.
    """
    leaving = place.with_name(f".{place.name.removeprefix('.')}.removing")
    shutil.rmtree(leaving, ignore_errors=True)
    os.rename(place, leaving)
    if fence is not None:
        try:
            fence.check()
        except Superseded:
            with suppress(OSError):  # the newer start has swept it away already
                os.rename(leaving, place)
            raise
    shutil.rmtree(leaving, ignore_errors=True)


def point_latest(folder: Path, step: int, fence: Fence | None = None) -> None:
    """Let `latest` name this step. Raises `Superseded` where a newer start has the history."""
    write_fenced(folder / LATEST, (step_name(step) + "\n").encode(), fence)
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


def sweep(folder: Path, *, fence: Fence | None = None, before_attempt: int | None = None) -> None:
    """Delete what crashed or failed saves left, and what older starts prepare: it loses its name at once.

    Args:
        fence: of this start; saves of newer starts are left alone. Without one everything unfinished goes.
        before_attempt: only unfinished saves, and of this start only those of earlier attempts.

    Raises:
        Superseded: a newer start has the history.
    """
    if fence is not None:
        fence.check()
    if before_attempt is None:
        with disk_errors(folder):
            recover(folder)
            sweep_beside(folder, fence)
        for path in folder.glob(".step-*.removing"):
            gone = folder / f".step-{uuid.uuid4().hex}.removing"
            with suppress(FileNotFoundError):
                os.rename(path, gone)  # first: an older start must not give its name back to a half-deleted one
            shutil.rmtree(gone, ignore_errors=True)
        for path in folder.glob(f".{LATEST}.*.tmp"):
            if prepared_by(path) is None:
                path.unlink(missing_ok=True)
    for path in folder.glob(".step-*.building"):
        *start, attempt = path.name.split(".")[2:-1]
        own = start == ([fence.start] if fence else [])
        if fence is not None and start and number_of(start[0]) > number_of(fence.start):
            continue
        if not own or before_attempt is None or not attempt.isdecimal() or int(attempt) < before_attempt:
            with suppress(FileNotFoundError):
                remove(path)
