"""What the ranks write while they train, moved into the launcher's progress display.

Invariant: every record that this start adds is shown once, also where rank 0 first rewrites metrics.jsonl without the
steps that it will take again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from train.telemetry import METRICS, STATUS

if TYPE_CHECKING:
    from data_prep.progress import Progress

_BLOCK = 1 << 16


def _same_lines(old: BinaryIO, new: BinaryIO) -> int:
    """Bytes of the whole lines with which both files begin."""
    old.seek(0)
    same = 0
    while True:
        a, b = old.read(_BLOCK), new.read(_BLOCK)
        if a and a == b:
            same += len(a)
            continue
        length = min(len(a), len(b))
        while a[:length] != b[:length]:
            length = next(i for i in range(length) if a[i] != b[i])
        same += length
        break
    new.seek(0)
    last = new.read(same).rfind(b"\n")
    return last + 1


class Tail:
    """Complete lines that are added to a file from now on, also when it is replaced by a shorter version of itself."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0
        self._stream: BinaryIO | None = None
        with suppress(FileNotFoundError):
            self._stream = path.open("rb")  # kept open: the old content can still be read after a replacement
            self._offset = len(self._stream.read())

    def _follow(self) -> BinaryIO | None:
        """The stream of the file that is there now."""
        try:
            now = self._path.open("rb")
        except FileNotFoundError:
            return self._stream
        if self._stream is None:
            self._stream = now
        elif _identity(now) != _identity(self._stream):
            self._offset = _same_lines(self._stream, now)
            self._stream.close()
            self._stream = now
        else:
            now.close()
        return self._stream

    def lines(self) -> Iterator[str]:
        """What was added since the last call."""
        stream = self._follow()
        if stream is None:
            return
        stream.seek(self._offset)
        data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        yield from whole.decode(errors="replace").splitlines()

    def close(self) -> None:
        """Let go of the file."""
        if self._stream is not None:
            self._stream.close()


def _identity(stream: BinaryIO) -> tuple[int, int]:
    import os

    facts = os.fstat(stream.fileno())
    return facts.st_dev, facts.st_ino


class Relay:
    """Shows what one start of the ranks writes into `folder`; make it before they start.

    Args:
        stepping: called once, with facts, when the first step of this start has ended.
    """

    def __init__(
        self, folder: Path, progress: Progress, *, stepping: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self._folder, self.progress, self._stepping = folder, progress, stepping
        (folder / STATUS).unlink(missing_ok=True)  # an earlier start's
        self._metrics = Tail(folder / METRICS)
        self._status: dict[str, Any] = {}

    def look(self) -> None:
        """Move what was written since the last look."""
        try:
            status = json.loads((self._folder / STATUS).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            status = {}
        records = [json.loads(line) for line in self._metrics.lines()]
        if status and status != self._status:
            self._status = status
            # a status is written before its records, so others that were read with it belong to the bar before
            own = {"training": "loss", "validating": "validation_loss"}.get(status["what"])
            self._advance([r for r in records if own not in r])
            for note in status.get("notes", ()):
                self.progress.note(f"[{self._folder.name}] {note}")
            self.progress.begin(status["what"], status["total"], "steps")
            records = [r for r in records if own in r]
        self._advance(records)

    def _advance(self, records: list[dict[str, Any]]) -> None:
        for record in records:
            if "loss" in record:
                if self._stepping is not None:
                    self._stepping({"step": record.get("step"), "parts_s": record.get("start_parts_s", {})})
                    self._stepping = None
                self.progress.advance(1, **shown(record))
            elif "validation_loss" in record:
                self.progress.advance(0, validation_loss=record["validation_loss"])

    def close(self) -> None:
        """Look a last time."""
        self.look()
        self._metrics.close()


def shown(record: dict[str, Any]) -> dict[str, float | str]:
    """What the progress line shows of a training step: the use of the device's peak only where it is known."""
    loss = "skipped" if record["loss"] is None else record["loss"]  # a step whose loss was not finite
    values: dict[str, float | str] = {"loss": loss, "tokens_per_s": record["tokens_per_s"]}
    if "trunk_mfu" in record:
        values["trunk_mfu"] = f"{record['trunk_mfu']:.1%}"
    return values


def last_step(folder: Path) -> int:
    """The step of the last record in a folder's metrics.jsonl; 0 where there is none."""
    try:
        with (folder / METRICS).open("rb") as stream:
            stream.seek(max(0, stream.seek(0, 2) - _BLOCK))
            lines = stream.read().split(b"\n")
    except FileNotFoundError:
        return 0
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError):  # a line cut off by a crash
            return int(json.loads(line)["step"])
    return 0


def saved_step(history: Path) -> int:
    """The step of the newest checkpoint of a history; 0 where there is none."""
    try:
        return int((history / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    except (OSError, ValueError):
        return 0
