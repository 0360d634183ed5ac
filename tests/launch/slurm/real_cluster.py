"""The testbench, as tests use it: commands with time limits, waiting for what SLURM does, accidents of nodes."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
SCRIPT = REPO / "slurm" / "testbench" / "testbench"
PREFIX = "rumpun-test-"


class Cluster:
    """A SLURM cluster on this machine.

    Attributes:
        folder: of the testbench; its logs are in `folder / "log"`.
        scratch: a folder on the file system that all nodes share, for scripts, run folders and output.
        env: an environment in which sbatch, srun, squeue … are those of this cluster.
    """

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder, self.scratch = folder, scratch
        self.options: tuple[str, ...] = ()
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.env: dict[str, str] = {**os.environ, "PATH": path, "RUMPUN_TESTBENCH": str(folder)}

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes: node1, node2 …"""
        return self.run(["sinfo", "-h", "-N", "-p", "normal", "-o", "%N"]).stdout.split()

    def run(
        self,
        words: Sequence[str | Path],
        *,
        check: bool = True,
        timeout_s: float = 60.0,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine, with this cluster's commands on PATH; `env` adds to the environment.

        Raises:
            AssertionError: it ended with another code than 0, and `check` is set.
        """
        answer = subprocess.run(
            [str(word) for word in words],
            cwd=cwd or self.scratch,
            env={**self.env, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and answer.returncode != 0:
            raise AssertionError(f"{words}: exit code {answer.returncode}\n{answer.stdout}\n{answer.stderr}")
        return answer

    def testbench(self, command: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of the testbench itself, such as `testbench("node", "node2", "crash")`."""
        return self.run([SCRIPT, command, "--at", str(self.folder), *words], check=check, timeout_s=240.0)

    def sbatch(self, script: str, *options: str) -> str:
        """Submit a script given as text (its first line is added); returns the job's id.

        The output is in scratch / "ID.out", of all restarts.
        """
        file = self.scratch / f"{secrets.token_hex(4)}.sbatch"
        file.write_text(f"#!/bin/bash\n{script}\n")
        output = ["--output", str(self.scratch / "%j.out"), "--open-mode", "append"]
        return self.run(["sbatch", "--parsable", *output, *options, file]).stdout.strip()

    def output(self, job: str) -> str:
        """What a job of `sbatch` has printed so far."""
        file = self.scratch / f"{job}.out"
        return file.read_text() if file.exists() else ""

    def show(self, job: str) -> dict[str, str]:
        """The controller's record of a job, e.g. show(job)["JobState"]; empty where it knows none."""
        answer = self.run(["scontrol", "show", "job", "-o", job], check=False)
        return dict(word.partition("=")[::2] for word in answer.stdout.split() if "=" in word)

    def state(self, job: str) -> str:
        """Its state now, e.g. PENDING; GONE where the controller does not know it."""
        return self.show(job).get("JobState", "GONE")

    def wait_for_state(self, job: str, states: str | Collection[str], within: float = 120.0) -> str:
        """Wait until the job is in one of the states, at most `within` seconds (a busy machine takes its time); returns the state.

        Raises:
            AssertionError: it is not; with the job's record and output.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        until = time.monotonic() + within
        while (state := self.state(job)) not in wanted:
            if time.monotonic() > until:
                raise AssertionError(f"job {job}: {state}, not {wanted}\n{self.show(job)}\n{self.output(job)}")
            time.sleep(0.1)
        return state

    def wait_for(self, what: str, happened: Callable[[], bool], within: float = 120.0) -> None:
        """Wait until `happened()` is true, at most `within` seconds.

        Raises:
            AssertionError: it is not; `what` says what was expected.
        """
        until = time.monotonic() + within
        while not happened():
            if time.monotonic() > until:
                seen = [self.run(words, check=False).stdout for words in (["sinfo", "-N"], ["squeue"])]
                raise AssertionError("\n".join([f"waited {within} s in vain: {what}", *seen]))
            time.sleep(0.1)

    def node_state(self, node: str) -> str:
        """As sinfo says it, e.g. idle, mixed, down* (the star: it does not answer)."""
        return self.run(["sinfo", "-h", "-n", node, "-p", "normal", "-o", "%T"]).stdout.strip()

    def crash(self, node: str, *, noticed: bool = True) -> None:
        """Power loss: all processes of the node are gone. `noticed`: wait until SLURM knows (8 to 16 s)."""
        self.testbench("node", node, "crash")
        if noticed:
            self.wait_for_loss(node)

    def wait_for_loss(self, node: str, within: float = 120.0) -> None:
        """Wait until SLURM has given the node up."""
        self.wait_for(f"{node} down", lambda: self.node_state(node).startswith("down"), within)

    def start(self, node: str) -> None:
        """Power it on again, and wait until SLURM uses it."""
        self.testbench("node", node, "start")
        self.wait_for(f"{node} answers", lambda: "*" not in self.node_state(node))

    def kill_slurmd(self, node: str) -> None:
        """SLURM's daemon dies; the ranks on the node go on."""
        self.testbench("node", node, "slurmd-kill")

    def start_slurmd(self, node: str) -> None:
        """Its daemon comes back; it ends what runs there without a job."""
        self.testbench("node", node, "slurmd-start")

    def unplug(self, node: str) -> None:
        """The node's network cable out: it and its ranks live on, alone."""
        self.testbench("node", node, "unplug")

    def plug(self, node: str) -> None:
        """The cable in again."""
        self.testbench("node", node, "plug")

    def restart_controller(self) -> None:
        """A new slurmctld takes over; jobs go on."""
        self.testbench("controller", "restart")

    def on(self, node: str, words: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, beside its jobs."""
        return self.testbench("exec", "--on", node, *words, check=check)

    def mend(self) -> None:
        """Cancel all jobs, bring back all nodes: the next test finds an idle cluster, if need be a fresh one."""
        try:
            self.testbench("up")
            if self.run(["squeue", "-h", "-o", "%i"]).stdout.split():
                self.run(["scancel", "--user", "root"])
                self.wait_for("an empty queue", lambda: not self.run(["squeue", "-h"]).stdout.strip())
            if set(self._states().values()) != {"idle"}:
                for node, state in self._states().items():
                    if state.startswith(("drain", "down")):
                        self.run(["scontrol", "update", f"nodename={node}", "state=resume"])
                self.wait_for("idle nodes", lambda: set(self._states().values()) == {"idle"})
        except (AssertionError, subprocess.TimeoutExpired) as error:
            warnings.warn(f"the cluster starts anew: {error}", stacklevel=2)
            self.purge()
            self.up()

    def _states(self) -> dict[str, str]:
        rows = self.run(["sinfo", "-h", "-N", "-p", "normal", "-o", "%N %T"]).stdout.split()
        return dict(zip(rows[::2], rows[1::2], strict=True))

    def up(self, *options: str) -> None:
        """Start it. What an interrupted session leaves is ended by `sweep_abandoned` of the next."""
        self.options = options or self.options
        self.testbench("up", *self.options)

    def purge(self) -> None:
        """End it and remove its folder."""
        self.testbench("purge", check=False)


def why_not() -> str:
    """What this machine lacks for a cluster; empty where it lacks nothing."""
    if os.geteuid() != 0:
        return "not root"
    needed = ("sbatch", "slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db", "ip", "nsenter")
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    if missing := [name for name in needed if not shutil.which(name, path=path)]:
        return f"no {', '.join(missing)}; slurm/testbench/testbench up --install"
    words = ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "true"]
    return "" if subprocess.run(words, capture_output=True).returncode == 0 else "no namespaces in this kernel"


def free_folder() -> Path:
    """A new folder for a cluster of this process; in memory where there is some, as its database syncs often."""
    parent = Path("/dev/shm")
    if not os.access(parent, os.W_OK) or shutil.disk_usage(parent).free < 1e9:
        parent = Path(os.environ.get("TMPDIR", "/tmp"))
    return parent / f"{PREFIX}{os.getpid()}-{start_time(os.getpid())}-{secrets.token_hex(2)}"


def sweep_abandoned() -> None:
    """End the clusters of test processes that were killed: their folders carry the PID and its start time."""
    for parent in (Path("/dev/shm"), Path(os.environ.get("TMPDIR", "/tmp"))):
        for folder in parent.glob(f"{PREFIX}*-*-*"):
            pid, began, _ = folder.name.removeprefix(PREFIX).split("-")
            if start_time(int(pid)) != began:
                subprocess.run([SCRIPT, "purge", "--at", folder], capture_output=True, timeout=120)


def start_time(pid: int) -> str:
    """When a process began, in ticks since boot; empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""
