"""A checkout's `rumpun` beside a fake SLURM: command lines in, and what the scheduler was told out."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fake_queue import Queue, install

REPO = Path(__file__).resolve().parents[3]
TINY = REPO / "tests" / "launch" / "tiny.toml"
CODE = "import sys; from launch.cli import main; sys.argv[0] = 'rumpun'; sys.exit(main())"


@dataclass(frozen=True)
class Answer:
    """What a command printed."""

    stdout: str
    stderr: str


@dataclass
class Lab:
    """A folder to work in. `fake`: the scheduler. `env`: of every command."""

    place: Path
    fake: Queue
    env: dict[str, str] = field(default_factory=dict)

    def rumpun(self, *words: str | Path, slurm: bool = True, code: int = 0) -> Answer:
        """Run a command in this process; asserts its exit code. `slurm`: whether SLURM's commands are there."""
        from launch.cli import main

        out, err = io.StringIO(), io.StringIO()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.place)
            for name, value in {**self.environment(slurm), **self.env}.items():
                patch.setenv(name, value)
            try:
                main([str(word) for word in words])
            except SystemExit as ended:
                assert (ended.code or 0) == code, f"{words}: {ended.code}\n{out.getvalue()}\n{err.getvalue()}"
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        if code == 2:
            assert len(err.getvalue().strip().splitlines()) == 1, err.getvalue()
        return Answer(out.getvalue(), err.getvalue())

    def environment(self, slurm: bool = True) -> dict[str, str]:
        """What makes the fake scheduler the one of this machine."""
        return {"PATH": f"{self.fake.folder}:/usr/bin:/bin" if slurm else str(self.place / "nothing"), "COLUMNS": "200"}

    def cpu_s(self, *words: str | Path) -> float:
        """Seconds of processor time of a command in a process of its own, with all that it starts."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-c", CODE, *map(str, words)], cwd=self.place, capture_output=True, timeout=120,
            env={**os.environ, "PYTHONPATH": str(REPO), **self.environment()}, check=True,
        )  # fmt: skip
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    @property
    def run(self) -> Path:
        return self.place / "runs" / "tiny"

    @property
    def chain(self) -> dict[str, Any]:
        return dict(json.loads((self.run / "chain" / "jobs.json").read_text()))

    @property
    def ids(self) -> dict[str, str]:
        return {name: entry["id"] for name, entry in self.chain["jobs"].items()}

    def submitted(self) -> list[list[str]]:
        """The command lines of sbatch that submitted, without tests."""
        return [words for words in self.fake.of("sbatch") if "--test-only" not in words]

    def stop(self) -> dict[str, str]:
        """What stop.json says."""
        return dict(json.loads((self.run / "chain" / "stop.json").read_text())["jobs"])


def new_lab(folder: Path) -> Lab:
    """A lab in an empty folder."""
    place = folder / "my work"
    place.mkdir()
    return Lab(place, install(folder / "bin"))
