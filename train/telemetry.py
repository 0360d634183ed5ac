"""What a training phase leaves to read: metrics.jsonl, TensorBoard events, status.json and summary.json.

Rank 0 writes; the other ranks hold an idle writer, so that the loop reads the same everywhere. Records grow in the
phase's history, which outlives a crash, and are copied into the stage's folder at the end.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from data_prep.files import disk_errors, write_atomically, write_json
from train.history.fence import Fence, Superseded, sweep_beside, write_fenced, write_json_fenced

METRICS = "metrics.jsonl"
STATUS = "status.json"


def peak_rss_gb() -> float:
    """Peak resident memory of this process in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


def peak_memory_gb(device: Any) -> float:
    """Peak memory of this process in GiB: allocated tensors on a CUDA device, resident memory elsewhere."""
    if str(device).startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated(device) / (1 << 30)
    return peak_rss_gb()


class Telemetry:
    """Writes the files of one phase.

    Args:
        out: the stage's folder. history: where metrics.jsonl and status.json grow. active: True on rank 0 only.
        fence: of this start; where a newer one has the history, nothing but a record that nobody reads is written.
    """

    def __init__(self, out: Path, *, history: Path, active: bool, fence: Fence | None = None) -> None:
        self._out, self._history, self._active, self._fence = out, history, active, fence
        self._records: list[dict[str, Any]] = []
        self._stream: TextIO | None = None

    def resume(self, step: int) -> None:
        """Open metrics.jsonl behind `step`: records of later steps, which will be taken again, are dropped.

        The file is a new one each time, so that what an older start still appends goes to a file without a name.

        Raises `Superseded` where a newer start has the history.
        """
        if not self._active:
            return
        path = self._history / METRICS
        with disk_errors(path):
            if self._fence is not None:
                sweep_beside(self._history, self._fence)
            if path.exists():
                self._records = [r for r in _whole_records(path) if r.get("step", 0) <= step]
                write_fenced(path, "".join(json.dumps(r) + "\n" for r in self._records).encode(), self._fence)
            self._stream = path.open("a", encoding="utf-8")
            if self._fence is not None:
                self._fence.check()  # again: what was opened is this start's, or replaced by the next one

    def status(self, what: str, *, total: int | None = None, notes: Sequence[str] = ()) -> None:
        """Tell the launcher what is going on: starting, validating, training (of `total` steps), saving.

        Args:
            notes: lines that the user should read.
        """
        if self._active and (self._fence is None or not self._fence.lost):
            with disk_errors(self._history):
                self._history.mkdir(parents=True, exist_ok=True)
            told = {"what": what, "total": total, "notes": list(notes)}
            with suppress(Superseded):
                write_json_fenced(self._history / STATUS, told, self._fence)

    def log(self, record: dict[str, Any]) -> None:
        """Append one record, with the time of day, to metrics.jsonl and flush it, so that a watcher sees it at once."""
        if not self._active:
            return
        assert self._stream is not None, "resume() comes before the first record"
        record = {"time": time.time(), **record}
        self._records.append(record)
        with disk_errors(self._history / METRICS):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json, metrics.jsonl and the TensorBoard events of all records into the stage's folder."""
        if not self._active:
            return
        assert self._stream is not None, "resume() comes before the end"
        self._stream.close()
        write_atomically(self._out / METRICS, (self._history / METRICS).read_bytes())
        self._write_events()
        (self._history / STATUS).unlink(missing_ok=True)
        write_json(self._out / "summary.json", summary)

    def _write_events(self) -> None:
        """TensorBoard events through tensorboard's own writer: torch's wrapper costs two seconds of imports."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        writer = EventFileWriter(str(self._out / "tensorboard"))
        for record in self._records:
            values = [
                Summary.Value(tag=k, simple_value=v)
                for k, v in record.items()
                if k not in ("step", "time") and isinstance(v, (int, float))
            ]
            wall_time = record.get("time", time.time())
            writer.add_event(Event(step=record["step"], wall_time=wall_time, summary=Summary(value=values)))
        writer.close()


def _whole_records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a file whose last line may have been cut off by a crash."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide numerics."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "deepspeed", "transformers", "numpy")}
