"""Running one training phase: the ranks are started by whoever can, watched here, and told apart by how they end.

Invariant: no rank outlives `run_ranks`. A request to stop reaches all ranks, and they get `launch.grace_s` to save; the
first rank that fails is the cause that is told; a rank that does not end when the others have is killed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch.failure import Hung, Logs, RankFailure, hosts_of, only_lost_others, rank_failure, signal_name
from launch.relay import Relay, last_step, saved_step
from launch.stopping import Asked
from launch.worker import DIVERGED_FILE, FAILURE, STOPPED_FILE
from train.exit_codes import DONE, MISTAKE, STOPPED, SUPERSEDED
from train.guard import STOP_SIGNALS, Diverged
from train.heartbeat import LAUNCHER_PATIENCE_S
from train.history.fence import Fence, Superseded
from train.survival import Stopped
from train.verdict import VERDICT, Watch

if TYPE_CHECKING:
    from data_prep.progress import Progress
    from launch.recipe import LaunchConfig

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.2
HEARTBEAT_EVERY_S = 1.0
LEAVE_S = {DONE: 60.0, STOPPED: 60.0, MISTAKE: 1.0, SUPERSEDED: 5.0}
FAILED_LEAVE_S = 5.0
"""Seconds that the others have to end, and to leave their logs, once a rank has ended: by its exit code, else this."""


def environment(launch: LaunchConfig) -> dict[str, str]:
    """What every rank's environment has, wherever it runs: this one, threads pinned, this checkout importable."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return os.environ | {
        "OMP_NUM_THREADS": str(launch.threads_per_process),
        # every rank tokenises the global batch in the background, with as many threads as it may use
        "TOKENIZERS_PARALLELISM": "true" if launch.threads_per_process > 1 else "false",
        "RAYON_NUM_THREADS": str(launch.threads_per_process),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": path,
    }


class Ranks(Protocol):
    """The ranks of one start. None of them outlives the `with` block.

    Attributes:
        ended: (rank, exit code) in the order in which they ended, without those that were killed from here.
    """

    ended: list[tuple[int, int]]

    @property
    def running(self) -> bool:
        """Whether any rank has not ended."""
        ...

    @property
    def left(self) -> list[int]:
        """The ranks that have not ended."""
        ...

    def who(self, rank: int) -> str:
        """A rank in words, with what finds its process."""
        ...

    def host(self, rank: int) -> str | None:
        """The node of a rank, None where there is only this machine."""
        ...

    def trouble(self) -> RankFailure | None:
        """Why the start as a whole has failed, where no exit code of a rank says it."""
        ...

    def wait(self, timeout_s: float) -> None:
        """Return as soon as a rank ends, or after `timeout_s`."""
        ...

    def signal(self, number: int) -> None:
        """Send a signal to every rank that runs."""
        ...


class Starter(Protocol):
    """Whoever starts ranks: this machine (launch/local.py), or the nodes of a job (launch/slurm/inside/ranks.py)."""

    def job_facts(self, launch: LaunchConfig, *, meeting: Path) -> dict[str, Any]:
        """What the job file says of how the ranks meet; `meeting` is a local folder of this start.

        Raises `UserError` where they cannot.
        """
        ...

    def start(self, job: Path, *, launch: LaunchConfig, logs: Logs, phase: str) -> AbstractContextManager[Ranks]:
        """Start `launch.nproc` ranks of a job file."""
        ...

    def note(self, event: str, **facts: Any) -> None:
        """Told of what became of a start: `ranks`, `stepping`, `ranks_ended`; see launch/slurm/chain.py."""
        ...

    @property
    def identity(self) -> tuple[str | None, int]:
        """The scheduler's job, and how often it was started before; (None, 0) without one."""
        ...


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
        if ranks.trouble() is not None:
            return "the start had failed"
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


def _end_of(ranks: Ranks, given_up: str, *, job: Mapping[str, Any], verdict: Path, logs: Logs, asked: Asked) -> None:
    """Raise what the ended ranks say; return where all is done."""
    phase, out, fence = job["phase"], Path(job["out"]), Fence.of(job.get("fence"))
    if fence is not None:
        fence.check()  # before anything is said of ranks that were only overtaken
    if any(code == SUPERSEDED for _, code in ranks.ended):
        raise Superseded("superseded: a newer start has taken over this phase; this one changed nothing more")
    if verdict.exists():
        found = read_json(verdict)
        raise Hung(found["line"], hosts=hosts_of(found))
    if (out / FAILURE).exists():
        raise UserError(**read_json(out / FAILURE))
    if (out / DIVERGED_FILE).exists():
        raise Diverged(read_json(out / DIVERGED_FILE)["message"])
    trouble = ranks.trouble()
    if trouble is not None:
        raise trouble
    bad = [(rank, code) for rank, code in ranks.ended if code not in (DONE, STOPPED)]
    if bad and -bad[0][1] in STOP_SIGNALS:  # it came before the rank could take it in: nothing is lost
        name = signal_name(bad[0][1])
        raise Stopped(name, saved_step(Path(job.get("history", out))))
    if bad and bad[0][1] == MISTAKE:  # not even failure.json found room on the disk
        said = logs.errors(bad[0][0]).splitlines()[-1:]
        raise UserError(
            f"{phase}, rank {bad[0][0]}", said[0] if said else "exit code 2", "mend it, and run the same command again"
        )
    if bad:
        # on several nodes who lost a rank may be heard of before that rank
        rank, code = next((b for b in bad if not (b[1] > 0 and only_lost_others(logs.errors(b[0])))), bad[0])
        raise rank_failure(phase, rank, code, logs, who=ranks.who(rank), host=ranks.host(rank))
    if given_up:
        left = ranks.left
        line = f"ranks {left} did not end though {given_up}, and were killed"
        raise RankFailure(f"{phase}: {line}. {logs.end(left[0])}\nAll logs: {logs.folder}", line=line, cause="overdue")
    if (out / STOPPED_FILE).exists():
        facts = read_json(out / STOPPED_FILE)
        raise Stopped(asked.reason or facts["reason"], facts["step"])


def _clear(logs: Path) -> None:
    """Remove what earlier starts were told and reported; their logs stay."""
    for old in (*logs.glob("heartbeat*"), *logs.glob("job*.json")):
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)


def run_ranks(
    job: Mapping[str, Any],
    *,
    out: Path,
    logs: Path,
    launch: LaunchConfig,
    progress: Progress,
    asked: Asked | None = None,
    starter: Starter | None = None,
) -> dict[str, Any]:
    """Run one training phase in `launch.nproc` processes and wait for it.

    Args:
        job: what `launch.worker` reads. out: the stage's folder. logs: where each rank's output goes.
        asked: requests to stop that are being caught already. starter: who starts the ranks; unset: this machine.

    Returns:
        The phase's summary.json.

    Raises:
        UserError: a mistake found by a rank, or a taken port. RankFailure: a rank died; Hung: nobody moved.
        Stopped: the ranks were asked to stop, and saved. Diverged: [guard] gave up.
        Superseded: a newer start has taken over.
        KeyboardInterrupt: ^C after a request to stop; nothing was waited for.
    """
    from launch.local import LocalStarter

    starter = starter or LocalStarter()
    fence, history = Fence.of(job.get("fence")), Path(job.get("history", out))
    # ranks of an older start may be alive still: what they write by name must not be taken for this start's
    own = f"-{fence.start}" if fence else ""
    beats, job_file = logs / f"heartbeat{own}", logs / f"job{own}.json"
    job = {"out": str(out), **job}
    limits = {"hang_after_s": launch.hang_after_s, "start_within_s": launch.start_within_s}
    with tempfile.TemporaryDirectory(prefix="rumpun-") as meeting, nullcontext(asked) if asked else Asked() as asked:
        more = {
            "ranks": launch.nproc,
            **starter.job_facts(launch, meeting=Path(meeting)),
            "heartbeat": {"folder": str(beats), **limits},
        }
        _clear(logs)
        beats.mkdir(parents=True)
        write_json(job_file, {**job, **more})
        written = Logs(logs, launch.nproc)
        relay = Relay(history, progress, stepping=lambda facts: starter.note("stepping", phase=job["phase"], **facts))
        patience_s = LAUNCHER_PATIENCE_S if launch.nproc > 1 else 3.0  # a rank alone cannot watch itself
        watch = Watch(beats, ranks=launch.nproc, patience_s=patience_s, **limits)
        verdict = beats / VERDICT
        starter.note("ranks", phase=job["phase"], attempt=job.get("restart", 0))
        with starter.start(job_file, launch=launch, logs=written, phase=job["phase"]) as ranks:
            given_up = _follow(ranks, watch, verdict, asked=asked, relay=relay, launch=launch)
        relay.close()
        _end_of(ranks, given_up, job=job, verdict=verdict, logs=written, asked=asked)
    if asked.reason is not None:  # it came too late for them, but the command shall end here
        raise Stopped(asked.reason, last_step(history))
    summary: dict[str, Any] = read_json(out / "summary.json")
    progress.add_work("train", summary["train_here_s"])
    return summary
