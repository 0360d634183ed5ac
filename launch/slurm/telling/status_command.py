"""`rumpun status RUN`, `rumpun watch RUN`, `rumpun logs RUN`: where a run is, and what it says.

None of them changes anything. Exit codes of `watch`: 0 all jobs are done; 1 one failed or is lost; 75 some were
stopped, `rumpun submit` goes on; 130 ^C, the jobs go on. `status` and `logs`: 0, or 2 for a mistake in the arguments.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import UserError
from launch.ledger_command import find_run

if TYPE_CHECKING:
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.scheduler.job_state import JobState
    from launch.slurm.telling.status import RunStatus

RunName = Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or the name of one")]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="where run folders are")]


class Asking:
    """Asks the scheduler about a run's jobs, if there is one here, at most once in `poll_s`."""

    def __init__(self, run: Path, *, poll_s: float) -> None:
        self._run, self._poll_s = run, poll_s
        self._slurm: Slurm | None = None
        self._missing = ""
        self._states: dict[str, JobState] | None = None
        self._asked_at = float("-inf")

    def look(self) -> RunStatus:
        """The status now: files are read anew, the scheduler is asked where that is due."""
        from launch.slurm.telling.status import ids_to_ask, read_status

        ids = ids_to_ask(self._run)
        notes: Sequence[str] = ()
        states: dict[str, JobState] | None = {}
        if ids:
            states, notes = self._ask(ids)
        return read_status(self._run, states, now=time.time(), notes=notes)

    def _ask(self, ids: Sequence[str]) -> tuple[dict[str, JobState] | None, Sequence[str]]:
        if not self._missing and self._slurm is None:
            from launch.slurm.scheduler.commands import Slurm

            try:
                self._slurm = Slurm.here(poll_s=self._poll_s, need=("squeue",))
            except UserError as error:
                self._missing = f"{error.value}: {error.rule}. States are those of the files. {error.fix}"
        if self._slurm is None:
            return None, [self._missing]
        now, notes = time.monotonic(), []
        # a job that was named since then waits for its turn: the scheduler is never asked oftener than promised
        if now - self._asked_at >= self._poll_s:
            self._asked_at = now
            try:
                self._states = self._slurm.jobs(ids)
            except UserError as error:
                old = "those of the files" if self._states is None else "older"
                notes.append(f"the scheduler did not answer ({error.value}: {error.rule}); states are {old}")
        known = self._states
        return (None if known is None else {id: known[id] for id in ids if id in known}), notes


def status_command(
    run: RunName,
    runs: Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON value")] = False,
) -> None:
    """Where a run is: its jobs with states, progress, ETA, nodes, loss, and why anything waits or failed."""
    from rich.console import Console

    from launch.slurm.telling.status_lines import lines_of

    status = Asking(find_run(run, runs), poll_s=10.0).look()
    if as_json:
        typer.echo(json.dumps(status.as_json(), ensure_ascii=False, indent=1))
        return
    console = Console(highlight=False)
    # a file or a pipe has no columns: there every job is one line
    width = console.width if console.is_terminal else 10_000
    for line in lines_of(status, now=time.time(), width=width):
        console.print(line, soft_wrap=True)


def watch_command(
    run: RunName,
    runs: Runs = Path("runs"),
    every: Annotated[
        float, typer.Option("--every", metavar="SECONDS", help="how often to ask the scheduler, at least 10", min=10)
    ] = 30.0,
) -> None:
    """Follow a run until its jobs have ended; ^C leaves, the jobs go on."""
    from launch.slurm.telling.watch import watch

    folder = find_run(run, runs)
    raise typer.Exit(watch(folder, Asking(folder, poll_s=every).look))


def logs_command(
    run: RunName,
    what: Annotated[
        str | None, typer.Argument(metavar="[STAGE|JOB]", help="a job of the chain, or a training phase")
    ] = None,
    rank: Annotated[int | None, typer.Argument(metavar="[RANK]", help="one process of a training phase")] = None,
    runs: Runs = Path("runs"),
    lines: Annotated[int, typer.Option("--lines", "-n", metavar="N", help="how many lines of the end", min=1)] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="go on with what is added, until ^C")] = False,
) -> None:
    """What the jobs and ranks of a run wrote; without STAGE: what there is, and the end of what failed last."""
    from launch.slurm.telling.logs import follow_files, overview, pick, show

    folder = find_run(run, runs)
    if what is None:
        overview(folder, lines=lines, out=sys.stdout)
        return
    files = pick(folder, what, rank)
    show(files, lines=lines, out=sys.stdout)
    if follow:
        follow_files(files, out=sys.stdout)
