"""Which stages of a run are to do, seen from a login node: nothing large is read, nothing is hashed.

What cannot be told cheaply counts as to do: the job looks closer, and does nothing where nothing changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.pipeline import GATES
from launch.stages import Stage, Workshop


def stages_to_do(stages: Sequence[Stage], workshop: Workshop) -> dict[str, str]:
    """The stages that are not up to date, each with the reason.

    Args:
        stages: of a plan, each after those it needs.

    Raises:
        UserError: a file that a stage to do reads is not there; a finished stage's file is missing or damaged.
    """
    found: dict[str, str] = {}
    for stage in stages:
        reason = _reason(stage, workshop, found)
        if reason is not None:
            found[stage.name] = reason
            list(stage.external())  # names them, and says now what would fail in the job
    return found


def _reason(stage: Stage, workshop: Workshop, to_do: Mapping[str, str]) -> str | None:
    record = workshop.record(stage.name)
    if record is None:
        return "not built yet"
    for need in stage.needs:
        # what a gate writes says nothing that depends on its input: nothing after it changes when it is closed again
        if need in to_do and not (need in GATES and workshop.record(need)):
            return f"{need} is built first"
    if _touched(workshop.folder(stage.name), record["files"]) or _touched(Path(), record["external"], stage.external()):
        return "files were touched"
    return workshop.judge(stage).reason


def _touched(folder: Path, told: Mapping[str, Mapping[str, Any]], there: Iterable[Path] | None = None) -> bool:
    """Whether a file of the same size has another time: to say more, it would have to be read.

    Args:
        there: the files that count, where the record may lack some.
    """
    if there is not None and {str(path) for path in there} != set(told):
        return True
    for name, entry in told.items():
        try:
            status = (folder / name).stat()
        except OSError:
            continue  # whoever judges the stage says so
        if status.st_size == entry["bytes"] and status.st_mtime_ns != entry["mtime_ns"]:
            return True
        if there is not None and status.st_size != entry["bytes"]:
            return True
    return False
