"""Following a run live: the status is drawn again and again, and failures are told as they come.

Invariant: it only reads. Leaving it, however, changes nothing for the jobs. Files are read every two seconds; how often
the scheduler is asked is up to the one who looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from launch.slurm.telling.logs import ending, newest_failure
from launch.slurm.telling.plain import plain
from launch.slurm.telling.status import JobStatus, RunStatus
from launch.slurm.telling.status_lines import lines_of, states_of
from train.exit_codes import DEFECT, DONE, INTERRUPTED, STOPPED

if TYPE_CHECKING:
    from rich.console import Console

LOOK_EVERY_S = 2.0
_TAIL = 12
_STEP_LINE_S = 10.0


def watch(
    run: Path,
    look: Callable[[], RunStatus],
    *,
    console: Console | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> int:
    """Follow a run until all its jobs have ended. Returns an exit code, see `exit_code`.

    Args:
        look: reads the status. console: standard output by default. sleep: tests pass their own.
    """
    from rich.console import Console

    console = console or Console(highlight=False)
    try:
        return (_live if console.is_terminal else _plain)(run, look, console, sleep)
    except KeyboardInterrupt:
        with suppress(Exception):
            console.print("left; the jobs go on")
        return INTERRUPTED


def exit_code(status: RunStatus) -> int:
    """0 where all is done, 1 where something failed or is lost, 75 where something was stopped and can go on."""
    words = {job.state for job in status.jobs}
    if words & {"failed", "lost", "never started"}:
        return DEFECT
    return STOPPED if words & {"stopped", "cancelled"} else DONE


class _Failures:
    """The failures that were not told yet, each with the end of its log."""

    def __init__(self, run: Path, status: RunStatus) -> None:
        self._run = run
        self._told = {(job.name, job.failed_at) for job in status.jobs}

    def new(self, status: RunStatus) -> list[str]:
        """Lines to print."""
        found: list[str] = []
        for job in status.jobs:
            if job.failed_at is None or (job.name, job.failed_at) in self._told:
                continue
            self._told.add((job.name, job.failed_at))
            found.append(f"{_clock()} {plain(job.name, 40)}: {job.failure}")
            path = newest_failure(self._run, job.name, job.stages)
            if path is not None:
                found.append(f"  end of {path}:")
                found += [f"    {line}" for line in ending(path, _TAIL)]
        return found


def _live(run: Path, look: Callable[[], RunStatus], console: Console, sleep: Callable[[float], None]) -> int:
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    status = look()
    failures = _Failures(run, status)

    def drawn() -> Group:
        hint = Text("^C leaves; the jobs go on", style="dim")
        return Group(*lines_of(status, now=time.time(), width=console.width), *([] if status.ended else [hint]))

    with Live(drawn(), console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while not status.ended:
            sleep(LOOK_EVERY_S)
            status = look()
            for line in failures.new(status):
                live.console.print(Text(line))
            live.update(drawn(), refresh=True)
        live.update(drawn(), refresh=True)
    return exit_code(status)


def _plain(run: Path, look: Callable[[], RunStatus], console: Console, sleep: Callable[[float], None]) -> int:
    """Line by line: the whole once, then what changes."""
    from rich.text import Text

    status = look()
    failures = _Failures(run, status)
    for drawn in lines_of(status, now=time.time(), width=10_000):
        console.print(drawn, soft_wrap=True)
    told = {job.name: _told(job) for job in status.jobs}
    stepped: dict[str, tuple[int, float]] = {}
    while not status.ended:
        sleep(LOOK_EVERY_S)
        before, status = states_of(status), look()
        for line in failures.new(status):
            console.print(Text(line), soft_wrap=True)
        for job in status.jobs:
            now = _told(job)
            if told.get(job.name) != now:
                told[job.name] = now
                what = f"{job.state}{f', at {job.stage}' if job.stage else ''}{f': {job.why}' if job.why else ''}"
                new = "" if before.get(job.name) == job.state else f"{before.get(job.name, 'new')} → "
                console.print(Text(f"{_clock()} {plain(job.name, 40)}: {new}{plain(what)}"), soft_wrap=True)
            progress = job.progress
            if job.state == "running" and progress is not None and not progress.finished:
                step, at = stepped.get(job.name, (-1, float("-inf")))
                if progress.step != step and time.monotonic() - at >= _STEP_LINE_S:
                    stepped[job.name] = (progress.step, time.monotonic())
                    loss = "" if progress.loss is None else f", loss {progress.loss:.4g}"
                    of = f" of {progress.steps}" if progress.steps else ""
                    console.print(
                        Text(f"{_clock()} {plain(job.name, 40)}: step {progress.step}{of}{loss}"), soft_wrap=True
                    )
    console.print(Text(f"{_clock()} all jobs have ended: {', '.join(f'{n} {s}' for n, s in states_of(status).items())}"
                       if status.jobs else "no jobs to follow"), soft_wrap=True)  # fmt: skip
    return exit_code(status)


def _told(job: JobStatus) -> tuple[str, str, str]:
    """What makes a new line when it changes: not what the jobs do that this one waits for."""
    return job.state, "" if job.why.startswith("waits for ") else job.why, job.stage


def _clock() -> str:
    return time.strftime("%H:%M:%S")
