"""Starting the ranks of a training phase on this machine, watching them, and ending them.

The ranks are started here and not by torch.distributed.run: that passes on SIGTERM but neither SIGUSR1 nor SIGUSR2,
kills after 30 s whoever is still saving, and its imports cost seconds of every start.

Invariant: no rank outlives `run_ranks`. A request to stop reaches all ranks, and they get `launch.grace_s` to save; the
first rank that fails is the cause that is told; a rank that does not end when the others have is killed.
"""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch.failure import Hung, Logs, RankFailure, rank_failure
from launch.relay import Relay, last_step
from launch.stopping import Asked
from launch.worker import DIVERGED_FILE, FAILURE, STOPPED_FILE
from train.exit_codes import DONE, MISTAKE, STOPPED
from train.guard import STOP_SIGNALS, Diverged
from train.heartbeat import LAUNCHER_PATIENCE_S
from train.survival import Stopped
from train.verdict import VERDICT, Watch

if TYPE_CHECKING:
    from data_prep.progress import Progress
    from launch.recipe import LaunchConfig

ROOT = Path(__file__).resolve().parent.parent
WORKER: Sequence[str] = ("-m", "launch.worker")
POLL_S = 0.2
HEARTBEAT_EVERY_S = 1.0
LEAVE_S = {DONE: 60.0, STOPPED: 60.0, MISTAKE: 1.0}
FAILED_LEAVE_S = 5.0
"""Seconds that the others have to end, and to leave their logs, once a rank has ended: by its exit code, else this."""


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


def environment(launch: LaunchConfig, *, rank: int) -> dict[str, str]:
    """A rank's environment: this one, its place among the others, threads pinned, this checkout importable."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": launch.nproc, "LOCAL_WORLD_SIZE": launch.nproc}
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(launch.port)} if launch.port else {}
    return (
        os.environ
        | {name: str(value) for name, value in place.items()}
        | meet
        | {
            "OMP_NUM_THREADS": str(launch.threads_per_process),
            # every rank tokenises the global batch in the background, with as many threads as it may use
            "TOKENIZERS_PARALLELISM": "true" if launch.threads_per_process > 1 else "false",
            "RAYON_NUM_THREADS": str(launch.threads_per_process),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            "PYTHONPATH": path,
        }
    )


class Ranks:
    """The processes of one start. Use it as a context manager: none of them outlives the block.

    Attributes:
        ended: (rank, exit code) in the order in which they ended, without those that were killed from here.
    """

    def __init__(self, job: Path, *, launch: LaunchConfig, logs: Logs) -> None:
        self._queue: queue.Queue[tuple[int, int]] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._job, self._launch, self._logs = job, launch, logs
        self._killed = False
        self.ended: list[tuple[int, int]] = []

    def __enter__(self) -> Ranks:
        # a request that comes before a rank can note it waits for it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            for rank, place in enumerate(self._logs.places):
                with (place / "stdout.log").open("ab") as out, (place / "stderr.log").open("ab") as err:
                    self._processes[rank] = subprocess.Popen(
                        [sys.executable, *WORKER, str(self._job)],
                        env=environment(self._launch, rank=rank),
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


def _follow(ranks: Ranks, watch: Watch, verdict: Path, *, asked: Asked, relay: Relay, launch: LaunchConfig) -> str:
    """Wait until all ranks have ended, or ought to have. Returns why some had to be given up, or "".

    Raises `KeyboardInterrupt` on the ^C that asks for the end at once.
    """
    give_up, why, told, judged = float("inf"), "", False, False
    look_at = time.monotonic() + HEARTBEAT_EVERY_S
    while ranks.running:
        before = len(ranks.ended)
        ranks.wait(POLL_S)
        relay.look()
        now = time.monotonic()
        if len(ranks.ended) > before:
            rank, code = ranks.ended[-1]
            give_up, why = min((give_up, why), (now + LEAVE_S.get(code, FAILED_LEAVE_S), f"rank {rank} had ended"))
        if asked.reason and not told:
            told = True
            ranks.signal(asked.signal)
            relay.progress.note(asked.line)
            give_up, why = min((give_up, why), (now + launch.grace_s, f"{asked.reason} asked for it"))
        if asked.at_once:
            raise KeyboardInterrupt
        if now >= look_at and not judged:
            look_at = now + HEARTBEAT_EVERY_S
            if watch.look() and not verdict.exists():
                watch.judge()
            if verdict.exists():
                judged = True
                give_up, why = min((give_up, why), (now + FAILED_LEAVE_S, "a hang was found"))
        if now >= give_up:
            return why
    return ""


def _end_of(ranks: Ranks, given_up: str, *, out: Path, verdict: Path, phase: str, logs: Logs, asked: Asked) -> None:
    """Raise what the ended ranks say; return where all is done."""
    if verdict.exists():
        raise Hung(read_json(verdict)["line"])
    if (out / FAILURE).exists():
        raise UserError(**read_json(out / FAILURE))
    if (out / DIVERGED_FILE).exists():
        raise Diverged(read_json(out / DIVERGED_FILE)["message"])
    bad = [(rank, code) for rank, code in ranks.ended if code not in (DONE, STOPPED)]
    if bad and bad[0][1] == MISTAKE:  # not even failure.json found room on the disk
        said = logs.errors(bad[0][0]).splitlines()[-1:]
        raise UserError(
            f"{phase}, rank {bad[0][0]}", said[0] if said else "exit code 2", "mend it, and run the same command again"
        )
    if bad:
        raise rank_failure(phase, *bad[0], logs, pids=ranks.pids)
    if given_up:
        left = sorted(set(ranks.pids) - {rank for rank, _ in ranks.ended})
        line = f"ranks {left} did not end though {given_up}, and were killed"
        raise RankFailure(f"{phase}: {line}. {logs.end(left[0])}\nAll logs: {logs.folder}", line=line, cause="overdue")
    if any(code == STOPPED for _, code in ranks.ended):
        facts = read_json(out / STOPPED_FILE)
        raise Stopped(asked.reason or facts["reason"], facts["step"])


def run_ranks(
    job: Mapping[str, Any],
    *,
    out: Path,
    logs: Path,
    launch: LaunchConfig,
    progress: Progress,
    asked: Asked | None = None,
) -> dict[str, Any]:
    """Run one training phase in `launch.nproc` processes and wait for it.

    Args:
        job: what `launch.worker` reads. out: the stage's folder. logs: where each rank's output goes.
        asked: requests to stop that are being caught already.

    Returns:
        The phase's summary.json.

    Raises:
        UserError: a mistake found by a rank, or a taken port. RankFailure: a rank died; Hung: nobody moved.
        Stopped: the ranks were asked to stop, and saved. Diverged: [guard] gave up.
        KeyboardInterrupt: ^C after a request to stop; nothing was waited for.
    """
    check_port(launch.port)
    beats = logs / "heartbeat"
    shutil.rmtree(beats, ignore_errors=True)
    beats.mkdir(parents=True)
    limits = {"hang_after_s": launch.hang_after_s, "start_within_s": launch.start_within_s}
    with tempfile.TemporaryDirectory(prefix="rumpun-") as meeting, nullcontext(asked) if asked else Asked() as asked:
        more = {
            "ranks": launch.nproc,
            # on a local disk, whatever the run folder is on: it is locked and read a hundred times a second
            "store": None if launch.port else str(Path(meeting) / "store"),
            "heartbeat": {"folder": str(beats), **limits},
        }
        write_json(logs / "job.json", {**job, **more})
        written = Logs(logs, launch.nproc)
        relay = Relay(Path(job.get("history", out)), progress)
        patience_s = LAUNCHER_PATIENCE_S if launch.nproc > 1 else 3.0  # a rank alone cannot watch itself
        watch = Watch(beats, ranks=launch.nproc, patience_s=patience_s, **limits)
        verdict = beats / VERDICT
        with Ranks(logs / "job.json", launch=launch, logs=written) as ranks:
            given_up = _follow(ranks, watch, verdict, asked=asked, relay=relay, launch=launch)
        relay.close()
        _end_of(ranks, given_up, out=out, verdict=verdict, phase=job["phase"], logs=written, asked=asked)
    if asked.reason is not None:  # it came too late for them, but the command shall end here
        raise Stopped(asked.reason, last_step(Path(job.get("history", out))))
    summary: dict[str, Any] = read_json(out / "summary.json")
    progress.add_work("train", summary["train_here_s"])
    return summary
