"""What a training phase has left in its history folder, read for the account of time and for the status.

Files that grow, are torn at their end or do not exist are read as far as they go.
"""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from launch.slurm.telling.goodput import PHASES, Phase, Start, Step

_STEP = b'{"kind":"step","step":'


def read_phases(run: Path) -> dict[str, Phase]:
    """The phases of a run that have a history."""
    found = {}
    for name in PHASES:
        folder = run / "history" / name
        if folder.is_dir():
            found[name] = read_phase(folder)
    return found


def read_phase(folder: Path) -> Phase:
    """Starts from ledger.jsonl, the rest from metrics.jsonl; its records without a time of day are left out."""
    steps, validations = [], []
    for record in _records(folder / "metrics.jsonl"):
        time = _number(record.get("time"))
        if time is None:
            continue
        if "validation_loss" in record:
            validations.append(time)
        elif "step" in record:
            steps.append(Step(int(record["step"]), time, _number(record.get("step_s")) or 0.0))
    steps.sort(key=lambda step: step.end)
    return Phase(starts_of(folder / "ledger.jsonl"), steps, sorted(validations))


def starts_of(ledger: Path) -> list[Start]:
    """The starts in a ledger. Its many lines of steps are not parsed."""
    found: list[dict[str, Any]] = []
    with suppress(FileNotFoundError), ledger.open("rb") as file:
        for line in file:
            if line.startswith(_STEP):
                with suppress(ValueError, IndexError):
                    found[-1]["computed"] = int(line[len(_STEP) :].split(b",", 1)[0])
                continue
            with suppress(ValueError, KeyError, TypeError, IndexError):
                record = json.loads(line)
                if record["kind"] == "start":
                    time = datetime.fromisoformat(record["time"]).timestamp()
                    after = int(record["step"])
                    found.append({"time": time, "after": after, "computed": after, "saved": [], "rewinds": []})
                elif record["kind"] == "checkpoint":
                    found[-1]["saved"].append(int(record["step"]))
                elif record["kind"] == "rewind":
                    found[-1]["rewinds"].append((int(record["to_step"]), int(record["step"])))
    return [Start(s["time"], s["after"], s["computed"], tuple(s["saved"]), tuple(s["rewinds"])) for s in found]


def total_steps(ledger: Path) -> int | None:
    """The number of the phase's last step, from its newest start; None before any."""
    with suppress(OSError, ValueError, KeyError, TypeError, ZeroDivisionError), ledger.open("rb") as file:
        header = json.loads(file.readline())
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            at = whole.rfind(b'\n{"kind":"start"')
            if at < 0:
                return None
            whole.seek(at + 1)
            start = json.loads(whole.readline())
        return int(start["step"]) + math.ceil(max(0, header["end"] - start["position"]) / start["batch"])
    return None


def last_records(metrics: Path, *, most_bytes: int = 1 << 16) -> list[dict[str, Any]]:
    """The last records of metrics.jsonl, oldest first: as many as are in so many bytes."""
    try:
        with metrics.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - most_bytes))
            data = stream.read()
    except OSError:
        return []
    lines = data.split(b"\n")
    return list(_parsed(lines[1:] if size > most_bytes else lines))


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        yield from _parsed(file)


def _parsed(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                yield record


def _number(value: Any) -> float | None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if good else None
