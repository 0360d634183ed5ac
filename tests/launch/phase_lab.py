"""A place in which a training phase of fake ranks runs, for test_local.py and test_supervisor.py."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep.progress import Progress
from launch import local, ranks
from launch.recipe import LaunchConfig

FAKE = str(Path(__file__).with_name("fake_worker.py"))


class Notes(Progress):
    """Keeps the lines that a user would see."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.steps: list[float | str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)

    def advance(self, n: int = 1, **shown: float | str) -> None:
        self.steps.append(shown["loss"])


class Lab:
    """Runs plans; see fake_worker.py."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.notes = folder, Notes()
        self.out, self.history, self.logs = folder / "out", folder / "history", folder / "logs"
        for place in (self.out, self.history):
            place.mkdir()

    def run(self, how: Callable[..., dict[str, Any]], plan: list[Any], **launch: Any) -> dict[str, Any]:
        """`how` is run_ranks or run_phase; `plan` as in fake_worker.py."""
        settings = LaunchConfig(**{"nproc": len(plan[0]), **launch})
        job = {"phase": "pretrain", "out": str(self.out), "history": str(self.history), "plan": plan}
        return how(job, out=self.out, logs=self.logs, launch=settings, progress=self.notes)

    def wait_for(self, *names: str) -> None:
        """Until the ranks have touched these files."""
        deadline = time.monotonic() + 30
        while not all((self.out / name).exists() for name in names):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def later(self, *names: str, send: tuple[signal.Signals, ...], pause_s: float = 0.3) -> None:
        """Once the ranks have touched these files, send this process signals, one after another."""

        def work() -> None:
            self.wait_for(*names)
            for number in send:
                os.kill(os.getpid(), number)
                time.sleep(pause_s)

        threading.Thread(target=work, daemon=True).start()

    def pids(self, *names: str) -> list[int]:
        return [int((self.out / name).read_text()) for name in names]


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def use_fake(monkeypatch: Any) -> None:
    """Start fake ranks instead of launch.worker; who is left behind has a second to end."""
    monkeypatch.setattr(ranks, "FAILED_LEAVE_S", 1.0)
    monkeypatch.setattr(local, "WORKER", (FAKE,))
