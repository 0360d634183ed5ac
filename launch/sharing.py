"""Stages that another run has built from the same input are taken from it instead of being built again.

Invariant: a stage is taken only where the other run's record has the very key that the stage has here and now (its
version, its config, the content of its inputs, the files from outside), and its files are as that record lists them. It
comes in as anything that is built does: into a folder beside, every file hashed again, recorded, renamed. So a run that
has taken stages cannot be told from one that has built them, but by `taken_from` in their records.

Files are taken as hard links where the file system has them, else copied: a finished stage is never written to, and
either folder may be deleted without the other.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import write_json
from data_prep.progress import Progress
from launch.stages import RECORD, Counts, Stage, Verdict, Workshop

if TYPE_CHECKING:
    from collections.abc import Collection

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)


class _Unfit(Exception):
    """Another run's stage is not what its record says, or is being replaced."""


class Borrower(Workshop):
    """A workshop that knows what other runs have read: a file from outside that they hashed is not hashed again.

    Args:
        run: the run folder; its lock is held by the caller.
        donors: run folders that stages may be taken from, the preferred ones first; those that are not there yet, and
            this run itself, are passed over.
    """

    def __init__(self, run: Path, donors: Sequence[Path]) -> None:
        super().__init__(run)
        self.donors = [Workshop(donor) for donor in donors if donor.resolve() != run.resolve()]
        self._told: Mapping[str, Mapping[str, Any]] | None = None

    def offers(self, name: str) -> list[tuple[Workshop, dict[str, Any]]]:
        """The donors that have the stage, each with its record."""
        found = []
        for donor in self.donors:
            with suppress(UserError):  # a record that is just being replaced
                if record := donor.record(name):
                    found.append((donor, record))
        return found

    def borrow(self, stage: Stage, verdict: Verdict, donor: Workshop, record: dict[str, Any]) -> bool:
        """Whether the stage could be taken; nothing has changed where it could not."""

        def bring(out: Path, _: Progress) -> Counts:
            _bring(donor.folder(stage.name), record["files"], out)
            counts: Counts = record["counts"]
            return counts

        self._told = record["files"]
        try:
            new = self.build(replace(stage, build=bring), verdict, Progress())
        except _Unfit:
            return False
        finally:
            self._told = None
        # how the bytes came about is told by the run that made them: seconds, commit, versions
        origin = record.get("taken_from", donor.run.name)
        mine = {"external": verdict.external, "files": new["files"], "taken_from": origin}
        write_json(self.folder(stage.name) / RECORD, {**record, **mine})
        return True

    def _inventory(self, folder: Path, volatile: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Every file is hashed before anything is committed: also bytes that changed, but neither size nor time."""
        found = super()._inventory(folder, volatile)
        if self._told is not None and any(found[name]["sha256"] != told["sha256"] for name, told in self._told.items()):
            raise _Unfit
        return found

    def _external(self, stage: Stage, known: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        told: dict[str, dict[str, Any]] = {}
        for _, record in reversed(self.offers(stage.name)):
            told |= record["external"]
        return super()._external(stage, {**told, **known})


def take(stages: Sequence[Stage], workshop: Borrower, wanted: Collection[str]) -> dict[str, str]:
    """Take what is not up to date here and finished elsewhere.

    Args:
        stages: of the plan, each after those it needs. wanted: the names of those to look at.

    Returns:
        Stage → name of the run that it was taken from.

    Raises:
        UserError: a finished stage of this run is damaged; a file that a stage reads cannot be read; a full disk.
    """
    taken: dict[str, str] = {}
    missing: set[str] = set()
    for stage in stages:
        if stage.name not in wanted:
            continue
        if missing & set(stage.needs):
            missing.add(stage.name)
            continue
        verdict = workshop.judge(stage)
        if verdict.reason is None:
            continue
        for donor, record in workshop.offers(stage.name):
            if record["key"] == verdict.key and workshop.borrow(stage, verdict, donor, record):
                taken[stage.name] = donor.run.name
                break
        else:
            missing.add(stage.name)
    return taken


def _bring(source: Path, files: Mapping[str, Mapping[str, Any]], out: Path) -> None:
    """Link or copy the files of a record; raises `_Unfit` where one is not as the record says."""
    for name, told in files.items():
        here, there = source / name, out / name
        there.parent.mkdir(parents=True, exist_ok=True)
        try:
            _link(here, there)
            status = there.stat()
        except FileNotFoundError as error:
            raise _Unfit from error
        if status.st_size != told["bytes"]:
            raise _Unfit


def _link(here: Path, there: Path) -> None:
    try:
        os.link(here, there)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(here, there)


def likeness(stages: Sequence[Stage]) -> dict[str, str]:
    """A fingerprint of what each stage is asked to make, before anything is built: two runs whose fingerprints are
    equal would build the same, as long as the files outside stay as they are."""
    import hashlib
    import json

    found: dict[str, str] = {}
    for stage in stages:
        asked = [stage.name, stage.version, stage.config, [found[need] for need in stage.needs]]
        found[stage.name] = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    return found
