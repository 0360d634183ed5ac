"""The step of a preflight: one light process on every node, its lines in both directions, and an end in any case."""

from __future__ import annotations

import json
import os
import queue
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from data_prep.errors import UserError
from launch.slurm.health.preflight_facts import code_root
from launch.slurm.health.preflight_lines import Joined
from launch.slurm.health.preflight_result import THE_STEP_ENDED
from launch.slurm.scheduler.hostlist import expand

END_S = 5.0  # srun ends a step within 2 s of SIGTERM, also one whose processes ignore signals
STEP_MIN = 10  # the step's own time limit, should this process be killed before it can end the step
# What the job's own tasks were asked with must not shape this step: it wants one process a node and all of its GPUs.
SHAPES = frozenset(
    {"NTASKS", "NPROCS", "NTASKS_PER_NODE", "NTASKS_PER_GPU", "NTASKS_PER_SOCKET", "NTASKS_PER_CORE", "CPUS_PER_TASK"}
    | {"TRES_PER_TASK", "GPUS_PER_TASK", "CPU_BIND", "CPU_BIND_TYPE", "CPU_BIND_LIST", "CPU_BIND_VERBOSE", "GPU_BIND"}
    | {"TRES_BIND", "MEM_BIND", "DISTRIBUTION", "THREADS_PER_CORE", "HINT", "EXPORT_ENV", "LABELIO", "UNBUFFEREDIO"}
)


def step_command(
    command: Sequence[str], *, nodes: Sequence[str], name: str, gpus: int = 0, options: Sequence[str] = ()
) -> list[str]:
    """The srun that starts `command` once on each of these nodes, beside whatever else the job runs.

    It starts where rumpun is imported from here, as the ranks do; `options` are more of srun's, of a container.
    """
    words = [f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1", f"--chdir={code_root()}"]
    words += [f"--nodelist={','.join(nodes)}", f"--job-name={name}", f"--time={STEP_MIN}"]
    # overlap: a shell within the allocation holds all of its CPUs; export: whatever the job was submitted with
    words += ["--overlap", "--export=ALL", "--mpi=none", "--cpu-bind=none", "--kill-on-bad-exit=0"]
    if gpus:  # by name: in a job that asked for GPUs by the task, one task would be given one
        words.append(f"--gres=gpu:{gpus}")
    return ["srun", *words, *options, *command]


class Step:
    """A context manager that runs a command on nodes and ends it when the block ends.

    Args:
        command: what runs on each node.
        nodes: their names.
        token: marks the lines that are meant for us, and names the step.
        local: run the command once, here, without the scheduler.
        gpus: GPUs that the command sees on each node. options: more of srun's.

    Attributes:
        number: the step's number within its job, once a node has told it.
        heard_at: when the line that `hear` gave last was read, by this machine's clock.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        nodes: Sequence[str],
        token: str,
        local: bool = False,
        gpus: int = 0,
        options: Sequence[str] = (),
    ) -> None:
        self._name = f"preflight-{token}"
        step = step_command(command, nodes=nodes, name=self._name, gpus=gpus, options=options)
        self._command = list(command) if local else step
        self._token, self._local, self._nodes = token, local, list(nodes)
        self._lines: queue.Queue[tuple[float, dict[str, Any] | None]] = queue.Queue()
        self._said: list[str] = []
        self.number: str | None = None
        self.heard_at = 0.0

    def __enter__(self) -> Step:
        environment = {name: value for name, value in os.environ.items() if name.removeprefix("SLURM_") not in SHAPES}
        if self._local:
            environment["SLURMD_NODENAME"] = self._nodes[0]
        try:
            self._process = subprocess.Popen(
                self._command,
                env=environment,
                cwd=code_root() if self._local else None,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # ^C ends this program, which ends the step
            )
        except FileNotFoundError as error:
            raise UserError(
                "preflight",
                f"there is no {self._command[0]} here",
                "run it within a job on the cluster, or outside of a job for this machine alone",
            ) from error
        self._readers = [threading.Thread(target=work, daemon=True) for work in (self._read, self._read_errors)]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the end of stdin tells the nodes to leave, should they not have been told
            if self._process.stdin:
                self._process.stdin.close()
        if kind is None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_S)
        self.end()

    def _read(self) -> None:
        joined = Joined(self._token)
        assert self._process.stdout
        for written in self._process.stdout:
            if (line := joined.take(written)) is not None:
                self._lines.put((time.time(), line))
        self._lines.put((time.time(), None))

    def _read_errors(self) -> None:
        assert self._process.stderr
        for line in self._process.stderr:
            self._said = [*self._said, line.decode(errors="replace").rstrip()][-200:]

    def hear(self, within_s: float) -> dict[str, Any] | None:
        """The next line of a node; None when the time is over or the step has ended."""
        try:
            self.heard_at, line = self._lines.get(timeout=max(0.0, within_s))
        except queue.Empty:
            return None
        if line is None:
            self._lines.put((self.heard_at, None))  # it stays ended
        return line

    @property
    def over(self) -> bool:
        """Nothing more will be heard: the step has ended, and all of its lines were."""
        return not self._readers[0].is_alive() and self._lines.qsize() <= 1

    @property
    def ended(self) -> bool:
        """The step has ended by itself."""
        return self._process.poll() is not None

    def tell(self, order: dict[str, Any]) -> None:
        """One line to all nodes. Nobody hears it where the step has ended."""
        with suppress(OSError, ValueError):
            assert self._process.stdin
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()

    def said(self) -> list[str]:
        """What the scheduler and the processes wrote on stderr, the last lines."""
        for reader in self._readers:
            reader.join(0.5)
        return [line for line in self._said if line.strip()][-8:]

    def failed_nodes(self) -> dict[str, str]:
        """Nodes of which the scheduler says that nothing could be started there, or that it ended there by itself."""
        found = {}
        for line in list(self._said):
            if match := re.search(r"launch .*failed on node ([\w.-]+): (.*)", line):
                found[match[1]] = f"nothing could be started there ({match[2]})"
            elif match := re.match(r"srun: error: (\S+): tasks? [\d,-]+: (.+)", line):
                how = "Python did not run there" if "exit code" in match[2] else f"{THE_STEP_ENDED} there"
                found |= dict.fromkeys(expand(match[1]), f"{how} ({match[2].lower()})")
        return found

    def end(self) -> None:
        """End the step, at the latest within seconds, by its name where srun itself does not answer."""
        if self._process.poll() is not None:
            return
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
            return
        self._process.kill()
        self._process.wait()
        if not self._local:
            self._cancel()

    def _cancel(self) -> None:
        job = os.environ.get("SLURM_JOB_ID", "")
        with suppress(OSError, subprocess.SubprocessError):
            ask = ["squeue", "--steps", "--noheader", f"--jobs={job}", "--format=%i %j"]
            answer = subprocess.run(ask, capture_output=True, text=True, timeout=10, check=True)
            for line in answer.stdout.splitlines():
                step, _, name = line.strip().partition(" ")
                if name == self._name:
                    subprocess.run(["scancel", step], capture_output=True, timeout=10, check=False)
