"""What jobs and ranks of a run wrote: found, and shown without letting it drive the terminal.

logs/slurm/JOB-ID.out                    what the controller of a job printed, all its links one after another
logs/PHASE/rank-N/{stderr,stdout}.log    what a rank of a training phase printed
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from data_prep.errors import UserError
from data_prep.progress import format_seconds
from launch.slurm.chain import Chain
from launch.slurm.telling.goodput import PHASES
from launch.slurm.telling.plain import plain

_BLOCK = 1 << 16
_MOST_LINE = 4000
_POLL_S = 0.5


def job_files(run: Path) -> dict[str, list[Path]]:
    """The outputs of each job of a run, by its name, oldest first."""
    found: dict[str, list[Path]] = {}
    for path in sorted((run / "logs" / "slurm").glob("*.out"), key=_changed):
        match = re.fullmatch(r"(.+?)-[\d_]+", path.stem)
        found.setdefault(match[1] if match else path.stem, []).append(path)
    return found


def rank_files(run: Path) -> dict[str, dict[int, list[Path]]]:
    """The logs of each rank of each training phase: errors first."""
    found: dict[str, dict[int, list[Path]]] = {}
    for folder in sorted((run / "logs").glob("*/rank-*"), key=lambda p: (p.parent.name, _rank_of(p))):
        files = [folder / name for name in ("stderr.log", "stdout.log") if (folder / name).exists()]
        if files and folder.name.removeprefix("rank-").isdigit():
            found.setdefault(folder.parent.name, {})[_rank_of(folder)] = files
    return found


def _rank_of(folder: Path) -> int:
    number = folder.name.removeprefix("rank-")
    return int(number) if number.isdigit() else -1


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def pick(run: Path, what: str, rank: int | None) -> list[Path]:
    """The files that `what` (a job, a stage or a phase) and a rank mean.

    A job's newest output; with a rank, that rank's logs. A phase that is no job means its first rank.

    Raises:
        UserError: there is no such job, stage or rank; it lists those that there are.
    """
    jobs, ranks = job_files(run), rank_files(run)
    owners = {stage: name for name, job in Chain(run).jobs().get("jobs", {}).items() for stage in job.get("stages", ())}
    if rank is not None:
        phase = what if what in ranks else next((p for p in ranks if owners.get(p) == what), what)
        if phase not in ranks:
            raise _unknown(what, "has no ranks", ranks, "training phases with logs")
        if rank not in ranks[phase]:
            known = sorted(ranks[phase])
            raise UserError(
                f"rank {rank}", f"{phase} has no such rank", f"its ranks are {known[0]} to {known[-1]}"
                if known == list(range(known[0], known[-1] + 1)) else f"its ranks are {', '.join(map(str, known))}",
            )  # fmt: skip
        return [file for file in ranks[phase][rank] if _size(file)] or ranks[phase][rank][:1]
    if what in jobs:
        return jobs[what][-1:]
    by_id = [path for paths in jobs.values() for path in paths if path.stem.rpartition("-")[2] == what]
    if by_id:
        return by_id[-1:]
    if what in ranks:
        first = ranks[what][min(ranks[what])]
        return [file for file in first if _size(file)] or first[:1]
    if owners.get(what) in jobs:
        return jobs[owners[what]][-1:]
    if what in owners or what in owners.values():
        raise UserError(
            f"logs of {what!r}", "there are none yet: its job has not started", "rumpun status says what it waits for"
        )
    raise _unknown(what, "no such job or phase has left a log", [*jobs, *ranks, *owners], "there are")


def _unknown(what: str, rule: str, known: Iterable[str], said: str) -> UserError:
    names = list(dict.fromkeys(known))
    near = difflib.get_close_matches(what, names, 1)
    listed = f"{said}: {', '.join(map(plain, names))}" if names else "nothing has left a log in this run yet"
    return UserError(f"logs of {plain(what, 60)!r}", rule, (f"did you mean {near[0]}? " if near else "") + listed)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def ending(path: Path, lines: int) -> list[str]:
    """The last lines of a file, safe to show; a file that is gone has none."""
    try:
        with path.open("rb") as stream:
            at, data = stream.seek(0, 2), b""
            while at > 0 and data.count(b"\n") <= lines and len(data) < lines * _MOST_LINE:
                at, size = max(0, at - _BLOCK), min(at, _BLOCK)
                stream.seek(at)
                data = stream.read(size) + data
    except OSError:
        return []
    return [_shown(line) for line in _split(data)[-lines:]]


def _split(data: bytes) -> list[str]:
    """Lines; of one that was drawn over again and again with carriage returns, what was to be seen last."""
    text = data.decode("utf-8", errors="replace").removesuffix("\n")
    return [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")] if text else []


def _shown(line: str) -> str:
    return plain(line, _MOST_LINE)


def show(files: Sequence[Path], *, lines: int, out: TextIO) -> None:
    """Print the end of each file under its name."""
    for path in files:
        end = ending(path, lines)
        cut = "" if len(end) < lines else f", its last {lines} lines"
        print(f"==> {plain(path)}{cut}" if end else f"==> {plain(path)} is empty", file=out)
        for line in end:
            print(line, file=out)
    out.flush()


def overview(run: Path, *, lines: int, out: TextIO) -> None:
    """Print what logs a run has, and the end of the newest of a job that failed."""
    jobs, ranks = job_files(run), rank_files(run)
    if not jobs and not ranks:
        print(f"{plain(run)}: nothing has left a log yet", file=out)
        return
    now = time.time()
    for name, paths in jobs.items():
        newest = paths[-1]
        more = f", {len(paths) - 1} older" if len(paths) > 1 else ""
        print(f"{plain(name):10} {plain(newest)} ({_facts(newest, now)}{more})", file=out)
    for phase, folders in ranks.items():
        errors = [rank for rank, files in folders.items() if any(f.name == "stderr.log" and _size(f) for f in files)]
        said = f"; {len(errors)} of them with messages" if errors else ""
        numbers = sorted(folders)
        span = f"rank {numbers[0]}" if len(numbers) == 1 else f"ranks {numbers[0]} to {numbers[-1]}"
        print(f"{plain(phase):10} {plain(run / 'logs' / phase)}/rank-N ({span}{said})", file=out)
    failed = _failed(run)
    if failed is None:
        print("no failure is recorded; rumpun logs RUN JOB [RANK] shows the end of one", file=out)
        return
    name, stages = failed
    path = newest_failure(run, name, stages)
    if path is not None:
        print(f"\nthe last failure was in {plain(name)}:", file=out)
        show([path], lines=lines, out=out)


def _facts(path: Path, now: float) -> str:
    size = _size(path)
    shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
    return f"{shown}, written {format_seconds(max(0.0, now - _changed(path)))} ago"


def _failed(run: Path) -> tuple[str, Sequence[str]] | None:
    """The job that failed last, with its stages; None where none did."""
    chain, newest = Chain(run), (0.0, "")
    for name, events in chain.all_events().items():
        for event in events:
            bad = event.get("outcome") in ("failed", "hung", "diverged", "mistake")
            if bad and event["event"] in ("ranks_ended", "end"):
                newest = max(newest, (float(event["time"]), name))
    if not newest[1]:
        return None
    job = chain.jobs().get("jobs", {}).get(newest[1], {})
    return newest[1], list(job.get("stages", ())) or [newest[1]]


def newest_failure(run: Path, job: str, stages: Sequence[str]) -> Path | None:
    """The log that most likely tells why a job failed: of its ranks, the one with a traceback that was written to last;
    else the job's own output."""
    ranks = rank_files(run)
    told = [
        path
        for phase in stages
        if phase in PHASES
        for files in ranks.get(phase, {}).values()
        for path in files
        if path.name == "stderr.log" and _size(path)
    ]
    # the first rank that fell is the cause, and wrote first; those that lost it wrote a little later
    with_traceback = [path for path in told if any("Traceback" in line for line in ending(path, 60))]
    if with_traceback:
        latest = max(map(_changed, with_traceback))
        return min((p for p in with_traceback if latest - _changed(p) < 60), key=_changed)
    own = job_files(run).get(job, [])
    return own[-1] if own else (max(told, key=_changed) if told else None)


def follow_files(
    files: Sequence[Path], *, out: TextIO, sleep: Callable[[float], None] = time.sleep, rounds: int | None = None
) -> None:
    """Print what is added to the files, until ^C. `rounds`: looks, for tests."""
    offsets = {path: _size(path) for path in files}
    last = files[-1] if files else None
    with suppress(KeyboardInterrupt):
        while rounds is None or rounds > 0:
            rounds = None if rounds is None else rounds - 1
            for path in files:
                size = _size(path)
                if size < offsets[path]:  # written anew
                    offsets[path] = 0
                if size == offsets[path]:
                    continue
                with path.open("rb") as stream:
                    stream.seek(offsets[path])
                    data = stream.read()
                whole = data[: data.rfind(b"\n") + 1]
                offsets[path] += len(whole)
                if whole and path != last:
                    print(f"==> {plain(path)}", file=out)
                    last = path
                for line in _split(whole):
                    print(_shown(line), file=out)
                out.flush()
            sleep(_POLL_S)
