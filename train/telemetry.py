"""What a training phase leaves to read: metrics.jsonl, TensorBoard events, status.json and summary.json.

Rank 0 writes; the other ranks hold an idle writer, so that the loop reads the same everywhere.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from data_prep.files import disk_errors, write_json


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
        out: the stage's folder. active: True on rank 0 only.
    """

    def __init__(self, out: Path, *, active: bool) -> None:
        self._out, self._active = out, active
        self._records: list[dict[str, Any]] = []
        self._stream = (out / "metrics.jsonl").open("a", encoding="utf-8") if active else None
        self._started = time.perf_counter()

    def status(self, what: str, *, total: int | None = None) -> None:
        """Tell the launcher what is going on: starting, validating, training (of `total` steps), saving."""
        if self._active:
            write_json(self._out / "status.json", {"what": what, "total": total})

    def log(self, record: dict[str, Any]) -> None:
        """Append one record to metrics.jsonl and flush it, so that a watcher sees it at once."""
        if self._stream is None:
            return
        self._records.append(record)
        with disk_errors(self._out / "metrics.jsonl"):
            self._stream.write(json.dumps(record) + "\n")
            self._stream.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write summary.json and the TensorBoard events of all records."""
        if self._stream is None:
            return
        self._stream.close()
        self._write_events()
        (self._out / "status.json").unlink(missing_ok=True)
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
                if k != "step" and isinstance(v, (int, float))
            ]
            writer.add_event(Event(step=record["step"], wall_time=time.time(), summary=Summary(value=values)))
        writer.close()


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide numerics."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "deepspeed", "transformers", "numpy")}
