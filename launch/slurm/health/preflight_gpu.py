"""What nvidia-smi, the kernel's log and a matrix product say about this node's GPUs.

No nvidia-smi: no claim. The fields are those of `nvidia-smi --help-query-gpu`; drivers before 535 call the reasons for
low clocks `clocks_throttle_reasons`, and drivers without row remapping refuse that query, so each is asked for itself.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SMI_S = 15.0  # a healthy nvidia-smi answers in 0.1 to 3 s; a driver that lost a GPU may never answer
FIELDS = (
    "index",
    "uuid",
    "name",
    "memory.used",
    "memory.total",
    "temperature.gpu",
    "ecc.errors.uncorrected.volatile.total",
    "retired_pages.pending",
)
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Bits of the reasons for low clocks (nvml.h). Idle, clocks set by an admin and the power limit are ordinary; a bare
# hardware slowdown (0x8) may also be a change of the power state.
HEAT, POWER_BRAKE, SOFT_HEAT = 0x40, 0x80, 0x20
# Xid messages that speak of the hardware: double-bit ECC, stopped microcontroller, failed row remapping, NVLink, off
# the bus, uncontained ECC, GSP timeouts, unrecovered ECC. Others (13, 31, 43, 45 …) are mostly a program's mistakes.
HARDWARE_XIDS = frozenset({48, 62, 64, 74, 79, 95, 119, 120, 140})
XID_HOURS = 24.0


class SmiError(Exception):
    """nvidia-smi is there and gives no usable answer."""


def _smi(query: str, fields: Sequence[str]) -> list[dict[str, str]]:
    """Rows of one query. Raises `SmiError` with nvidia-smi's own words."""
    command = ["nvidia-smi", f"--query-{query}={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=SMI_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise SmiError(f"nvidia-smi gives no answer in {SMI_S:.0f} s") from error
    except OSError as error:
        raise SmiError(f"nvidia-smi cannot be started ({error.strerror})") from error
    if answer.returncode != 0:
        said = (answer.stderr.strip() or answer.stdout.strip()).splitlines()
        raise SmiError(f"nvidia-smi fails: {said[0] if said else f'exit code {answer.returncode}'}")
    rows = [[cell.strip() for cell in row] for row in csv.reader(io.StringIO(answer.stdout)) if row]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def _try(query: str, fields: Sequence[str]) -> list[dict[str, str]]:
    try:
        return _smi(query, fields)
    except SmiError:
        return []


def _number(text: str) -> int | None:
    """A count or a mask; None for `[N/A]`, `[Not Supported]` and the like."""
    try:
        return int(text, 16) if text.startswith("0x") else int(float(text))
    except ValueError:
        return None


def _mine(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """The GPUs that this job was given; all that are seen where CUDA_VISIBLE_DEVICES says nothing."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return rows
    names = [name.strip() for name in given.split(",") if name.strip()]
    return [row for row in rows if row["index"] in names or any(row["uuid"].startswith(n) for n in names if len(n) > 3)]


def gpu_facts() -> list[dict[str, Any]] | None:
    """One entry a GPU of this job; None where there is no nvidia-smi.

    Keys: index, uuid, name, used_mb, total_mb, celsius, ecc (uncorrected errors since the driver was loaded), remap
    ("", "pending", "failed"), reasons (mask of reasons for low clocks), processes (programs on it). A value that the
    GPU or the driver does not tell is None. Call it before CUDA is used here: programs on a GPU are then others'.

    Raises:
        SmiError: nvidia-smi is there, but its answer is an error or does not come.
    """
    if shutil.which("nvidia-smi") is None:
        return None
    rows = _mine(_smi("gpu", FIELDS))
    reasons: dict[str, int | None] = {}
    for field in REASONS:
        if answers := _try("gpu", ("uuid", field)):
            reasons = {answer["uuid"]: _number(answer[field]) for answer in answers}
            break
    remaps = _try("remapped-rows", ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure"))
    remap = {row["gpu_uuid"]: row for row in remaps}
    programs: dict[str, list[str]] = {}
    for row in _try("compute-apps", ("gpu_uuid", "pid", "process_name")):
        programs.setdefault(row["gpu_uuid"], []).append(f"{Path(row['process_name']).name} (pid {row['pid']})")
    return [
        {
            "index": row["index"],
            "uuid": row["uuid"],
            "name": row["name"],
            "used_mb": _number(row["memory.used"]),
            "total_mb": _number(row["memory.total"]),
            "celsius": _number(row["temperature.gpu"]),
            "ecc": _number(row["ecc.errors.uncorrected.volatile.total"]),
            "remap": _remap(remap.get(row["uuid"], {}), row["retired_pages.pending"]),
            "reasons": reasons.get(row["uuid"]),
            "processes": programs.get(row["uuid"], []),
        }
        for row in rows
    ]


def _yes(text: str) -> bool:
    return text.lower() in ("yes", "1")


def _remap(row: dict[str, str], retired: str) -> str:
    if _yes(row.get("remapped_rows.failure", "")):
        return "failed"
    return "pending" if _yes(row.get("remapped_rows.pending", "")) or _yes(retired) else ""


def xids(log: Path = Path("/dev/kmsg")) -> list[int] | None:
    """Hardware Xid numbers in the kernel's log of the last day, each once; None where the log may not be read."""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    records = []
    try:
        while record := os.read(descriptor, 8192):  # /dev/kmsg gives one record a read, and EAGAIN after the last
            records.append(record.decode(errors="replace"))
    except OSError:
        pass
    finally:
        os.close(descriptor)
    return xids_of("".join(records).splitlines(), now_s=time.clock_gettime(time.CLOCK_MONOTONIC))


def xids_of(lines: Sequence[str], *, now_s: float) -> list[int]:
    """Hardware Xids among kernel records `priority,number,microseconds,…;NVRM: Xid (PCI:…): 79, …`."""
    found = set()
    for line in lines:
        if match := re.match(r"\d+,\d+,(\d+),[^;]*;NVRM: Xid \([^)]*\): (\d+)", line):
            recent = now_s - int(match[1]) / 1e6 < XID_HOURS * 3600
            if recent and int(match[2]) in HARDWARE_XIDS:
                found.add(int(match[2]))
    return sorted(found)


def visible_gpus() -> int:
    """GPUs that torch can use here. Imports torch."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def matrix_gpu(*, size: int = 8192, measure_s: float = 0.2) -> list[float]:
    """TFLOP/s of each GPU at a bf16 matrix product, all GPUs at once, as training loads them.

    Raises:
        ArithmeticError: a product came out wrong.
    """
    import torch

    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    halves = [torch.full((size, size), 0.5, dtype=torch.bfloat16, device=device) for device in devices]
    for half in halves:  # warm-up: cuBLAS is loaded, clocks rise
        for _ in range(3):
            half @ half
    for device in devices:
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    halves[0] @ halves[0]
    torch.cuda.synchronize(devices[0])
    count = max(3, int(measure_s / max(time.perf_counter() - began, 1e-4)))
    events, last = [], []
    for device, half in zip(devices, halves, strict=True):
        with torch.cuda.device(device):
            pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            pair[0].record()
            for _ in range(count):
                product = half @ half
            pair[1].record()
            events.append(pair)
            last.append(product)
    rates = []
    for device, (start, end), product in zip(devices, events, last, strict=True):
        torch.cuda.synchronize(device)
        if not bool((product == 0.25 * size).all()):
            raise ArithmeticError(f"a matrix product of GPU {device.index} came out wrong")
        rates.append(round(2 * size**3 * count / (start.elapsed_time(end) / 1000) / 1e12, 1))
    return rates
