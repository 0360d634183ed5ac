"""Starting the ranks of a training phase on this machine.

The ranks are started here and not by torch.distributed.run: that passes on SIGTERM but neither SIGUSR1 nor SIGUSR2,
kills after 30 s whoever is still saving, and its imports cost seconds of every start.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from launch.ranks import environment
from train.guard import STOP_SIGNALS

if TYPE_CHECKING:
    from launch.failure import Logs, RankFailure
    from launch.recipe import LaunchConfig

WORKER: Sequence[str] = ("-m", "launch.worker")


def check_port(port: int) -> None:
    """Raise `UserError` where the rendezvous port is taken (0: nothing to check)."""
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"launch.port = {port}",
                f"is taken on this machine ({error.strerror})",
                "use another, or 0 for none (the ranks then meet through a file)",
            ) from error


def environment_of(launch: LaunchConfig, *, rank: int) -> dict[str, str]:
    """A rank's environment: its place among the others, beside what all have."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": launch.nproc, "LOCAL_WORLD_SIZE": launch.nproc}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.port)} if launch.port else {}
    return environment(launch) | {name: str(value) for name, value in numbers.items()} | meet


class LocalStarter:
    """Starts ranks as processes of this machine; they meet through a file."""

    identity: tuple[str | None, int] = (None, 0)

    def job_facts(self, launch: LaunchConfig, *, meeting: Path) -> dict[str, Any]:
        """See `launch.ranks.Starter`. The file is on a local disk: it is locked and read a hundred times a second."""
        check_port(launch.port)
        return {"store": None if launch.port else str(meeting / "store")}

    def start(self, job: Path, *, launch: LaunchConfig, logs: Logs, phase: str) -> LocalRanks:
        """See `launch.ranks.Starter`."""
        return LocalRanks(job, launch=launch, logs=logs)

    def note(self, event: str, **facts: Any) -> None:
        """Nobody keeps a record of local starts but the ledger."""


class LocalRanks:
    """The processes of one start. Use it as a context manager: none of them outlives the block.

    Attributes:
        ended: (rank, exit code) in the order in which they ended, without those that were killed from here.
    """

    def __init__(self, job: Path, *, launch: LaunchConfig, logs: Logs) -> None:
        self._queue: queue.Queue[tuple[int, int]] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._job, self._launch, self._logs = job, launch, logs
        self.ended: list[tuple[int, int]] = []

    def __enter__(self) -> LocalRanks:
        # a request that comes before a rank can note it waits for it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for rank, place in enumerate(self._logs.places):
                with (place / "stdout.log").open("ab") as out, (place / "stderr.log").open("ab") as err:
                    self._processes[rank] = subprocess.Popen(
                        [sys.executable, *WORKER, str(self._job)],
                        env=environment_of(self._launch, rank=rank),
                        stdin=subprocess.DEVNULL,
                        stdout=out,
                        stderr=err,
                        start_new_session=True,  # ^C reaches only the launcher, which tells the ranks
                    )
        except BaseException:
            self.kill()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for rank, process in self._processes.items():
            threading.Thread(target=self._wait_for, args=(rank, process), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _wait_for(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        self._queue.put((rank, process.wait()))

    @property
    def pids(self) -> dict[int, int]:
        """The process of each rank."""
        return {rank: process.pid for rank, process in self._processes.items()}

    @property
    def running(self) -> bool:
        """Whether any rank has not ended."""
        return len(self.ended) < len(self._processes)

    @property
    def left(self) -> list[int]:
        """The ranks that have not ended."""
        return sorted(set(self._processes) - {rank for rank, _ in self.ended})

    def who(self, rank: int) -> str:
        """A rank in words."""
        return f"rank {rank} (pid {self._processes[rank].pid})"

    def host(self, rank: int) -> str | None:
        """There is only this machine."""
        return None

    def trouble(self) -> RankFailure | None:
        """Exit codes say it all here."""
        return None

    def wait(self, timeout_s: float) -> None:
        """Return as soon as a rank ends, or after `timeout_s`."""
        with suppress(queue.Empty):
            self.ended.append(self._queue.get(timeout=timeout_s))

    def signal(self, number: int) -> None:
        """Send a signal to every rank that runs."""
        for process in self._processes.values():
            process.send_signal(number)

    def kill(self) -> None:
        """End every rank, and what it has started, by force."""
        for process in self._processes.values():
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
