"""Ranks as one step of a job: started on all its nodes, told of every signal, and gone with the first that fails.

Invariant: a start is whole or it is given up. Every rank reports before it loads anything (roll_call.py); a rank that
ends badly ends the step (`--kill-on-bad-exit`: the others would wait for it until the time limit), and what SLURM says
of it is the first cause that is told. The time limit's warning and a preemption's SIGTERM reach the ranks without us;
what reaches the controller alone is passed on.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.failure import NodeFailure
from launch.ranks import ROOT, environment
from launch.slurm.inside.allocation import Allocation
from launch.slurm.inside.place import node_name
from launch.slurm.inside.roll_call import RollCall
from launch.worker import STEP
from train.exit_codes import DONE

if TYPE_CHECKING:
    from launch.failure import Logs, RankFailure
    from launch.recipe import LaunchConfig
    from launch.slurm.config import SlurmConfig
    from launch.slurm.scheduler.commands import Slurm

KILL_AFTER_S = 10.0
_TASKS = re.compile(r"^srun: error: (?P<hosts>\S+): tasks? (?P<tasks>[\d,-]+): (?P<what>.+)$")
_NODE = re.compile(
    r"(?:[Nn]ode failure on|lost contact with node|Unable to contact|failed on node) (?P<host>[\w.\-\[\],]*[\w\]])"
)
_SIGNALS = {(signal.strsignal(number) or "").lower(): number for number in signal.Signals}

Note = Callable[..., None]
Before = Callable[[], None]


def exit_code(what: str) -> int | None:
    """The exit code of what SLURM says of a task: negative for a signal; None where it says nothing of its end."""
    what = what.strip().removesuffix("(core dumped)").strip()
    if found := re.fullmatch(r"Exited with exit code (\d+)", what):
        return int(found[1])
    number = _SIGNALS.get(what.lower())
    return -number if number is not None else None


def numbers(text: str) -> list[int]:
    """`0-2,5` as numbers."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


class StepStarter:
    """Starts the ranks of a phase on the nodes of this job; a `launch.ranks.Starter`.

    Args:
        note: told of every event, with its facts. before: called before each start (the preflight); may raise.
        prefix, python: what starts Python in the job's container; this environment's without one. options: of the step.
    """

    def __init__(
        self, allocation: Allocation, settings: SlurmConfig, slurm: Slurm, *, note: Note, before: Before,
        prefix: Sequence[str] = (), options: Sequence[str] = (), python: str = sys.executable,
    ) -> None:  # fmt: skip
        self._allocation, self._settings, self._slurm = allocation, settings, slurm
        self._note, self._before, self._prefix, self._options = note, before, tuple(prefix), tuple(options)
        self._python = python

    @property
    def identity(self) -> tuple[str | None, int]:
        """The job and how often it was requeued."""
        return self._allocation.job_id, self._allocation.restart

    def note(self, event: str, **facts: Any) -> None:
        """Write it into the link's record."""
        self._note(event, **facts)

    def job_facts(self, launch: LaunchConfig, *, meeting: Path) -> dict[str, Any]:
        """Rank 0 brings the port at which all meet, so the job file says nothing of it. Looks at the nodes first."""
        self._before()
        return {"store": None, "job": self._allocation.job_id}

    def start(self, job: Path, *, launch: LaunchConfig, logs: Logs, phase: str) -> StepRanks:
        """See `launch.ranks.Starter`."""
        place = self._allocation
        hosts = [node for node in place.nodes for _ in range(place.tasks_per_node)]
        call = RollCall(hosts, within_s=self._settings.start_within_s, own=node_name())
        folder = str(logs.folder).replace("%", "%%")
        command = [
            "srun", f"--job-name={phase}", "--kill-on-bad-exit=1", "--mpi=none", "--input=none",
            f"--nodes={len(place.nodes)}", f"--ntasks={place.ranks}", f"--ntasks-per-node={place.tasks_per_node}",
            "--distribution=block", f"--cpus-per-task={cores(launch, self._settings)}", f"--chdir={ROOT}",
            "--open-mode=append", f"--output={folder}/rank-%t/stdout.log", f"--error={folder}/rank-%t/stderr.log",
            *self._options, *self._prefix, self._python, "-m", "launch.worker", str(job),
        ]  # fmt: skip
        return StepRanks(
            command, call, environment=environment(launch) | call.environment | {STEP: "1"}, hosts=hosts,
            said=logs.folder / "step.log", slurm=self._slurm, job_id=place.job_id, note=self._note,
        )  # fmt: skip


def cores(launch: LaunchConfig, settings: SlurmConfig) -> int:
    """Cores of a rank: a step does not inherit them from its job."""
    told = os.environ.get("SLURM_CPUS_PER_TASK")
    return settings.cpus_per_task or int(told or launch.threads_per_process)


class StepRanks:
    """The tasks of one step; `launch.ranks.Ranks`.

    Attributes:
        ended: (rank, exit code) as SLURM tells of them; who ended well is told of when all have.
    """

    def __init__(
        self, command: Sequence[str], call: RollCall, *, environment: dict[str, str], hosts: Sequence[str],
        said: Path, slurm: Slurm, job_id: str, note: Note,
    ) -> None:  # fmt: skip
        self._command, self._call, self._environment, self._hosts = list(command), call, environment, list(hosts)
        self._said, self._slurm, self._job_id, self._note = said, slurm, job_id, note
        self._process: subprocess.Popen[bytes] | None = None
        self._trouble: RankFailure | None = None
        self._read, self._called, self._over, self._unsent = 0, False, False, ""
        self._gone = threading.Event()
        self.ended: list[tuple[int, int]] = []

    def __enter__(self) -> StepRanks:
        self._call.__enter__()
        self._said.parent.mkdir(parents=True, exist_ok=True)
        with self._said.open("ab") as out:
            self._read = out.tell()
            # ^C reaches only the controller, which tells the ranks
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip
        threading.Thread(target=self._wait_for, daemon=True).start()
        return self

    def _wait_for(self) -> None:
        assert self._process is not None
        self._process.wait()
        self._gone.set()

    def __exit__(self, *_: object) -> None:
        self._call.__exit__()
        if not self._gone.is_set():
            self._end_step()

    def _end_step(self) -> None:
        """End what still runs of the step. A killed client would leave its tasks alive; SIGTERM makes it end them."""
        assert self._process is not None
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                self._process.send_signal(number)
            if self._gone.wait(KILL_AFTER_S):
                return

    @property
    def running(self) -> bool:
        """Whether the step goes on."""
        return not self._over

    @property
    def left(self) -> list[int]:
        """The ranks of which nothing was heard."""
        return sorted(set(range(len(self._hosts))) - {rank for rank, _ in self.ended})

    def who(self, rank: int) -> str:
        """A rank in words."""
        return f"rank {rank} ({self._hosts[rank]})"

    def host(self, rank: int) -> str | None:
        """The node of a rank."""
        return self._hosts[rank]

    def trouble(self) -> RankFailure | None:
        """Who did not come, or what the step says of itself."""
        return self._trouble

    def wait(self, timeout_s: float) -> None:
        """Until the step ends or says that a rank has, at most `timeout_s`."""
        until, before = time.monotonic() + timeout_s, len(self.ended)
        while True:
            gone = self._gone.wait(min(0.05, timeout_s))
            self._listen()
            if gone:
                self._close()
            if gone or len(self.ended) > before or time.monotonic() >= until:
                break
        self._send()
        if self._call.complete and not self._called:
            self._called = True
            came = [[c.rank, c.host] for c in self._call.came]
            self._note("roll_call", seconds=round(self._call.complete_after_s or 0.0, 3), came=came)
        if not self._over and self._trouble is None and (wrong := self._call.trouble()) is not None:
            line, hosts = wrong
            self._trouble = NodeFailure(f"the ranks did not start: {line}", line=line, cause="roll call", hosts=hosts)

    def _listen(self) -> None:
        """Take in what SLURM has said of the step since the last time."""
        with self._said.open("rb") as stream:
            stream.seek(self._read)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1] if not self._gone.is_set() else data
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if found := _TASKS.match(line):
                code = exit_code(found["what"])
                known = {rank for rank, _ in self.ended}
                if code is not None:
                    self.ended += [(rank, code) for rank in numbers(found["tasks"]) if rank not in known]
            elif (found := _NODE.search(line)) and self._trouble is None:
                hosts = self._slurm.hosts(found["host"])
                self._trouble = NodeFailure(f"a node failed: {line}", line=line, cause="node failure", hosts=hosts)

    def _close(self) -> None:
        """The step is over: who was not told of has ended well, if the step has."""
        assert self._process is not None
        code, known = self._process.returncode, {rank for rank, _ in self.ended}
        if code == 0:
            self.ended += [(rank, DONE) for rank in range(len(self._hosts)) if rank not in known]
        elif not self.ended and self._trouble is None:
            said = self._said.read_bytes().decode(errors="replace").strip().splitlines()[-3:]
            line = "the step could not be started or was ended: " + " | ".join(said)[:400]
            self._trouble = NodeFailure(f"{line}\nAll it said: {self._said}", line=line, cause="step failed")
        self._over = True

    def signal(self, number: int) -> None:
        """Send a signal to every rank: through the scheduler, since SIGTERM to the step's client would kill them."""
        self._unsent = signal.Signals(number).name.removeprefix("SIG")
        self._send()

    def _send(self) -> None:
        """Send what is to be sent, once it is known where to."""
        came = self._call.came
        if self._unsent and came:
            name, self._unsent = self._unsent, ""
            self._slurm.cancel([f"{self._job_id}.{came[0].step}"], signal=name, steps_only=True)
