"""Stages are idempotent: an output appears whole or not at all, and a second run does nothing.

A stage's folder holds its output and `stage.json`: what went in (config, inputs' content hashes, files from outside),
what came out (bytes and SHA-256 of every file, counts), how long it took and which code made it. Its *key* hashes all
that goes in; a stage is up to date when the key on disk equals the key of now and its files are intact. Inputs count by
content, so a rebuilt stage that comes out the same rebuilds nothing after it.

Every build has a folder of its own, which loses its name when somebody else begins with the stage: a process that was
cut off, and goes on later, finds nothing to commit.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json, sha256_file, write_json

if TYPE_CHECKING:
    from data_prep.progress import Progress

RECORD = "stage.json"
SCRATCH = "work"
"""Folder of a run in which stages keep finished parts until they are whole."""
_OWNER = "key"
Counts = Mapping[str, int | float]


@dataclass(frozen=True)
class Stage:
    """One node of the graph.

    Attributes:
        name: of the stage and of its folder.
        version: raised when the code makes another output from the same input; part of the key.
        needs: stages whose output it reads.
        config: everything of the recipe that its output depends on, as JSON values.
        build: fills the given empty folder and returns counts.
        external: files outside the run that it reads.
        volatile: name patterns of files that differ between equal runs (timings, logs); not part of the content.
    """

    name: str
    version: int
    needs: tuple[str, ...]
    config: dict[str, Any]
    build: Callable[[Path, Progress], Counts]
    external: Callable[[], Iterable[Path]] = tuple
    volatile: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a stage must be built, and why, in words for the user."""

    key: str
    reason: str | None
    external: dict[str, dict[str, Any]]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def commit_of_checkout() -> str | None:
    """The git commit of the code, with `+` where the tree has changes; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        dirty = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None


def _differences(old: Any, new: Any, at: str = "") -> list[str]:
    """Dotted keys whose values differ, as `key old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        found: list[str] = []
        for key in sorted(set(old) | set(new)):
            found += _differences(old.get(key), new.get(key), f"{at}.{key}" if at else key)
        return found
    if isinstance(old, dict) or isinstance(new, dict):  # a table that came or went, not its twenty values
        return [f"{at} {'off' if old is None else 'on'} -> {'off' if new is None else 'on'}"]
    return (
        [] if old == new else [f"{at} {json.dumps(old, ensure_ascii=False)} -> {json.dumps(new, ensure_ascii=False)}"]
    )


class Workshop:
    """A run folder's stages: judges, builds and commits them.

    Args:
        run: the run folder; its lock is held by the caller.
        stages: those that are the caller's, beside others that build others; None: all.
        check: called before anything that is there changes; raises where the caller's lock was taken away.
    """

    def __init__(
        self, run: Path, *, stages: Collection[str] | None = None, check: Callable[[], None] = lambda: None
    ) -> None:
        self.run = run
        self._stages, self._check = stages, check
        self._building, self._trash = run / ".building", run / ".trash"

    def scratch(self, name: str) -> Path:
        """Where a stage keeps what it has finished so far: outlives a crash, goes when the stage is committed."""
        return self.run / SCRATCH / name

    def folder(self, name: str) -> Path:
        """Where a stage's finished output lies."""
        return self.run / name

    def record(self, name: str) -> dict[str, Any] | None:
        """The stage.json of a finished stage, None where there is none."""
        path = self.folder(name) / RECORD
        if not path.exists():
            return None
        record: dict[str, Any] = read_json(path)
        return record

    def sweep(self) -> None:
        """Remove what a killed run left half-built of the caller's stages."""
        self._check()
        if self._stages is None and self._building.is_dir():
            for leftover in list(self._building.iterdir()):
                self._discard(leftover)
            shutil.rmtree(self._building, ignore_errors=True)
        for name in self._stages or ():
            self._discard(self._building / name)
            shutil.rmtree(self._trash / name, ignore_errors=True)
        if self._stages is None:
            shutil.rmtree(self._trash, ignore_errors=True)
        self._tidy()

    def _discard(self, folder: Path) -> None:
        """Remove a half-built stage. Its name goes first: whoever is still writing into it finds it gone."""
        if not folder.exists():
            return
        aside = self._trash / folder.name / uuid.uuid4().hex
        with suppress(OSError):  # a disk that is full, for example
            _make(aside.parent)
            folder.rename(aside)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(aside.parent, ignore_errors=True)

    def _tidy(self) -> None:
        """Remove the folders of half-built stages where they are empty."""
        for folder in (self._building, self._trash, self.run / SCRATCH):
            with suppress(OSError):
                folder.rmdir()

    def _external(self, stage: Stage, known: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Size, time and SHA-256 of the outside files; a file whose size and time did not change is not read again."""
        found: dict[str, dict[str, Any]] = {}
        for path in stage.external():
            entry = known.get(str(path))
            try:
                status = path.stat()
                if entry is None or (entry["bytes"], entry["mtime_ns"]) != (status.st_size, status.st_mtime_ns):
                    entry = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_file(path)}
            except OSError as error:
                raise UserError(
                    str(path), f"cannot be read ({error.strerror})", "check the path, its permissions and the disk"
                ) from error
            found[str(path)] = entry
        return found

    def judge(self, stage: Stage) -> Verdict:
        """Compare the key of now with the one on disk, and the files with their record.

        Raises `UserError` where a finished stage's file is missing or damaged, or an input stage is not built.
        """
        old = self.record(stage.name)
        external = self._external(stage, (old or {}).get("external", {}))
        inputs: dict[str, str] = {}
        for need in stage.needs:
            record = self.record(need)
            if record is None:
                raise UserError(
                    f"stage {stage.name}",
                    f"needs {need}, which is not built yet",
                    "run without --only, or build that stage first",
                )
            inputs[need] = record["content"]
        key = _digest(
            {
                "stage": stage.name,
                "version": stage.version,
                "config": stage.config,
                "inputs": inputs,
                # the folder's name counts: files of evaluation sets are all named alike
                "external": [[f"{Path(p).parent.name}/{Path(p).name}", e["sha256"]] for p, e in external.items()],
            }
        )
        if old is None:
            return Verdict(key, "not built yet", external)
        if old["key"] != key:
            changed = _differences(old["config"], stage.config)
            changed += [f"input {n} changed" for n in sorted(inputs) if old["inputs"].get(n) != inputs[n]]
            changed += (
                []
                if [e["sha256"] for e in old["external"].values()] == [e["sha256"] for e in external.values()]
                else ["files outside the run changed"]
            )
            changed += (
                []
                if old["version"] == stage.version
                else [f"its code is version {stage.version}, was {old['version']}"]
            )
            return Verdict(key, "; ".join(changed[:4]) or "inputs changed", external)
        self._check_files(stage.name, old)
        return Verdict(key, None, external)

    def _check_files(self, name: str, record: dict[str, Any]) -> None:
        fix = f"delete {self.folder(name)} and run the same command again"
        for relative, told in record["files"].items():
            path = self.folder(name) / relative
            if not path.exists():
                raise UserError(str(path), f"is missing, but {name}'s record lists it", fix)
            status = path.stat()
            if (status.st_size, status.st_mtime_ns) == (told["bytes"], told["mtime_ns"]):
                continue
            if status.st_size != told["bytes"] or sha256_file(path) != told["sha256"]:
                raise UserError(
                    str(path), f"its checksum differs from {name}'s record: damaged or changed by hand", fix
                )

    def build(self, stage: Stage, verdict: Verdict, progress: Progress) -> dict[str, Any]:
        """Build a stage beside, record it, and move it into place. Returns its record.

        Whatever fails or is interrupted leaves the previous output as it was and nothing half-written.

        Raises `Superseded` where `check` does: nothing of the stage was changed then.
        """
        from launch import VERSION
        from train.telemetry import peak_rss_gb

        self._check()
        self._discard(self._building / stage.name)
        beside = self._building / stage.name / uuid.uuid4().hex[:8]
        with disk_errors(beside):
            _make(beside)
        scratch = self._claim_scratch(stage.name, verdict.key)
        started, started_at, work_before = time.perf_counter(), datetime.now(UTC), dict(progress.work_s)
        try:
            with disk_errors(beside):
                counts = stage.build(beside, progress)
                files = self._inventory(beside, stage.volatile)
            content = _digest(sorted([name, f["sha256"]] for name, f in files.items() if not f["volatile"]))
            record = {
                "stage": stage.name,
                "version": stage.version,
                "key": verdict.key,
                "content": content,
                "config": stage.config,
                "inputs": {need: (self.record(need) or {})["content"] for need in stage.needs},
                "external": verdict.external,
                "files": files,
                "counts": dict(counts),
                "seconds": time.perf_counter() - started,
                "work_s": {
                    k: v - work_before.get(k, 0.0) for k, v in progress.work_s.items() if v > work_before.get(k, 0.0)
                },
                "peak_rss_gb": peak_rss_gb(),
                "rumpun": VERSION,
                "commit": commit_of_checkout(),
                "started_at": started_at.isoformat(timespec="seconds"),
            }
            write_json(beside / RECORD, record)
            self._commit(stage.name, beside)
            shutil.rmtree(scratch, ignore_errors=True)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
            with suppress(OSError):
                beside.parent.rmdir()
            if scratch.exists() and [p.name for p in scratch.iterdir()] == [_OWNER]:
                shutil.rmtree(scratch, ignore_errors=True)
            self._tidy()
        return record

    def _claim_scratch(self, name: str, key: str) -> Path:
        """The stage's scratch folder; what another input or config left in it is removed."""
        scratch = self.scratch(name)
        owner = scratch / _OWNER
        if scratch.exists() and (not owner.exists() or owner.read_text() != key):
            shutil.rmtree(scratch, ignore_errors=True)
        with disk_errors(scratch):
            _make(scratch)
            owner.write_text(key)
        return scratch

    def _inventory(self, folder: Path, volatile: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        files: dict[str, dict[str, Any]] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            relative = path.relative_to(folder).as_posix()
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
            status = path.stat()
            files[relative] = {
                "bytes": status.st_size,
                "mtime_ns": status.st_mtime_ns,
                "sha256": sha256_file(path),
                "volatile": any(fnmatch(relative, pattern) for pattern in volatile),
            }
        return files

    def _commit(self, name: str, beside: Path) -> None:
        """The old output leaves when the new one is complete; a crash in between costs a rebuild, never a mixture."""
        self._check()  # whoever takes over from here on discards `beside` first, and there is nothing to rename
        place = self.folder(name)
        try:
            os.rename(beside, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                self._check()
                raise
            old = self._trash / name / uuid.uuid4().hex
            _make(old.parent)
            place.rename(old)
            try:
                os.rename(beside, place)
            except OSError:
                old.rename(place)
                self._check()
                raise
        shutil.rmtree(self._trash / name, ignore_errors=True)


def _make(folder: Path) -> None:
    """Make a folder, though a job beside this one may just remove the empty ones above it."""
    for _ in range(10):
        with suppress(FileNotFoundError):
            folder.mkdir(parents=True, exist_ok=True)
            return
    folder.mkdir(parents=True, exist_ok=True)


def following(stages: Iterable[Stage], first: str) -> set[str]:
    """`first` and every stage that depends on it, directly or not."""
    found = {first}
    for stage in stages:  # stages come in topological order
        if found & set(stage.needs):
            found.add(stage.name)
    return found


def leading(stages: Iterable[Stage], last: str) -> set[str]:
    """`last` and every stage that it depends on, directly or not."""
    found = {last}
    for stage in reversed(list(stages)):
        if stage.name in found:
            found |= set(stage.needs)
    return found
