"""Planted faults: a real signal, a full disk or a number that is no number, at one exact place of a rank's work.

A fault is a dictionary in the plan of a run (see ranks.py); it is planted in the forked rank only, around the seams
that the product has anyway, and happens once.

    {"at": MOMENT, "step": 12, "ranks": [1], "do": "KILL"}

`at` is one of `MOMENTS`; `step` is left out where a moment has none; `ranks` left out means every rank. `do`:
    KILL, TERM, USR1, USR2, STOP    this signal to this process
    KILL-ALL, TERM-ALL, …           to all ranks of the run
    FILL                            fill the file system of the folder `where` to its last byte (or the last `leave`)
    PAUSE                           sleep for `seconds`
    NAN                             what the model gives in this step is not a number (with `until`: up to that step)
    RECORD                          note in the folder `where`, all the time, where this rank is (see `Place`)
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOMENTS = (
    "start-up",  # the weights are loaded, DeepSpeed is not there yet
    "restore",  # the checkpoint is about to be read
    "data",  # waiting for the batch of a step
    "gradients",  # between forward and backward of a step
    "before update",  # every gradient is there
    "after update",  # weights and moments moved, and nobody wrote it down
    "save: copy",  # the state is about to be copied
    "save: half a file",  # half of this rank's part is on the disk
    "save: part",  # this rank's part is there, and not yet told
    "save: rename",  # all parts and the manifest are there, under the name of an unfinished one
    "save: latest",  # it has its name, `latest` names the one before
    "save: commit",  # `latest` names it, the ledger does not know
    "save: retain",  # the oldest is about to be deleted
    "export",  # all steps are done; the model is about to be written
    "exported",  # the model is written, the phase is not finished
)


class Planted:
    """The faults of this rank, and the step that it is in."""

    def __init__(self, faults: Iterable[dict[str, Any]], rank: int) -> None:
        self.faults, self.rank = list(faults), rank
        self.step = 0
        self.saving = 0
        unknown = {fault["at"] for fault in self.faults} - {*MOMENTS, "forward", "everywhere"}
        if unknown:
            raise ValueError(f"no such moment: {unknown}")

    def reach(self, moment: str, step: int | None = None) -> None:
        """The rank is at this moment; what was planted for it happens."""
        for fault in list(self.faults):
            if fault["at"] == moment and fault.get("step", step) == step:
                self.faults.remove(fault)
                happen(fault)

    def no_number(self) -> bool:
        """Whether the model must give NaN in this step."""
        return any(
            f["do"] == "NAN" and f["step"] <= self.step <= f.get("until", f["step"])
            for f in self.faults
        )  # fmt: skip


def happen(fault: dict[str, Any]) -> None:
    """Do it to this process, now."""
    name, _, everybody = fault["do"].partition("-")
    if name == "FILL":
        fill(Path(fault["where"]), leave=fault.get("leave", 0))
    elif name == "PAUSE":
        time.sleep(fault["seconds"])
    elif everybody:
        os.killpg(0, signal.Signals[f"SIG{name}"])
    else:
        os.kill(os.getpid(), signal.Signals[f"SIG{name}"])


FILLER = "filler"


def fill(folder: Path, *, leave: int = 0) -> None:
    """Leave not a byte on the file system of this folder, or so many."""
    with (folder / FILLER).open("ab", buffering=0) as stream:
        for size in (1 << 16, 1 << 12, 1):
            try:
                while True:
                    stream.write(b"\0" * size)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        stream.truncate(stream.tell() - leave)


_TEXT = 128


@dataclass(frozen=True)
class Place:
    """Where a rank was when it ended.

    Attributes:
        place: as the loop tells it. step: the step that it was in, 0 before the first.
        saving: what its saver was doing in the background, "" where it was idle.
    """

    place: str = "starting"
    step: int = 0
    saving: str = ""

    @classmethod
    def read(cls, folder: Path, rank: int) -> Place:
        """What was noted last; the beginning where nothing was."""
        try:
            content = (folder / place_file(rank)).read_bytes()
        except FileNotFoundError:
            return cls()
        place, _, step = content[:_TEXT].decode().strip().partition("|")
        return cls(place or "starting", int(step or 0), content[_TEXT:].decode().strip())


def place_file(rank: int) -> str:
    """The file that a rank notes its place in."""
    return f"place-{rank}"


def _plant_record(folder: Path, planted: Planted) -> None:
    from train.history import saver
    from train.history.saver import Saver
    from train.survival import Survival

    number = os.open(folder / place_file(planted.rank), os.O_WRONLY | os.O_CREAT, 0o644)

    def note(text: str, where: int) -> None:
        os.pwrite(number, text.encode().ljust(_TEXT)[:_TEXT], where)

    def entered(_: Any, place: str, *__: Any) -> None:
        note(f"{place}|{planted.step}", 0)

    _before(Survival, "at", entered)
    _before(Saver, "_run", lambda *_: note("its part", _TEXT))
    _before(saver, "put", lambda *_: note("its name", _TEXT))
    _before(saver, "point_latest", lambda *_: note("latest", _TEXT))
    _before(Saver, "_retain", lambda *_: note("removing the oldest", _TEXT))
    _after(Saver, "_run", lambda: note("", _TEXT))


def _before(owner: Any, name: str, act: Callable[..., None]) -> None:
    inner = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        act(*args, **named)
        return inner(*args, **named)

    setattr(owner, name, wrapped)


def _after(owner: Any, name: str, act: Callable[[], None]) -> None:
    inner = getattr(owner, name)

    def wrapped(*args: Any, **named: Any) -> Any:
        found = inner(*args, **named)
        act()
        return found

    setattr(owner, name, wrapped)


def plant(faults: list[dict[str, Any]], *, rank: int) -> None:
    """Plant them in this process."""
    if not faults:
        return
    planted = Planted(faults, rank)
    _plant_steps(planted)
    _plant_saves(planted)
    for fault in faults:
        if fault["do"] == "RECORD":
            _plant_record(Path(fault["where"]), planted)


def _plant_steps(planted: Planted) -> None:
    from train import model_folder
    from train.engine import Engine
    from train.loader import Prefetch
    from train.survival import Survival

    def enter(_: Any, place: str, step: int | None = None) -> None:
        planted.step = step if step is not None else planted.step

    _before(Survival, "at", enter)
    _before(Engine, "__init__", lambda *_, **__: planted.reach("start-up"))
    _before(Engine, "restore", lambda *_, **__: planted.reach("restore"))
    _before(Prefetch, "__next__", lambda *_: planted.reach("data", planted.step))
    _before(Engine, "backward", lambda *_, **__: planted.reach("gradients", planted.step))
    _before(Engine, "step", lambda *_, **__: planted.reach("before update", planted.step))
    _after(Engine, "step", lambda: planted.reach("after update", planted.step))
    for name in ("save_encoder", "save_model"):
        _before(model_folder, name, lambda *_, **__: planted.reach("export"))
        _after(model_folder, name, lambda: planted.reach("exported"))
    forward = Engine.__call__

    def spoiled(self: Engine, *args: Any) -> Any:
        found = forward(self, *args)
        return found * float("nan") if planted.no_number() else found

    Engine.__call__ = spoiled  # type: ignore[method-assign]


def _plant_saves(planted: Planted) -> None:
    from train.history import saver
    from train.history.saver import Saver

    def copying(_: Any, step: int, *__: Any) -> None:
        planted.saving = step
        planted.reach("save: copy", step)

    _before(Saver, "save", copying)
    write = saver.write_verified

    def write_half(path: Path, chunks: Iterable[memoryview], stop: Any) -> tuple[int, str]:
        def halved() -> Iterator[memoryview]:
            for number, chunk in enumerate(chunks):
                if number == 1:  # after the header: half of the state, and what was planted
                    yield chunk[: len(chunk) // 2]
                    planted.reach("save: half a file", planted.saving)
                    yield chunk[len(chunk) // 2 :]
                else:
                    yield chunk

        found = write(path, halved(), stop)
        planted.reach("save: part", planted.saving)
        return found

    saver.write_verified = write_half
    _before(saver, "put", lambda *_: planted.reach("save: rename", planted.saving))
    _after(saver, "put", lambda: planted.reach("save: latest", planted.saving))
    _after(saver, "point_latest", lambda: planted.reach("save: commit", planted.saving))
    _before(Saver, "_retain", lambda *_: planted.reach("save: retain", planted.saving))
