"""Checkpoints as training sees them: how often to save, finding the newest one that holds, reading it.

Invariant: `read` answers by parameter name and flat range alone, so any number of ranks under any ZeRO stage can read
what any other wrote. `find` never returns a checkpoint with a byte that differs from what was written, and never
passes one over in silence.
"""

from __future__ import annotations

import math
import os
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import disk_errors, sha256_file
from train.history.fence import Fence, Superseded
from train.history.folder import (
    MANIFEST,
    damaged_name,
    latest_in,
    point_latest,
    recover,
    set_damaged_aside,
    step_name,
    steps_in,
)
from train.history.manifest import (
    Damaged,
    NewerFormat,
    build_index,
    own_key,
    read_manifest,
    state_name,
    tensor_key,
)

if TYPE_CHECKING:
    import torch

Exchange = Callable[[Any], list[Any]]
"""All ranks call it with a small JSON value and get everybody's, by rank."""

_LOOKS, _PAUSE_S = 30, 2.0  # a network file system may show another host's files up to a minute late


class CheckpointConfig(Section):
    """[checkpoint]: how often a phase saves what it needs to go on. Nothing here changes a result."""

    every_steps: Annotated[int, Field(gt=0)] | None = None
    """Save after every so many optimiser steps; unset leaves it to `every_s`."""
    every_s: Annotated[float, Field(gt=0)] | None = 600.0
    """Save when so many seconds have passed since the last save: what a crash may cost. 600 s keeps the copying below
    a percent of the time even where a save takes several seconds. Unset leaves it to `every_steps`."""
    keep: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept, 12 bytes a parameter each; the oldest leaves after a new one is verified. With 2 there is one
    to fall back on when the disk damages the other."""
    background: bool = True
    """Copy the state to host memory (12 bytes a parameter over all ranks) and let a thread write it while training
    goes on. Off saves that memory; training then waits for the disk."""


class Checkpoint:
    """An intact checkpoint, opened for reading. Files stay mapped until `close`, or until nobody holds this object.

    Raises `Damaged` or `NewerFormat` (see `read_manifest`); checksums of the state files are `find`'s work.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        self.step: int = manifest["step"]
        self.ranks: int = manifest["ranks"]
        self.facts: dict[str, Any] = manifest["facts"]
        self.parameters: dict[str, tuple[int, ...]] = {n: tuple(s) for n, s in manifest["parameters"].items()}
        self.files: list[dict[str, Any]] = manifest["files"]
        self._index = build_index(self.parameters, self.files)
        self._open: dict[str, Any] = {}

    def _file(self, name: str) -> Any:
        if name not in self._open:
            from safetensors import safe_open

            self._open[name] = safe_open(self.folder / name, framework="pt", device="cpu")
        return self._open[name]

    def read(self, name: str, kind: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a flattened parameter (`weight`) or moment, in memory of their own: [stop - start].

        Only the pages that hold them are read. Raises KeyError for what was not saved, ValueError beyond its end.
        """
        import torch

        size = math.prod(self.parameters[name])
        if not 0 <= start <= stop <= size:
            raise ValueError(f"{kind} of {name} has {size} elements, not [{start}, {stop})")
        if start == stop:
            return torch.empty(0)
        runs = self._index[name, kind]
        parts: list[torch.Tensor] = []
        at = bisect_right(runs, start, key=lambda run: run.start) - 1
        while start < stop:
            run = runs[at]
            end = min(stop, run.stop)
            held = self._file(run.file).get_slice(tensor_key(kind, run.start, name))
            parts.append(held[start - run.start : end - run.start])
            start, at = end, at + 1
        return torch.cat(parts)  # a copy even of a single part: the files may be deleted later

    def own(self, rank: int) -> dict[str, torch.Tensor]:
        """The small tensors that this rank saved for itself; {} for a rank that did not exist then."""
        if rank >= self.ranks:
            return {}
        file = self._file(state_name(rank, self.ranks))
        keys = [key for key in file.keys() if key.startswith(own_key(""))]  # noqa: SIM118 (not a mapping)
        return {key.removeprefix(own_key("")): file.get_tensor(key).clone() for key in keys}

    def check_model(self, named_shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise `UserError` unless the model has exactly these parameters."""
        differences = []
        for name in sorted({*self.parameters, *named_shapes}):
            saved = list(self.parameters[name]) if name in self.parameters else "nothing"
            asked = list(named_shapes[name]) if name in named_shapes else "nothing"
            if saved != asked:
                differences.append(f"{name} is {saved} in the checkpoint and {asked} in the model")
        if differences:
            more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
            raise UserError(
                str(self.folder),
                f"was saved from another model: {differences[0]}{more}",
                "use the recipe that this run began with, or give the changed one another name",
            )

    def close(self) -> None:
        """Let go of the files, so that a deleted checkpoint frees its space."""
        self._open.clear()


@dataclass(frozen=True)
class Found:
    """What `find` found: None at the beginning of a history; a line for the user for everything that was not as it
    should be."""

    checkpoint: Checkpoint | None
    notes: list[str] = field(default_factory=list)


def find(
    folder: Path,
    *,
    rank: int,
    ranks: int,
    exchange: Exchange,
    expected: int | None = None,
    fence: Fence | None = None,
) -> Found:
    """The newest checkpoint whose checksums all hold. A collective: the ranks share the hashing.

    Damaged ones are renamed `.damaged-step-N` (the newest stays) once a good one is found, and `latest` is mended.

    Args:
        folder: of the checkpoints; need not exist.
        expected: the last step that is known to have been saved.
        fence: of this start; where a newer one has the history, nothing is renamed or mended.

    Raises:
        UserError: everything here is damaged; nothing is here although something was saved; a checkpoint is of a newer
            version of rumpun; the nodes do not see the same files. Superseded: a newer start has the history. All ranks
            raise the same.
    """
    search = _Search(folder, rank, ranks, exchange, fence)
    candidates = search.on_first_rank(search.candidates)
    wrong: dict[int, str] = {}
    for step in candidates:
        reason = search.reason_against(step)
        if reason is None:
            break
        wrong[step] = reason
    else:
        if wrong:
            said = "; ".join(f"{step_name(step)}: {reason}" for step, reason in wrong.items())
            raise UserError(str(folder), f"holds no checkpoint that is whole ({said})", _START_OVER)
        if expected:
            raise UserError(str(folder), f"holds no checkpoint, but one was saved at step {expected}", _START_OVER)
        return Found(None)
    notes = [
        f"checkpoint {step_name(bad)} is damaged ({reason}) and was set aside as {damaged_name(bad)}; "
        f"the run goes on from step {step}"
        for bad, reason in wrong.items()
    ]
    if expected is not None and expected > step and not wrong:
        notes.append(f"step {expected} was saved, but its checkpoint is gone; the run goes on from step {step}")
    search.on_first_rank(lambda: search.tidy(step, list(wrong)))
    return Found(Checkpoint(folder / step_name(step)), notes)


_START_OVER = "put a checkpoint back from a copy; or --fresh keeps this history aside and starts over"


@dataclass
class _Search:
    """The collective parts of `find`. Every method is called by all ranks, and ends the same way on all of them."""

    folder: Path
    rank: int
    ranks: int
    exchange: Exchange
    fence: Fence | None

    def on_first_rank(self, work: Callable[[], Any]) -> Any:
        told: dict[str, Any] = {}
        if self.rank == 0:
            try:
                with disk_errors(self.folder):
                    told = {"value": work()}
            except UserError as error:
                told = {"error": (error.value, error.rule, error.fix)}
            except Superseded as lost:
                told = {"lost": str(lost)}
        told = self.exchange(told)[0]
        if "lost" in told:
            raise Superseded(told["lost"])
        if "error" in told:
            raise UserError(*told["error"])
        return told["value"]

    def candidates(self) -> list[int]:
        if self.fence is not None:
            self.fence.check()
        if self.folder.is_dir():
            recover(self.folder)
        return steps_in(self.folder)

    def tidy(self, good: int, damaged: list[int]) -> None:
        if self.fence is not None:
            self.fence.check()
        if damaged:
            set_damaged_aside(self.folder, damaged)
        if latest_in(self.folder) != step_name(good):
            point_latest(self.folder, good, self.fence)

    def reason_against(self, step: int) -> str | None:
        """Why this checkpoint can not be used, None where it can."""
        place = self.folder / step_name(step)
        views = self._views(place)
        if any(view != views[0] for view in views):
            other = next(r for r, view in enumerate(views) if view != views[0])
            raise UserError(
                str(place), f"rank {other} does not see the same files there as rank 0",
                "put the run on storage that all nodes share",
            )  # fmt: skip
        view = views[0]
        if "denied" in view:
            raise UserError(view["denied"], "may not be read by this user", "mend its permissions and run again")
        if "newer" in view:
            raise UserError(
                str(place), f"is of format {view['newer']}, which this version does not know",
                "go on with the version of rumpun that wrote it, or a later one",
            )  # fmt: skip
        if "wrong" in view:
            return str(view["wrong"])
        told = self.exchange(self._hash_share(place))
        return next((reason for reason in told if reason), None)

    def _views(self, place: Path) -> list[dict[str, Any]]:
        """What each rank sees of a checkpoint without reading it through."""
        for look in range(_LOOKS):
            views = self.exchange(_view(place))
            if all(view == views[0] for view in views):
                break
            if look + 1 < _LOOKS:
                time.sleep(_PAUSE_S)
        return views

    def _hash_share(self, place: Path) -> str | None:
        """Read this rank's share of the files through; what is wrong with them, if anything."""
        files = sorted(read_manifest(place)["files"], key=lambda file: (-file["bytes"], file["file"]))
        for file in files[self.rank :: self.ranks]:
            try:
                if sha256_file(place / file["file"]) != file["sha256"]:
                    return f"{file['file']}: its checksum differs"
            except OSError as error:
                return f"{file['file']} cannot be read ({error.strerror})"
        return None


def _view(place: Path) -> dict[str, Any]:
    """A manifest's checksum, or what is wrong with it or with the sizes that it tells."""
    try:
        manifest = read_manifest(place)
        build_index(manifest["parameters"], manifest["files"])
        for file in manifest["files"]:
            path = place / file["file"]
            if path.exists() and not os.access(path, os.R_OK):
                return {"denied": str(path)}
            size = path.stat().st_size if path.is_file() else None
            if size != file["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes instead of {file['bytes']}"
                raise Damaged(f"{file['file']} {found}")
    except NewerFormat as newer:
        return {"newer": str(newer)}
    except Damaged as damaged:
        return {"wrong": str(damaged)}
    except PermissionError as error:
        return {"denied": str(error.filename)}
    except OSError as error:
        return {"wrong": f"{MANIFEST} cannot be read ({error.strerror})"}
    return {"sha256": manifest["sha256"]}
