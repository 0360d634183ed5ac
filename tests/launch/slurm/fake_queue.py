"""SLURM's commands as small programs over one JSON file: what is submitted waits, until a test says otherwise.

`install(folder)` writes them into a folder that the caller puts first on PATH. A test reads and changes the jobs; the
files `refuse-test` and `refuse-submit` hold a word: a script that contains it is refused with the file's second line.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

COMMANDS = ("sbatch", "squeue", "sacct", "scontrol", "scancel", "srun", "sinfo", "sacctmgr")


class Queue:
    """The state of a fake cluster. `calls`: every command line, oldest first; `jobs`: by id."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def calls(self) -> list[list[str]]:
        file = self.folder / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def of(self, command: str) -> list[list[str]]:
        """The command lines of one command, without its name."""
        return [words[1:] for words in self.calls if words[0] == command]

    @property
    def jobs(self) -> dict[str, dict[str, Any]]:
        file = self.folder / "jobs.json"
        return dict(json.loads(file.read_text())) if file.exists() else {}

    def set(self, name: str, **facts: Any) -> None:
        """Change the newest job whose name begins so. `left`: the queue no longer knows it."""
        jobs = self.jobs
        newest = max((id for id in jobs if jobs[id]["name"].startswith(name)), key=int)
        jobs[newest] |= facts
        (self.folder / "jobs.json").write_text(json.dumps(jobs))

    def refuse(self, what: str, word: str, says: str) -> None:
        """Refuse scripts that hold a word. `what`: test or submit."""
        (self.folder / f"refuse-{what}").write_text(f"{word}\n{says}\n")


def install(folder: Path) -> Queue:
    """Write the commands into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for command in COMMANDS:
        file = folder / command
        file.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {Path(__file__).resolve()} {command} {folder} "$@"\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return Queue(folder)


def _refused(folder: Path, what: str, text: str) -> str:
    file = folder / f"refuse-{what}"
    if not file.exists():
        return ""
    word, says = file.read_text().splitlines()[:2]
    return says if word in text else ""


def _sbatch(folder: Path, words: list[str]) -> int:
    options = {word.partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("--")}
    script = Path(next(word for word in words if not word.startswith("--")))
    text = script.read_text()
    for line in text.splitlines():
        if line.startswith("#SBATCH --"):
            name, _, value = line.removeprefix("#SBATCH ").partition("=")
            options.setdefault(name, value.strip('"'))
    what = "test" if "--test-only" in options else "submit"
    if says := _refused(folder, what, text):
        print(f"sbatch: error: {says}", file=sys.stderr)
        return 1
    if what == "test":
        where = "using 1 processors on nodes node1 in partition normal"
        print(f"sbatch: Job 1 to start at 2026-01-01T00:00:00 {where}", file=sys.stderr)
        return 0
    jobs = Queue(folder).jobs
    number = str(max([int(id) for id in jobs], default=100) + 1)
    jobs[number] = {"name": options.get("--job-name", script.name), "state": "PENDING", "reason": "None", "nodes": ""}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    print(number)
    return 0


def _squeue(folder: Path, words: list[str]) -> int:
    wanted = next(word.partition("=")[2].split(",") for word in words if word.startswith("--jobs="))
    for id, job in Queue(folder).jobs.items():
        if id in wanted and not job.get("left"):
            cells = [id, id, "N/A", job["state"], "0", "1", "1", "N/A", "N/A", "normal", job["nodes"], job["reason"]]
            print("|".join([*cells, job["name"]]) + "|")
    return 0


def _scancel(folder: Path, words: list[str]) -> int:
    jobs, ids = Queue(folder).jobs, [word for word in words if not word.startswith("-")]
    if any(word.startswith("--signal") for word in words):
        return 0
    for id in ids:
        if id in jobs and ("--state=PENDING" not in words or jobs[id]["state"] == "PENDING"):
            jobs[id] |= {"state": "CANCELLED"}
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return 0


def main() -> int:
    """One call of one command."""
    command, folder, words = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    with (folder / "calls.jsonl").open("a") as out:
        out.write(json.dumps([command, *words]) + "\n")
    if os.environ.get("SBATCH_PARTITION"):
        print("the submitting shell's SBATCH_PARTITION came along", file=sys.stderr)
        return 1
    does = {"sbatch": _sbatch, "squeue": _squeue, "scancel": _scancel}.get(command)
    return does(folder, words) if does else 0


if __name__ == "__main__":
    sys.exit(main())
