"""Runs to begin a test with: copies of the one that the tests of a session share, whole or ended early."""

from __future__ import annotations

import shutil
from pathlib import Path

from launch.pipeline import STAGES


def copied(run: Path, runs: Path) -> Path:
    """A copy of a run folder as `runs`/NAME; returns `runs`."""
    shutil.copytree(run, runs / run.name, symlinks=True)
    return runs


def without(runs: Path, stage: str) -> Path:
    """Take a stage and all after it away from the only run in `runs`, with their histories; returns `runs`."""
    (run,) = runs.iterdir()
    for name in STAGES[STAGES.index(stage) :]:
        for folder in (run / name, run / "history" / name, run / "logs" / name):
            if folder.exists():
                shutil.rmtree(folder)
    return runs
