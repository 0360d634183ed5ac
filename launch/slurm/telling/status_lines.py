"""The status of a run as lines for a terminal or a log: the graph of its jobs, and what there is to say of each."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from data_prep.progress import format_seconds
from launch.slurm.telling.plain import plain
from launch.slurm.telling.status import JobStatus, Progress, RunStatus, quiet

if TYPE_CHECKING:
    from rich.text import Text

_MARKS = {
    "done": ("✓", "green"),
    "running": ("●", "cyan"),
    "ending": ("●", "cyan"),
    "waits": ("…", "yellow"),
    "submitted": ("…", "yellow"),
    "failed": ("✗", "bold red"),
    "never started": ("✗", "red"),
    "lost": ("?", "bold red"),
    "cancelled": ("■", "magenta"),
    "stopped": ("■", "magenta"),
}
UNKNOWN = "—"
_SHORT = 40


def lines_of(status: RunStatus, *, now: float, width: int = 120) -> list[Text]:
    """The status as lines. `width`: columns of the terminal; where a job's facts do not fit, they come below it."""
    from rich.text import Text

    head = Text(plain(status.run), style="bold")
    if status.cluster:
        head.append(f"   cluster {status.cluster}", style="not bold dim")
    if status.submitted_at:
        head.append(f"   submitted {_ago(status.submitted_at, now)}", style="not bold dim")
    found = [head]
    if status.jobs:
        found += _jobs(status.jobs, now, width)
    else:
        found.append(Text("no jobs: this run was not submitted to a cluster"))
        if status.stages:
            found.append(Text(f"stages that are built: {', '.join(map(plain, status.stages))}"))
        found += [Text(f"{progress.phase}: {_training(progress)}") for progress in status.phases]
    found += [Text(f"note: {note}", style="dim") for note in status.notes]
    return found


def _jobs(jobs: Sequence[JobStatus], now: float, width: int) -> list[Text]:
    from rich.cells import cell_len
    from rich.text import Text

    trunks = tree(jobs)
    head = ("job", "id", "state", "progress", "loss", "ETA", "nodes", "restarts")
    rows = [_cells(job, trunk) for job, (trunk, _) in zip(jobs, trunks, strict=True)]
    widths = [max(cell_len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    fits = sum(widths) + 2 * len(widths) <= width
    shown = range(len(head)) if fits else (0, 1, 2)
    found = [Text("  ".join(head[i].ljust(widths[i]) for i in shown).rstrip(), style="dim")]
    for job, row, (_, below) in zip(jobs, rows, trunks, strict=True):
        line = Text()
        for i in shown:
            style = _MARKS.get(job.state, ("", ""))[1] if i == 2 else "dim" if i == 1 else ""
            line.append(row[i] + " " * (widths[i] - cell_len(row[i]) + 2), style=style)
        line.rstrip()
        found.append(line)
        facts = [] if fits else [f"{head[i]} {row[i]}" for i in range(3, len(head)) if row[i] not in ("", UNKNOWN, "0")]
        for text, style in [(" · ".join(facts), ""), *_more(job, now)]:
            if text:
                found.append(Text.assemble((below, ""), "  ", (text, style)))
    return found


def tree(jobs: Sequence[JobStatus]) -> list[tuple[str, str]]:
    """For each job (the stems before its name, the stems before lines below it): a job hangs under the last that it
    needs."""
    names = [job.name for job in jobs]
    parents = [max((names.index(n) for n in job.after if n in names[:i]), default=-1) for i, job in enumerate(jobs)]
    found: list[tuple[str, str]] = []
    for number, parent in enumerate(parents):
        if parent < 0:
            found.append(("", ""))
            continue
        last = parent not in parents[number + 1 :]
        stems = found[parent][1]
        found.append((stems + ("└─ " if last else "├─ "), stems + ("   " if last else "│  ")))
    return found


def _cells(job: JobStatus, trunk: str) -> tuple[str, ...]:
    progress = job.progress
    eta = UNKNOWN
    if job.eta_s is not None:
        eta = format_seconds(job.eta_s)
        if job.more_links:
            eta += f" + {job.more_links} link{'s' * (job.more_links > 1)}"
    loss = UNKNOWN if progress is None or progress.loss is None else f"{progress.loss:.4g}"
    mark = _MARKS.get(job.state, ("·", ""))[0]
    return (
        f"{trunk}{plain(job.name, _SHORT)}",
        plain(job.id, 20),
        f"{mark} {job.state}",
        _progress(job),
        loss,
        eta,
        compact(job.nodes) or UNKNOWN,
        str(job.restarts),
    )


def _progress(job: JobStatus) -> str:
    done = f"{len(job.stages_done)} of {len(job.stages)} stage{'s' * (len(job.stages) != 1)}"
    if job.state == "done" or job.progress is None:
        return f"{done}, at {plain(job.stage, 20)}" if job.stage else done
    return _training(job.progress)


def _training(progress: Progress) -> str:
    of = f" of {progress.steps:,}" if progress.steps else ""
    if progress.finished:
        return f"done, {progress.step:,} steps" if progress.step else "done"
    return f"step {progress.step:,}{of}"


def _more(job: JobStatus, now: float) -> list[tuple[str, str]]:
    """Lines below a job: (text, style)."""
    found = []
    if job.why:
        bad = job.state in ("failed", "lost", "never started")
        found.append((job.why, "red" if bad else "yellow" if job.state == "waits" else "dim"))
    if job.state == "waits" and job.starts_at is not None and job.starts_at > now:
        found.append((f"the scheduler expects it to start in {format_seconds(job.starts_at - now)}", "dim"))
    if job.more_links:
        found.append(
            ("the time limit comes first: it needs further links, and their wait in the queue is not in the ETA", "dim")
        )
    if job.state == "running" and job.progress is not None and quiet(job.progress) and not job.progress.finished:
        found.append((f"no step for {format_seconds(job.progress.quiet_s or 0.0)}", "yellow"))
    if job.failure and job.failure not in job.why:
        when = "" if job.failed_at is None else f", {_ago(job.failed_at, now)}"
        found.append((f"last failure{when}: {job.failure}", "red" if job.state == "failed" else "dim"))
    return found


def _ago(then: float, now: float) -> str:
    seconds = max(0.0, now - then)
    if seconds < 86400:
        return f"{format_seconds(seconds)} ago"
    return time.strftime("on %Y-%m-%d %H:%M", time.localtime(then))


def compact(nodes: Sequence[str]) -> str:
    """Node names in short: `node[1-3,7]`, in their order of numbers."""
    parts: dict[tuple[str, str], list[str]] = {}
    for node in nodes:
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", node)
        key, number = ((match[1], match[3]), match[2]) if match else ((node, ""), "")
        parts.setdefault(key, []).append(number)
    return ",".join(_range(head, tail, numbers) for (head, tail), numbers in parts.items())


def _range(head: str, tail: str, numbers: Sequence[str]) -> str:
    numbers = sorted({n for n in numbers if n}, key=lambda n: (len(n), int(n)))
    if len(numbers) < 2:
        return f"{head}{''.join(numbers)}{tail}"
    runs = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: (int(pair[1]) - pair[0], len(pair[1]))):
        run = [number for _, number in group]
        runs.append(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return f"{head}[{','.join(runs)}]{tail}"


def states_of(status: RunStatus) -> Mapping[str, str]:
    """The state of each job in a word, by name."""
    return {job.name: job.state for job in status.jobs}
