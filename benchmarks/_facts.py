"""What a recorded figure needs beside it: the machine, its load, the versions, the command, the commit."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
RESULTS = REPO / "benchmarks" / "results"


def _answer(*command: str, cwd: Path | None = None) -> str:
    """What a command prints, without its newline; empty where it cannot run."""
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def versions(python: str, packages: Sequence[str]) -> dict[str, str]:
    """The installed versions of some packages for an interpreter; absent ones are left out."""
    code = (
        "import importlib.metadata as m, sys\n"
        "for p in sys.argv[1:]:\n"
        "    try: print(p, m.version(p))\n"
        "    except m.PackageNotFoundError: pass"
    )
    return dict(line.split(" ", 1) for line in _answer(python, "-c", code, *packages).splitlines())


def cpu_name() -> str:
    """The processor as Linux names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    avx512 = "with" if "avx512f" in named.get("flags", "") else "without"
    return f"{named.get('model name', platform.machine())} ({avx512} AVX-512)"


def gpu_lines() -> list[str]:
    """Name, driver, clocks and power limit of the GPUs; empty without one."""
    asked = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,memory.total"
    return _answer("nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader").splitlines()


def command_line() -> str:
    """The command that is running, with paths of this machine shortened to their last part."""
    words = [Path(a).name if a.startswith("/") else a for a in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])


def machine_lines(*, threads: int, load_before: float, packages: dict[str, str]) -> list[str]:
    """Markdown lines that say on what a figure was taken."""
    commit = _answer("git", "rev-parse", "--short", "HEAD", cwd=REPO) or "unknown"
    changed = _answer("git", "status", "--porcelain", "--", "train", "data_prep", cwd=REPO)
    return [
        f"Command: `{command_line()}`",
        f"Machine: {os.cpu_count()} cores, {cpu_name()}, {threads} thread(s) per process"
        + "".join(f"; GPU {line}" for line in gpu_lines())
        + f". Load average (1 min) {load_before:.1f} at the start, {os.getloadavg()[0]:.1f} at the end.",
        f"Python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in packages.items())
        + f". Commit {commit}{' with uncommitted changes' if changed else ''}, "
        + f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC.",
    ]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)])
