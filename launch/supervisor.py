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

from data_prep.errors import UserError
from launch.failure import Hung, RankFailure
from launch.local import LocalStarter
from launch.ranks import Starter, run_ranks
from launch.relay import last_step, saved_step
from launch.stopping import Asked
from train.guard import Diverged
from train.history.fence import Superseded, claim
from train.survival import Stopped

if TYPE_CHECKING:
    from data_prep.progress import Progress
    from launch.recipe import LaunchConfig


def _empty(folder: Path) -> None:
    """Remove what a start that failed has left in the stage's folder."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _outcome(error: BaseException | None, history: Path) -> dict[str, Any]:
    """How a start of the ranks ended, for the record."""
    facts: dict[str, Any] = {"outcome": "done", "reason": "", "saved": saved_step(history), "last": last_step(history)}
    if error is None:
        return facts
    if isinstance(error, Stopped):
        return facts | {"outcome": "stopped", "reason": error.reason}
    if isinstance(error, RankFailure):
        kind = "hung" if isinstance(error, Hung) else "failed"
        return facts | {"outcome": kind, "reason": error.line, "cause": error.cause, "hosts": list(error.hosts)}
    names = {UserError: "mistake", Diverged: "diverged", Superseded: "superseded"}
    return facts | {"outcome": names.get(type(error), "stopped"), "reason": str(error) or type(error).__name__}


def _why_not_again(
    failure: RankFailure, failed: set[tuple[int, str]], *, step: int, restart: int, limit: int, asked: Asked
) -> str | None:
    """Why a failed phase is not started again here, None where it is."""
    if asked.reason is not None:
        return f"not restarted: {asked.reason} had asked it to stop"
    if not failure.again_here:
        return "not restarted here: it needs other nodes"
    if (step, failure.cause) in failed:
        return f"not restarted: it failed in the same way at the same place before (after step {step})"
    if restart >= limit:
        return f"not restarted: it was {restart} times (launch.restarts)" if restart else ""
    return None


def run_phase(
    job: Mapping[str, Any],
    *,
    out: Path,
    logs: Path,
    launch: LaunchConfig,
    progress: Progress,
    starter: Starter | None = None,
) -> dict[str, Any]:
    """Run one training phase to its end, restarting it after crashes and hangs. Arguments and results of `run_ranks`.

    The job gets `restart`: how often it was started before in this call.

    Raises:
        RankFailure: as `run_ranks`, with the reason why it was not restarted (again). Superseded: a newer start of
            this phase has taken over.
    """
    starter = starter or LocalStarter()
    phase, history = job["phase"], Path(job.get("history", out))
    failed: set[tuple[int, str]] = set()
    owner, owned = starter.identity, None
    with Asked() as asked:
        for restart in itertools.count():
            if asked.reason is not None:
                raise Stopped(asked.reason, saved_step(history))
            error: BaseException | None = None
            owned = claim(history, job=owner[0], restart=owner[1], after=owned)
            try:
                return run_ranks(
                    {**job, "restart": restart, "fence": owned.facts()}, out=out, logs=logs, launch=launch,
                    progress=progress, asked=asked, starter=starter,
                )  # fmt: skip
            except RankFailure as failure:
                error, step = failure, last_step(history)
                reason = _why_not_again(
                    failure, failed, step=step, restart=restart, limit=launch.restarts, asked=asked
                )  # fmt: skip
                failure.repeated = (step, failure.cause) in failed
                if reason is not None:
                    failure.args = (f"{failure}" + (f"\n{reason}" if reason else ""),)
                    raise
                failed.add((step, failure.cause))
                saved = saved_step(history)
                progress.note(
                    f"[{phase}] {failure.line}, after step {step}; going on "
                    + (f"from step {saved}" if saved else "from the beginning")
                    + f" (restart {restart + 1} of {launch.restarts})"
                )
            except BaseException as other:
                error = other
                raise
            finally:
                starter.note("ranks_ended", phase=phase, attempt=restart, **_outcome(error, history))
            with suppress(FileNotFoundError):
                _empty(out)
    raise AssertionError("unreachable")
