"""Running a training phase through crashes and hangs: restarted where that may help, and never in a circle.

Invariant: every restart goes on from the last checkpoint, is told in one line, and is one of at most `launch.restarts`;
what fails twice in the same way at the same step is not tried a third time. A mistake of the user, a request to stop
and divergence are nothing that a restart would mend.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.failure import RankFailure
from launch.local import run_ranks
from launch.relay import last_step
from launch.stopping import Asked
from train.survival import Stopped

if TYPE_CHECKING:
    from data_prep.progress import Progress
    from launch.recipe import LaunchConfig


def _saved_step(history: Path) -> int:
    """The step of the newest checkpoint of a history; 0 where there is none."""
    try:
        return int((history / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    except (OSError, ValueError):
        return 0


def _empty(folder: Path) -> None:
    """Remove what a start that failed has left in the stage's folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def run_phase(
    job: Mapping[str, Any], *, out: Path, logs: Path, launch: LaunchConfig, progress: Progress
) -> dict[str, Any]:
    """Run one training phase to its end, restarting it after crashes and hangs. Arguments and results of `run_ranks`.

    The job gets `restart`: how often it was started before in this call.

    Raises:
        RankFailure: as `run_ranks`, with the reason why it was not restarted (again).
    """
    phase, history = job["phase"], Path(job.get("history", out))
    failed: set[tuple[int, str]] = set()
    with Asked() as asked:
        for restart in itertools.count():
            if asked.reason is not None:
                raise Stopped(asked.reason, _saved_step(history))
            try:
                return run_ranks(
                    {**job, "restart": restart}, out=out, logs=logs, launch=launch, progress=progress, asked=asked
                )
            except RankFailure as failure:
                step = last_step(history)
                reason = None
                if asked.reason is not None:
                    reason = f"not restarted: {asked.reason} had asked it to stop"
                elif (step, failure.cause) in failed:
                    reason = f"not restarted: it failed in the same way at the same place before (after step {step})"
                elif restart >= launch.restarts:
                    reason = f"not restarted: it was {restart} times (launch.restarts)" if restart else ""
                if reason is not None:
                    failure.args = (f"{failure}" + (f"\n{reason}" if reason else ""),)
                    raise
                failed.add((step, failure.cause))
                saved = _saved_step(history)
                progress.note(
                    f"[{phase}] {failure.line}, after step {step}; going on "
                    + (f"from step {saved}" if saved else "from the beginning")
                    + f" (restart {restart + 1} of {launch.restarts})"
                )
            with suppress(FileNotFoundError):
                _empty(out)
    raise AssertionError("unreachable")
