"""The one place that starts SLURM's commands.

Every call ends in a value or in one line for the user (call.py: time-outs, patience, the environment).

Only text is parsed (`-O`/`-o` formats, `--parsable2`, `scontrol -o`): it reads the same from SLURM 20.11 on, which JSON
does not.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.slurm.scheduler import refusals
from launch.slurm.scheduler.asked import asked_by
from launch.slurm.scheduler.call import clean_environment, silent, user_name
from launch.slurm.scheduler.cluster import ClusterFacts
from launch.slurm.scheduler.facts import NodeFacts, Partition, pairs_in
from launch.slurm.scheduler.hostlist import expand
from launch.slurm.scheduler.job_state import (
    ACCOUNT_FIELDS,
    QUEUE_FORMAT,
    JobState,
    from_accounting,
    from_queue,
    of_job,
    runs_in,
    time_of,
)
from launch.slurm.scheduler.refusals import JobGone, RequeueRefused

__all__ = ["JobGone", "JobState", "NodeFacts", "Partition", "RequeueRefused", "Slurm", "clean_environment"]

NEEDED = ("sbatch", "srun", "squeue", "scontrol", "scancel")
LOOK_AGAIN_S = 5.0
_ID = re.compile(r"\d+(_\d+)?")
SUBMIT_TIMEOUT_S = 300.0  # sbatch repeats by itself for minutes while the controller is busy


class Slurm(ClusterFacts):
    """The scheduler, as its commands on this machine reach it.

    Args:
        poll_s: states of jobs are asked for at most once in so many seconds; in between the last answer is given.
        options: those of `Calls`.
    """

    def __init__(self, *, poll_s: float = 10.0, **options: Any) -> None:
        super().__init__(**options)
        self.poll_s = poll_s
        self._known: dict[str, JobState] = {}
        self._final: set[str] = set()
        self._asked_at: float | None = None

    @classmethod
    def here(cls, *, poll_s: float = 10.0, need: Sequence[str] = NEEDED) -> Slurm:
        """The scheduler of this machine.

        Args:
            need: the commands that must be there; inside a job fewer may do.

        Raises:
            UserError: commands are missing: which, and where to go or what to load.
        """
        missing = [command for command in need if shutil.which(command) is None]
        if missing:
            every = (
                "SLURM's commands are not here" if len(missing) == len(need) else "part of SLURM's commands is missing"
            )
            raise UserError(
                f"command{'s' * (len(missing) > 1)} {', '.join(missing)}",
                every,
                "run this on a login node of the cluster, or load its module (module load slurm); "
                "to try it on one machine: rumpun testbench up",
            )
        return cls(poll_s=poll_s)

    # ---- submitting -----------------------------------------------------------------------------------------------

    def test(self, script: Path, *, options: Sequence[str] = ()) -> str:
        """Ask whether a job would be accepted, without submitting it.

        Returns:
            When and where it would start; or, where nodes are away that it needs, that it will wait for them.

        Raises:
            UserError: it would be refused, or accepted and never started; with the valid values.
        """
        asked = asked_by(script, options)
        answer = self._run(["sbatch", "--test-only", *options, str(script)], timeout_s=SUBMIT_TIMEOUT_S)
        if answer.code != 0:
            if "node configuration" in answer.text.lower() and (wait := refusals.waits_for_repair(asked, self)):
                return wait
            raise refusals.submission_refused(answer.text, asked, self)
        line = next((line for line in answer.text.splitlines() if " to start at " in line), "")
        partition = line.rpartition(" in partition ")[2].split()[0] if " in partition " in line else ""
        if error := refusals.too_long(asked, self, partition or asked.text("partition")):
            raise error
        return line.removeprefix("sbatch: ") or answer.text.strip()

    def submit(
        self, script: Path, *, options: Sequence[str] = (), arguments: Sequence[str] = (), tested: bool = False
    ) -> str:
        """Submit a job.

        Args:
            options: of sbatch; they win over the script's directives.
            arguments: of the script.
            tested: `test` was asked with the same options; otherwise it is asked here, because the scheduler accepts
                jobs that can never start.

        Returns:
            The job's id.

        Raises:
            UserError: it was refused, or the controller does not answer.
        """
        if not tested:
            self.test(script, options=options)
        command = ["sbatch", "--parsable", *options, str(script), *arguments]
        since, sent = time.time(), 0
        for pause in (*self._pauses_s, None):
            answer = self._once(command, SUBMIT_TIMEOUT_S)
            sent += 1
            if answer.code == 0:
                break
            if not refusals.TRANSIENT.search(answer.text):
                raise refusals.submission_refused(answer.text, asked_by(script, options), self)
            # the request may have arrived and only the answer been lost: a second job would train beside the first
            if refusals.UNSURE.search(answer.text) and (found := self._arrived(script, since)):
                return self._remember(found[0])
            if pause is None:
                raise silent(answer)
            self._sleep(pause)
        numbers = re.findall(r"^(\d+)(?:;.*)?$", answer.out.strip(), re.MULTILINE)  # a site's wrapper may greet first
        if not numbers:
            said = " ".join(answer.out.split())[:80]
            raise UserError(f"sbatch printed {said!r}", "is no job's number", "see squeue, and run it by hand")
        job = numbers[-1]
        if sent > 1:  # a request that was given up may have been served all the same, behind this one
            self.cancel([other for other in self._arrived(script, since, looks=1) if other != job])
        return self._remember(job)

    def _remember(self, job: str) -> str:
        self._known[job] = JobState(job, state="PENDING", submitted=time.time())
        return job

    def _arrived(self, script: Path, since: float, *, looks: int = 2) -> list[str]:
        """Ids of this user's jobs with this script, submitted since then, oldest first. A controller that has just come
        to itself may answer us before it serves what was sent earlier: it is asked more than once."""
        command = ["squeue", "--noheader", f"--user={user_name()}", "--format=%F|%V|%o"]
        place, found = str(script.resolve()), set[int]()
        for look in range(looks):
            if look:
                self._sleep(LOOK_AGAIN_S)
            for line in self._run(command, times=True).out.splitlines():
                job, submitted, words = (*line.split("|", 2), "", "")[:3]
                at = time_of(submitted)
                if job.isdigit() and at is not None and at >= since - 2 and f"{words} ".startswith(place + " "):
                    found.add(int(job))
            if found:
                break
        return [str(job) for job in sorted(found)]

    # ---- looking --------------------------------------------------------------------------------------------------

    def jobs(self, ids: Sequence[str]) -> dict[str, JobState]:
        """The state of each job; `21_3` is a task of an array, `21` the array as a whole.

        One squeue for all of them, and one sacct for those that squeue no longer knows. The scheduler is not asked
        more often than once in `poll_s`: in between the last answer is given, and a job that was never asked for
        waits until the next question may be put. Ask for all jobs of a run in one call.
        """
        wanted = list(dict.fromkeys(ids))
        # one word that is no number would make the scheduler refuse the whole question
        self._known |= {job: JobState(job) for job in wanted if not _ID.fullmatch(job)}
        self._final |= {job for job in wanted if not _ID.fullmatch(job)}
        if not wanted:
            return {}
        fresh = any(job not in self._known for job in wanted)
        due = self._asked_at is None or self._clock() - self._asked_at >= self.poll_s
        if fresh and not due and self._asked_at is not None:
            self._sleep(max(0.0, self._asked_at + self.poll_s - self._clock()))
            due = True
        ask = [job for job in dict.fromkeys([*wanted, *self._known]) if job not in self._final]
        if due and any(job not in self._final for job in wanted):
            self._poll(ask)
        return {job: self._known.get(job, JobState(job)) for job in wanted}

    def _poll(self, ids: Sequence[str]) -> None:
        self._asked_at = self._clock()
        bases = list(dict.fromkeys(job.partition("_")[0] for job in ids))
        answer = self._run(
            [
                "squeue",
                "--noheader",
                "--array",
                "--states=all",
                f"--jobs={','.join(bases)}",
                f"--Format={QUEUE_FORMAT}",
            ],
            times=True,
        )
        if answer.code != 0 and not refusals.UNKNOWN_JOB.search(answer.text):  # so it says of a single id that is gone
            raise UserError("squeue", f"failed: {refusals.words_of(answer.text)}", "run it by hand, or wait")
        queued = from_queue(answer.out.splitlines())
        left = []
        for job in ids:
            if state := of_job(queued, job):
                self._known[job] = state
            else:
                left.append(job)
        if not left:
            return
        told = self._accounting(left)
        for job in left:
            state = of_job(told, job) or JobState(job)
            if state.active:  # accounting lags, or never heard of the end: the controller has the last word
                state = replace(state, state="GONE", reason=f"accounting still says {state.state}")
            self._known[job] = state
            if state.state != "GONE":
                self._final.add(job)

    def _accounting(self, ids: Iterable[str]) -> list[JobState]:
        """Every run of these jobs; empty where accounting is switched off or not installed."""
        if shutil.which("sacct") is None:
            return []
        bases = ",".join(dict.fromkeys(job.partition("_")[0] for job in ids))
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", f"--jobs={bases}"]
        fields = list(ACCOUNT_FIELDS)
        while True:
            answer = self._once([*command, f"--format={','.join(fields)}"], self._timeout_s, times=True)
            if answer.code == 0:
                return from_accounting(answer.out.splitlines(), fields)
            unknown = re.search(r'[Ii]nvalid field requested: "(\w+)"', answer.text)  # of an older release
            if unknown is None or unknown[1] not in fields:
                return []
            fields.remove(unknown[1])

    def runs_of(self, id: str) -> list[JobState]:
        """Every run of a job as accounting tells it, oldest first; empty where accounting is switched off."""
        return runs_in(self._accounting([id]), id)

    def show(self, id: str) -> dict[str, str]:
        """`scontrol show job`: its fields as text.

        Raises:
            JobGone: the controller does not know it.
        """
        answer = self._run(["scontrol", "-o", "show", "job", id])
        if answer.code != 0:
            raise refusals.job_refused(answer.text, id, "show")
        return pairs_in(answer.out.splitlines()[0]) if answer.out.strip() else {}

    def hosts(self, nodelist: str) -> list[str]:
        """The names in a node list such as `node[1-3]`."""
        return expand(nodelist)

    # ---- changing -------------------------------------------------------------------------------------------------

    def requeue(self, id: str) -> None:
        """Put a job back into the queue, under its id. One that already waits is left as it is.

        Raises:
            RequeueRefused: the job or the site forbids it. JobGone: the scheduler does not know it.
        """
        self._change(id, "requeue", ["scontrol", "requeue", id], done="pending execution")

    def update(self, id: str, **fields: str) -> None:
        """Change fields of a job, e.g. `update("12", ExcNodeList="node2")`.

        Raises:
            UserError: a field or value that is refused. JobGone: the scheduler does not know the job.
        """
        if bad := next((f"{key}={value}" for key, value in fields.items() if "\n" in value), None):
            raise UserError(repr(bad), "holds a line break", "use a value of one line")
        command = ["scontrol", "update", f"JobId={id}", *(f"{key}={value}" for key, value in fields.items())]
        self._change(id, f"set {', '.join(fields)} of", command)

    def cancel(
        self, ids: Sequence[str], *, signal: str | None = None, steps_only: bool = False, pending_only: bool = False
    ) -> None:
        """End jobs, or send them a signal. Jobs that have ended or are unknown are passed over.

        Args:
            ids: of jobs, arrays, tasks (`21_3`) or steps (`12.0`).
            signal: e.g. `USR1`, to the batch script alone, which is the controller; the jobs go on.
            steps_only: the signal (TERM where none is given) goes to the processes of all steps instead.
            pending_only: jobs and tasks that run are left alone.

        Raises:
            UserError: a job that is not the user's.
        """
        if not ids:
            return
        if steps_only and signal is None:
            signal = "TERM"
        # `--full` would reach the step's client too, which passes the signal on: the ranks might hear it twice
        batch = ["--batch"] if signal and not steps_only and not any("." in job for job in ids) else []
        waiting = ["--state=PENDING"] if pending_only else []
        command = ["scancel", *([f"--signal={signal}"] if signal else []), *batch, *waiting, *ids]
        answer = self._run(command)
        lines = [line for line in answer.text.splitlines() if "error" in line.lower()]
        bad = [line for line in lines if not refusals.UNKNOWN_JOB.search(line) and not refusals.over(line)]
        if answer.code != 0 and bad:
            raise refusals.job_refused(bad[0], next((job for job in ids if job in bad[0]), ids[0]), "cancel")

    def _change(self, job: str, doing: str, command: list[str], done: str = "") -> None:
        answer = self._run(command)
        if answer.code != 0 and not (done and done in answer.text.lower()):
            raise refusals.job_refused(answer.text, job, doing)
