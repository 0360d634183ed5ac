"""The chain folder of a run: which jobs it was submitted as, and what each of them went through.

Invariant: a file has one writer. `jobs.json` and `stop.json` are replaced whole by commands; `links/JOB.jsonl` is
appended to by the controller of that job alone, one line an event, and a line that a crash has torn is left out.

    chain/jobs.json            what was submitted        chain/stop.json     jobs that shall not go on by themselves
    chain/scripts/JOB.sbatch   as it was submitted       chain/links/JOB.jsonl    begin, stage, ranks, stepping, …, end
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_prep.files import disk_errors, read_json, write_json

FORMAT = 1
FOLDER = "chain"


class Chain:
    """The chain folder of a run.

    Args:
        run: the run folder; nothing is created before something is written.
    """

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / FOLDER
        self.jobs_file, self.stop_file = self.folder / "jobs.json", self.folder / "stop.json"
        self.drill_file = self.folder / "drill.json"

    def script(self, job: str) -> Path:
        """Where the text of a job lies that was submitted."""
        return self.folder / "scripts" / f"{job}.sbatch"

    def links_file(self, job: str) -> Path:
        """Where the events of a job go."""
        return self.folder / "links" / f"{job}.jsonl"

    def jobs(self) -> dict[str, Any]:
        """What was submitted last; empty where nothing was."""
        return dict(read_json(self.jobs_file)) if self.jobs_file.exists() else {}

    def write_jobs(self, record: Mapping[str, Any]) -> None:
        """Replace what was submitted last."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.jobs_file, {"format": FORMAT, **record})

    def stop(self, ids: Sequence[str], why: str) -> None:
        """Say that these jobs shall save and end, and not go on by themselves. `why`: cancelled or resized."""
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        before = self._stops()
        write_json(self.stop_file, {"jobs": {**before, **dict.fromkeys(ids, why)}})

    def _stops(self) -> dict[str, str]:
        if not self.stop_file.exists():
            return {}
        jobs = read_json(self.stop_file)["jobs"]
        return dict(jobs)

    def stopped(self, job_id: str) -> str | None:
        """Why a job shall not go on by itself, None where it may."""
        return self._stops().get(job_id)

    def events(self, job: str) -> list[dict[str, Any]]:
        """The events of a job, oldest first; torn lines are left out."""
        found = []
        with suppress(FileNotFoundError):
            for line in self.links_file(job).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    event = json.loads(line)
                    if isinstance(event, dict) and "event" in event and isinstance(event.get("time"), (int, float)):
                        found.append(event)
        return found

    def all_events(self) -> dict[str, list[dict[str, Any]]]:
        """The events of every job that has left any, by job name."""
        return {path.stem: self.events(path.stem) for path in sorted((self.folder / "links").glob("*.jsonl"))}


class LinkLog:
    """Appends the events of one link: one start of one job by the scheduler.

    Args:
        job: its name in the chain. job_id, restart: the scheduler's id, and how often it was requeued.
    """

    def __init__(self, chain: Chain, job: str, *, job_id: str, restart: int) -> None:
        self.chain, self.job = chain, job
        self._common = {"job": job_id, "restart": restart}
        self._path = chain.links_file(job)

    def write(self, event: str, **facts: Any) -> None:
        """Append an event, and put it on the disk: what happens next may be a kill."""
        line = json.dumps({"event": event, "time": time.time(), **self._common, **facts}, ensure_ascii=False)
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                os.write(descriptor, (b"\n" if torn else b"") + line.encode() + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def link(self) -> int:
        """The number of this link, from 1: links of this job under any id count."""
        return 1 + sum(event["event"] == "begin" for event in self.chain.events(self.job))
