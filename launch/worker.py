"""One rank of a training phase: `python -m launch.worker JOB.json`, started by launch/local.py
or, on the nodes of a job, by launch/slurm/inside/ranks.py.

The job names the phase, the recipe's tables and the folders. A mistake that a user can mend is left in `failure.json`
for the launcher to print, a stop or a divergence in a file of its own; any other exception leaves its traceback in the
rank's log. Exit codes: train/exit_codes.py.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if __name__ == "__main__":  # before anything else is loaded: what asks to stop from here on waits until it can be noted
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch.agent import die_with_parent
from train.exit_codes import DEFECT, DIVERGED, MISTAKE, STOPPED, SUPERSEDED
from train.guard import Diverged, GuardConfig, StopRequest
from train.history.fence import Fence, Superseded

if TYPE_CHECKING:
    from train.heartbeat import Heartbeat
    from train.survival import Survival

FAILURE = "failure.json"
STOPPED_FILE = "stopped.json"
DIVERGED_FILE = "diverged.json"
STEP = "RUMPUN_STEP"
"""Set where the ranks are tasks of one step that ends with the first that ends badly."""


def _check_ranks(job: dict[str, Any]) -> tuple[int, int]:
    """(rank, ranks) of the environment. Raises `UserError` where another number of ranks was meant."""
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if ranks != job.get("ranks", ranks) or not 0 <= rank < ranks:
        raise UserError(
            f"RANK = {rank}, WORLD_SIZE = {ranks}",
            f"this job was written for {job.get('ranks', ranks)} ranks, numbered from 0",
            "start exactly one process per rank of the job",
        )
    return rank, ranks


def _heartbeat(job: dict[str, Any], *, rank: int, ranks: int) -> Heartbeat | None:
    if not job.get("heartbeat"):
        return None
    from train.heartbeat import Heartbeat

    settings = dict(job["heartbeat"])
    heart = Heartbeat(Path(settings.pop("folder")), rank=rank, ranks=ranks, **settings)
    heart.start()
    return heart


def _survival(job: dict[str, Any], stop: StopRequest, heart: Heartbeat | None) -> Survival:
    from train.history.checkpoint import CheckpointConfig
    from train.survival import Survival

    return Survival(
        history=Path(job.get("history") or Path(job["out"]) / "history"),
        checkpoint=CheckpointConfig(**job.get("checkpoint", {})),
        guard=GuardConfig(**job.get("guard", {})),
        stop=stop,
        heartbeat=heart,
        job=job.get("job"),
        inputs=job.get("inputs", {}),
        fence=Fence.of(job.get("fence")),
    )


def _train(job: dict[str, Any], survival: Survival) -> None:
    """The phase itself."""
    out = Path(job["out"])
    if job["phase"] == "pretrain":
        from train.pretrain import PretrainConfig, pretrain

        pretrain(
            PretrainConfig(**job["config"]),
            tokens=Path(job["tokens"]),
            model=Path(job["model"]),
            out=out,
            seed=job["seed"],
            survival=survival,
        )
    else:
        from train.encoder import EncoderConfig
        from train.finetune import finetune
        from train.finetune_config import FinetuneConfig

        finetune(
            FinetuneConfig(**job["config"]),
            EncoderConfig(**job["encoder"]),
            sources={name: Path(folder) for name, folder in job["sources"].items()},
            model=Path(job["model"]),
            out=out,
            seed=job["seed"],
            survival=survival,
            watched=[Path(folder) for folder in job.get("watched", [])],
        )


def _run(job: dict[str, Any], stop: StopRequest, heart: Heartbeat | None, rank: int) -> NoReturn:
    survival = _survival(job, stop, heart)
    from train.survival import Stopped

    survival.at("loading libraries")
    from train.engine import start_ranks, stop_ranks

    out = Path(job["out"])
    limits = job.get("heartbeat") or {}
    start_ranks(
        Path(job["store"]) if job.get("store") else None,
        # longer than what makes a hang, so that a verdict comes before a bare timeout
        within_s=60 + 2 * max(limits.get("start_within_s", 900), limits.get("hang_after_s", 900)),
    )
    survival.at("preparing")
    code = 0
    try:
        _train(job, survival)
    except Stopped as stopped:
        code = STOPPED
        if rank == 0:
            write_json(out / STOPPED_FILE, {"reason": stopped.reason, "step": stopped.step})
    except Diverged as diverged:
        code = DIVERGED
        if rank == 0:
            write_json(out / DIVERGED_FILE, {"message": str(diverged)})
    survival.at("leaving together")
    # in a step of a job a code other than 0 has the others killed; the launcher reads the files
    stop_ranks(0 if os.environ.get(STEP) else code)


def _overtaken(job: dict[str, Any]) -> str:
    """The line that says that a newer start has this phase's history, "" where none has."""
    fence = Fence.of(job.get("fence"))
    if fence is None:
        return ""
    try:
        fence.check()
    except (Superseded, OSError) as lost:
        return str(lost)
    return ""


def _leave_failure(out: Path, error: UserError) -> None:
    """Tell the launcher of a mistake."""
    with suppress(UserError):  # a disk so full that not even this finds room; the line in the log is told then
        write_json(out / FAILURE, {"value": error.value, "rule": error.rule, "fix": error.fix})


def main(job_file: Path, stop: StopRequest) -> NoReturn:
    """Run the job on this rank, and end the process: without unwinding torch, which was seen to abort or to wait."""
    job = read_json(job_file)
    stop.deadline = job.get("deadline")
    heart, code = None, DEFECT
    try:
        rank, ranks = _check_ranks(job)
        heart = _heartbeat(job, rank=rank, ranks=ranks)
        _run(job, stop, heart, rank)
    except Superseded as lost:
        code = SUPERSEDED
        print(lost, file=sys.stderr)
    except UserError as error:
        code = MISTAKE
        print(f"error: {error}", file=sys.stderr)
        if _overtaken(job):
            code = SUPERSEDED
        else:
            _leave_failure(Path(job["out"]), error)
    except BaseException:
        if lost_line := _overtaken(job):  # its folders were swept away: no defect
            code = SUPERSEDED
            print(lost_line, file=sys.stderr)
        elif (Path(job["out"]) / FAILURE).exists():  # it only lost a rank that has told its mistake
            code = MISTAKE
            print("ended: another rank has found a mistake, and tells it", file=sys.stderr)
        else:
            if heart is not None:
                heart.hold()
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    die_with_parent()
    request = StopRequest()
    request.install()
    from launch.slurm.inside.place import take_place

    take_place()
    main(Path(sys.argv[1]), request)
