"""The history of a training phase in a run folder: where it lies, and what becomes of an earlier one.

Invariant: an unfinished history is gone on with, or kept aside where the user asks for a fresh start; it is never
deleted. A finished one, whose result stands in the stage's folder, makes place when its stage is built again.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json

FOLDER = "history"


def folder_of(run: Path, phase: str) -> Path:
    """Where the history of a phase lies."""
    return run / FOLDER / phase


def is_finished(run: Path, phase: str) -> bool:
    """Whether the phase's stage folder holds what this history led to."""
    try:
        summary = read_json(run / phase / "summary.json")
        identity = read_json(folder_of(run, phase) / "identity.json")
        return bool(summary["history"] == identity["history"])
    except (UserError, KeyError, TypeError):
        return False


def prepare(run: Path, phase: str, *, fresh: bool) -> tuple[Path, str | None]:
    """The folder for a phase that is about to run, and a line for the user where an earlier history made place.

    Args:
        fresh: keep an unfinished history aside and begin a new one.
    """
    folder = folder_of(run, phase)
    if not folder.exists():
        return folder, None
    with disk_errors(folder):
        if is_finished(run, phase):
            shutil.rmtree(folder)
            return folder, None
        if not fresh:
            return folder, None
        for number in itertools.count(1):
            aside = folder.with_name(f"{phase}.kept-{number}")
            if not aside.exists():
                folder.rename(aside)
                return folder, f"[{phase}] starts over; the former history is kept in {aside}"
    raise AssertionError("unreachable")
