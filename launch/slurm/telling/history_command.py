"""`rumpun history RUN`: every link of a run with where its time went, and why each ended.

Writes `chain/timeline.json` for the report. Exit codes: 0, or 2 for a mistake in the arguments.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_prep.errors import UserError
from launch.ledger_command import find_run

if TYPE_CHECKING:
    from rich.console import Console

    from launch.slurm.scheduler.job_state import JobState
    from launch.slurm.telling.timeline import Link

TIMELINE = "timeline.json"
GROUPS = {
    "wait": "waiting", "start-up": "start-up", "train": "train", "save": "save", "evaluate": "evaluate",
    "stages": "stages", "lost": "lost", "idle": "idle",
}  # fmt: skip
_SHOWN_S = 0.05


def history_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or the name of one")],
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="where run folders are")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="the timeline as one JSON value")] = False,
) -> None:
    """Every link of a run: waiting, start-up, training, saving, lost work, and why each ended."""
    from rich.console import Console

    folder = find_run(run, runs)
    record, notes = make_timeline(folder)
    if as_json:
        typer.echo(json.dumps(record, ensure_ascii=False, indent=1))
        return
    console = Console(highlight=False)
    show(record, console, notes)


def make_timeline(run: Path) -> tuple[dict[str, Any], list[str]]:
    """(the timeline of a run, notes for the reader); it is written to `chain/timeline.json` too where there are links.

    Accounting is asked for every job where it is at hand; without it, ends and causes are those of the files.
    """
    from data_prep.files import write_json
    from launch.slurm.chain import Chain
    from launch.slurm.telling.phase_files import read_phases
    from launch.slurm.telling.timeline import links_of, local_links, record

    chain, now = Chain(run), time.time()
    events, phases = chain.all_events(), read_phases(run)
    notes: list[str] = []
    links: list[Link]
    if any(events.values()):
        runs, running = _accounting(run, events, notes)
        ids = {str(event.get("job", "")) for told in events.values() for event in told}
        stops = {id: why for id in ids if chain.stop_file.exists() and (why := chain.stopped(id))}
        links = links_of(
            events, phases=phases, runs=runs, running=running, asked=running is not None, stops=stops, now=now
        )
    else:
        links = local_links(phases, _stages(run), running=_in_use(run), now=now)
        if links:
            notes.append("no jobs: these are the starts in its ledgers and the stages that it built")
    made = record(links, jobs=any(events.values()), now=now)
    if links:
        try:
            chain.folder.mkdir(parents=True, exist_ok=True)
            write_json(chain.folder / TIMELINE, made)
        except (OSError, UserError) as error:  # somebody else's run can be looked at, too
            notes.append(f"{chain.folder / TIMELINE} could not be written ({error})")
    return made, notes


def _accounting(
    run: Path, events: Mapping[str, Sequence[Mapping[str, Any]]], notes: list[str]
) -> tuple[dict[str, list[JobState]], dict[str, int] | None]:
    """(what accounting says of each job, the jobs that run now with their restarts, None where nobody can be asked)."""
    from launch.slurm.chain import Chain
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.telling.status import open_ids

    runs: dict[str, list[JobState]] = {name: [] for name in events}
    now = open_ids(run)
    try:
        slurm = Slurm.here(need=("squeue",))
        states = slurm.jobs(list(now.values()))
    except UserError as error:
        notes.append(f"{error.value}: {error.rule}. Causes are those that the files tell")
        return runs, None
    running = {
        name: states[id].restarts for name, id in now.items() if states[id].active and not states[id].waiting
    }  # fmt: skip
    jobs = Chain(run).jobs().get("jobs", {})
    try:
        for name, told in events.items():
            for id in _ids(jobs.get(name, {}), told):
                runs[name] += slurm.runs_of(id)
    except UserError as error:
        notes.append(f"accounting did not answer ({error.value}: {error.rule}); causes are those of the files")
    else:
        if not any(runs.values()):
            notes.append("accounting is switched off or has forgotten these jobs: causes are those that the files tell")
    return runs, running


def _ids(job: Mapping[str, Any], told: Sequence[Mapping[str, Any]]) -> list[str]:
    """Under which ids accounting knows the links of a job: those of an array are its tasks."""
    own = [str(job[key]) for key in ("id",) if job.get(key)] + [str(id) for id in job.get("former", ())]
    if job.get("route") == "array":
        return [f"{id}_{n}" for id in own for n in range(int(job.get("links") or 1))]
    return list(dict.fromkeys([*(str(event["job"]) for event in told if event.get("job")), *own]))


def _stages(run: Path) -> list[dict[str, Any]]:
    """The finished stages of a run that do not train, as `local_links` takes them."""
    from launch.slurm.telling.goodput import PHASES

    found = []
    for path in sorted(run.glob("*/stage.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            begin = datetime.fromisoformat(told["started_at"]).timestamp()
            if path.parent.name not in PHASES and not path.parent.name.startswith("."):
                found.append({"name": path.parent.name, "begin": begin, "seconds": float(told["seconds"])})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _in_use(run: Path) -> bool:
    """Whether a process of this machine works in the run folder now."""
    from launch.lock import read_holder

    holder = read_holder(run / ".lock")
    if not holder or holder.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(holder["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return False
    except PermissionError:
        return True
    return True


def grouped(record: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds of kinds summed by group."""
    found: dict[str, float] = {}
    for kind, value in seconds.items():
        group = record["kinds"][kind]["group"]
        found[group] = found.get(group, 0.0) + value
    return found


def seconds_of(link: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a link by kind."""
    found: dict[str, float] = {}
    for part in link["intervals"]:
        found[part["kind"]] = found.get(part["kind"], 0.0) + part["end"] - part["begin"]
    return found


def show(record: Mapping[str, Any], console: Console, notes: Sequence[str]) -> None:
    """Print the links as a table, or as lines where the terminal is narrow, and what it comes to."""
    from rich.text import Text

    from data_prep.progress import format_seconds
    from launch.slurm.telling.plain import plain

    links = record["links"]
    if not links:
        console.print("no links: nothing of this run has started", soft_wrap=True)
        return
    total = grouped(record, record["total_s"])
    columns = [group for group in GROUPS if total.get(group, 0.0) >= _SHOWN_S]
    head = ["job", "link", "nodes", *(GROUPS[c] for c in columns), "total", "how it ended"]
    rows = []
    for link in links:
        own = grouped(record, seconds_of(link))
        rows.append(
            [
                plain(link["job"], 20),
                str(link["number"]),
                str(len(link["nodes"]) or "—"),
                *(format_seconds(own[c]) if own.get(c, 0.0) >= _SHOWN_S else "—" for c in columns),
                format_seconds(sum(own.values())),
                _end_of(link),
            ]
        )
    everything = sum(total.values())
    rows.append(
        ["all", str(len(links)), "", *(format_seconds(total[c]) for c in columns), format_seconds(everything), ""]
    )
    rows.append(["share", "", "", *(f"{100 * total[c] / everything:.1f} %" for c in columns), "", ""])
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    width = console.width if console.is_terminal else 10_000
    if sum(widths[:-1]) + 2 * len(widths) + min(widths[-1], 30) <= width:
        for number, row in enumerate([head, *rows]):
            cells = [
                cell.ljust(w) if i in (0, len(row) - 1) else cell.rjust(w)
                for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            ]
            style = "dim" if number == 0 else "bold" if row[0] in ("all", "share") else ""
            console.print(Text("  ".join(cells).rstrip(), style=style), soft_wrap=True)
    else:
        for row in rows:
            facts = [
                f"{name} {cell}" for name, cell in zip(head[2:-1], row[2:-1], strict=True) if cell not in ("", "—")
            ]
            console.print(Text(f"{row[0]} {row[1]}  {row[-1]}".rstrip(), style="bold"))
            console.print(Text("   " + " · ".join(facts)))
    for line in [*_start_up(record), *lost_lines(record), *_sum_up(record), *(f"note: {note}" for note in notes)]:
        console.print(Text(line), soft_wrap=True)


def _end_of(link: Mapping[str, Any]) -> str:
    from launch.slurm.telling.plain import plain

    if link["running"]:
        return "runs"
    text = link["cause"] or link["outcome"]
    again = link["undone_steps"]
    return plain(text) + (f"; {again} step{'s' * (again != 1)} computed again" if again else "")


def _start_up(record: Mapping[str, Any]) -> list[str]:
    """What a start-up was made of, on average over the links that trained."""
    from data_prep.progress import format_seconds

    starts = [own for own in map(seconds_of, record["links"]) if own.get("train", 0.0) or own.get("processes", 0.0)]
    parts = {
        kind: sum(own.get(kind, 0.0) for own in starts) / len(starts)
        for kind, told in record["kinds"].items()
        if starts and told["group"] == "start-up"
    }
    said = [f"{record['kinds'][k]['label']} {format_seconds(v)}" for k, v in parts.items() if v >= _SHOWN_S]
    if not said:
        return []
    count = f"{len(starts)} link{'s' * (len(starts) != 1)} that trained"
    return [f"start-up, mean of {count}: {format_seconds(sum(parts.values()))} = " + ", ".join(said)]


def lost_lines(record: Mapping[str, Any]) -> list[str]:
    """One line for each interval that was lost."""
    from data_prep.progress import format_seconds
    from launch.slurm.telling.plain import plain

    return [
        f"lost: {format_seconds(part['end'] - part['begin'])} of {plain(link['job'], 20)}, link {link['number']}: "
        f"{plain(part['note'] or 'unknown', 160)}"
        for link in record["links"]
        for part in link["intervals"]
        if part["kind"] == "lost"
    ]


def _sum_up(record: Mapping[str, Any]) -> list[str]:
    value = record["goodput"]
    if value is None:
        return []
    what = ", ".join(GROUPS[group] for group in record["useful"])
    return [f"goodput: {100 * value:.1f} % of the time on nodes (each link weighed by its nodes) went into {what}"]
