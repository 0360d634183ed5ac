"""Saving a checkpoint while training goes on; each rank writes its part, rank 0 makes the parts one.

Invariant: `step-N` is there whole, verified and named by `latest`, or the ones before it are as they were. Nothing is
deleted before its successor is in place.

    1. every rank copies its part to host memory; a thread does the rest
    2. every rank writes .step-N.START.A.building/state-RRRR-of-WWWW.safetensors, fsyncs it, reads it back from the disk
    3. and then, by a rename, part-RRRR.json: its size, checksum and pieces (or failed-RRRR.json: why not)
    4. rank 0 waits for all parts, on the file system alone: no collective waits behind a disk
    5. rank 0 checks that the pieces cover every parameter once, writes manifest.json and fsyncs the folder
    6. rank 0 renames the folder to step-N, fsyncs, moves `latest`, tells `committed`, deletes the oldest beyond `keep`;
       before each of them it makes sure that no newer start has the history (train/history/fence.py)
"""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json, write_atomically, write_json
from train.history.fence import Fence, Superseded, fsync_folder
from train.history.folder import (
    MANIFEST,
    building_name,
    point_latest,
    put,
    remove,
    step_name,
    steps_in,
    sweep,
)
from train.history.manifest import FORMAT, Damaged, build_index, sealed, state_name
from train.history.part import Abandoned, HostMemory, Layout, write_verified
from train.history.pieces import Piece

if TYPE_CHECKING:
    import torch

_LOOK_S, _LONGEST_LOOK_S = 0.01, 0.5


class Saver:
    """Saves checkpoints of a phase. All ranks make one and call `save` at the same steps, in the same order.

    Between making the savers and the first `save` of any rank there must be a collective (a training step is one):
    rank 0 clears away here what crashed saves left.

    Args:
        folder: of the checkpoints, on storage that all ranks share; made where it is missing.
        keep: checkpoints to keep, at least 1.
        background: let a thread write; else `save` returns when this rank's part of the work is done.
        committed: called on rank 0, from the thread, with step and bytes of every checkpoint that is in place.
        part_timeout_s: how long rank 0 waits for the other ranks' parts after its own.
        fence: of this start; None where nobody else can have started.

    Attributes:
        last_s: seconds from the beginning of the last save to the end of this rank's work on it, None before any:
            rank 0's ends when the checkpoint is in place.

    Raises:
        UserError: the folder can not be written. Superseded: a newer start has the history.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        ranks: int,
        keep: int = 2,
        background: bool = True,
        committed: Callable[[int, int], None] | None = None,
        part_timeout_s: float = 1800.0,
        fence: Fence | None = None,
    ) -> None:
        self._folder, self._rank, self._ranks, self._keep = folder, rank, ranks, keep
        self._background, self._committed, self._part_timeout_s = background, committed, part_timeout_s
        self._fence = fence
        self._memory = HostMemory()
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._failure: UserError | Superseded | None = None
        self._defect: BaseException | None = None
        self._attempts = 0
        self._begun = 0.0
        self.last_s: float | None = None
        if rank == 0:
            with disk_errors(folder):
                folder.mkdir(parents=True, exist_ok=True)
                fsync_folder(folder.parent)
                sweep(folder, fence=fence)

    def save(
        self, step: int, pieces: Iterable[Piece], facts: Mapping[str, Any], own: Mapping[str, torch.Tensor]
    ) -> float:
        """Save the state after `step`. Returns the seconds for which the caller was held up.

        Waits for a save in flight first. What the disk refuses is kept for `failure`.

        Args:
            pieces: what this rank must write; over all ranks each element of each parameter once.
            facts: whatever else is needed to go on, as JSON; rank 0's are kept.
            own: small tensors that only this rank needs again.
        """
        started = time.perf_counter()
        self.wait()
        self._attempts += 1
        self._begun = time.perf_counter()
        layout = Layout(pieces, own)
        place = self._folder / building_name(step, self._attempts, self._fence.start if self._fence else None)
        task = _Task(step, place, self._attempts, json.dumps(facts), layout)
        if self._background:
            try:
                chunks = self._memory.hold(layout)
            except UserError as error:
                self._give_up(task, error)
                return time.perf_counter() - started
            self._thread = threading.Thread(target=self._run, args=(task, chunks), name="saver", daemon=True)
            self._thread.start()
        else:
            self._run(task, self._memory.stream(layout))
        return time.perf_counter() - started

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def running_s(self) -> float | None:
        """Seconds since the save in flight began; None where there is none."""
        return time.perf_counter() - self._begun if self.busy else None

    @property
    def superseded(self) -> bool:
        """Whether a newer start was found to have the history, and `failure` was not asked since."""
        return isinstance(self._failure, Superseded)

    @property
    def failed(self) -> bool:
        """Whether a save failed and `failure` was not asked since."""
        return self._failure is not None or self._defect is not None

    def wait(self) -> None:
        """Wait until this rank's work on the save in flight is done: rank 0's ends when the checkpoint is in place."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._defect is not None:
            defect, self._defect = self._defect, None
            raise defect

    def failure(self) -> UserError | Superseded | None:
        """Why a save failed, once. A defect of rumpun is raised instead."""
        if not self.busy:
            self.wait()
        told, self._failure = self._failure, None
        return told

    def close(self) -> None:
        """Give up a save in flight, without waiting for anybody; call `wait` before to let it end well."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self, task: _Task, chunks: Iterable[memoryview]) -> None:
        try:
            with disk_errors(self._folder):
                self._write_part(task, chunks)
                if self._rank == 0:
                    self._commit(task)
            self.last_s = time.perf_counter() - self._begun
        except Superseded as lost:
            self._give_up(task, lost)
        except (UserError, OSError) as error:
            self._give_up(task, self._explained(task, error))
        except BaseException as error:
            self._clear(task, str(error) or "the save was given up")
            if not isinstance(error, Abandoned):
                self._defect = error

    def _check(self) -> None:
        """Raise `Superseded` where a newer start has the history."""
        if self._fence is not None:
            self._fence.check()

    def _give_up(self, task: _Task, error: UserError | Superseded) -> None:
        self._clear(task, str(error))
        self._failure = error  # last: whoever sees it may end the process

    def _explained(self, task: _Task, error: UserError | OSError) -> UserError | Superseded:
        try:
            self._check()
        except Superseded as lost:  # the newer start has swept this save away, or another rank's part of it
            return lost
        except OSError:
            pass
        if isinstance(error, UserError):
            return error
        if isinstance(error, FileNotFoundError) and self._rank != 0:
            return UserError(f"saving step {task.step}", "rank 0 gave it up", "see what rank 0 says")
        return UserError(
            f"saving step {task.step} to {self._folder}",
            f"the storage says: {error.strerror or error}",
            "check it, and run again: the checkpoints before this one are as they were",
        )

    def _clear(self, task: _Task, why: str) -> None:
        """Take away what this rank wrote: nothing half-written stays, and a full disk gets its space back."""
        if self._rank == 0:
            with suppress(OSError):
                remove(task.place)
            return
        with suppress(OSError, UserError):
            (task.place / state_name(self._rank, self._ranks)).unlink(missing_ok=True)
            write_json(task.place / f"failed-{self._rank:04d}.json", {"why": why, "host": socket.gethostname()})

    def _write_part(self, task: _Task, chunks: Iterable[memoryview]) -> None:
        self._check()
        if self._rank == 0:
            sweep(self._folder, fence=self._fence, before_attempt=task.attempt)
        task.place.mkdir(exist_ok=True)
        name = state_name(self._rank, self._ranks)
        size, sha256 = write_verified(task.place / name, task.chunks(chunks), self._closing)
        write_json(
            task.place / f"part-{self._rank:04d}.json",
            {
                "file": {"file": name, "rank": self._rank, "bytes": size, "sha256": sha256, "pieces": task.pieces},
                "parameters": task.parameters,
            },
        )

    def _parts(self, task: _Task) -> list[dict[str, Any]]:
        """All ranks' parts, as soon as they are there.

        Raises:
            Superseded: a newer start has the history. OSError: the folder is gone. UserError: a rank failed or is late.
            Abandoned: `close` was called.
        """
        until, look_s = time.monotonic() + self._part_timeout_s, _LOOK_S
        waited_for = set(range(self._ranks))
        while True:
            waited_for -= {rank for rank in waited_for if (task.place / f"part-{rank:04d}.json").exists()}
            if not waited_for:
                return [read_json(task.place / f"part-{rank:04d}.json") for rank in range(self._ranks)]
            self._check()  # a newer start sweeps this folder away, also after this rank's part: nothing would come
            if not task.place.is_dir():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(task.place))
            for rank in sorted(waited_for):
                failed = task.place / f"failed-{rank:04d}.json"
                if failed.exists():
                    told = read_json(failed)
                    raise UserError(
                        f"saving step {task.step}", f"rank {rank} on {told['host']} failed: {told['why']}",
                        "mend that, and run again: the checkpoints before this one are as they were",
                    )  # fmt: skip
            if time.monotonic() > until:
                late = ", ".join(map(str, sorted(waited_for)))
                raise UserError(
                    f"saving step {task.step}",
                    f"rank {late} delivered no part within {self._part_timeout_s:g} s",
                    "check that all nodes share this folder and can write it, and run again",
                )
            if self._closing.wait(look_s):
                raise Abandoned
            look_s = min(_LONGEST_LOOK_S, 1.5 * look_s)

    def _commit(self, task: _Task) -> None:
        parts = self._parts(task)
        parameters: dict[str, list[int]] = {}
        for part in parts:
            parameters |= part["parameters"]
        files = [part["file"] for part in parts]
        try:
            build_index(parameters, files)
        except Damaged as error:
            raise ValueError(f"the ranks' pieces at step {task.step} are no whole: {error}") from error
        manifest = {
            "format": FORMAT,
            "step": task.step,
            "ranks": self._ranks,
            "facts": json.loads(task.facts),
            "parameters": parameters,
            "files": files,
        }
        for rank in range(self._ranks):
            os.unlink(task.place / f"part-{rank:04d}.json")
        write_atomically(task.place / MANIFEST, sealed(manifest))
        fsync_folder(task.place)
        self._check()  # whoever takes over from here on sweeps this folder away first, and it gets no name
        put(task.place, self._folder / step_name(task.step))
        point_latest(self._folder, task.step, self._fence)
        if self._committed is not None:
            self._committed(task.step, sum(file["bytes"] for file in files))
        self._retain(task.step)

    def _retain(self, step: int) -> None:
        """Delete the oldest beyond `keep`, and those of later steps: training went back behind them."""
        steps = steps_in(self._folder)
        kept = [s for s in steps if s <= step][: self._keep]
        for old in steps:
            if old not in kept:
                self._check()
                remove(self._folder / step_name(old), self._fence)


class _Task:
    """A save in flight: everything that is left of the caller's state when `save` returns."""

    def __init__(self, step: int, place: Path, attempt: int, facts: str, layout: Layout) -> None:
        self.step, self.place, self.attempt, self.facts = step, place, attempt, facts
        self.pieces, self.parameters = layout.pieces, layout.parameters
        self._header = layout.header

    def chunks(self, data: Iterable[memoryview]) -> Iterable[memoryview]:
        """The file from its first byte to its last."""
        yield memoryview(self._header)
        yield from data
