"""Parts of a data stage as array jobs, through submitit.

A task computes its parts one after another and writes each result before the next, so a task that is requeued or killed
loses one part at most. What a requeueing cannot bring back (a site that forbids it, a node that is gone, a time limit
that came too early) is submitted again, as long as that gains something.

submitit submits; whether tasks still run is asked of the scheduler by launch/slurm/scheduler/commands.py, without
accounting. submitit's own files (a pickled function, its result, logs) lie in the scratch folder of the stage: they are
written and read by this run alone.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from data_prep.errors import UserError
from data_prep.fanout import Part, Result, Serial, finished, record_of, result_of
from data_prep.files import read_json, write_json
from data_prep.progress import Progress
from launch.array_task import WARNED, Share
from launch.fanout import FanoutConfig

if TYPE_CHECKING:
    from launch.slurm.clusters.profile import ClusterProfile
    from launch.slurm.scheduler.commands import Slurm

ARRAYS = "submitted.json"
WITHOUT_GAIN = 3
"""Submissions in a row that may end with no further part done."""
SILENCE_S = 1800.0
"""Seconds for which a scheduler that does not answer is waited for."""
LEAD_S = 30
"""Seconds between the warning of a task and its end: it drops the part that it is at."""
_ROOT = Path(__file__).resolve().parent.parent
_LOOK_S = 1.0
_SETTLE_S = 5.0  # a file of another node may be seen late on network file systems
_DISTRIBUTED = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# ends that are not the part's own doing
_CUT_OFF = frozenset(
    ("TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "LAUNCH_FAILED", "REVOKED", "COMPLETED", "GONE")
)


class ArrayConfig(FanoutConfig):
    """`[fanout]` of a recipe with what the cluster's profile adds to it; nothing of this stands in recipes."""

    qos: str | None = None
    """Quality of service of the tasks."""
    constraint: str | None = None
    """Features that their nodes must have."""
    exclude: list[str] = Field(default_factory=list)
    """Nodes to stay away from."""
    requeue: bool = True
    """Whether a task may run again under its id; where the site forbids it, what is missing is submitted again."""
    setup: list[str] = Field(default_factory=list)
    """Lines of shell that make the environment of a task, each quoted already: modules, variables."""
    python: list[str] = Field(default_factory=lambda: [sys.executable])
    """The words that start Python on a node."""
    step: list[str] = Field(default_factory=list)
    """Options of the step that Python runs in, e.g. of a container."""

    @classmethod
    def on(cls, profile: ClusterProfile, config: FanoutConfig) -> ArrayConfig:
        """What a recipe asks for, on a cluster: its own values win."""
        from launch.slurm.inside.wrapping import wrapping
        from launch.slurm.submitting.directives import setup

        prefix, step, python = wrapping(profile)
        given = config.model_dump(exclude_unset=True)
        gpu = config.gpus_per_worker > 0  # a partition for jobs without GPUs would never start it
        wish = config.time_min
        return cls(
            **{
                "partition": (not gpu and profile.stage_partition) or profile.partition,
                "account": (not gpu and profile.stage_account) or profile.account,
                "max_array_tasks": min(profile.max_array_tasks or 1000, 1000),
                **given,
                "time_min": min(wish, profile.max_time_min or wish),
                "kind": "slurm",
            },
            qos=profile.qos, constraint=profile.constraint if gpu else profile.stage_constraint,
            exclude=profile.exclude, requeue=profile.route == "requeue", setup=setup(profile),
            python=[*prefix, python], step=list(step),
        )  # fmt: skip


class ArrayFanout:
    """Array jobs on a cluster.

    Args:
        config: of the recipe, or an `ArrayConfig`. cluster: submitit's executor; `local` runs the same tasks as
            processes here. look_s: seconds between two looks at the results; the scheduler is asked every `poll_s` of
            the config.
    """

    def __init__(self, config: FanoutConfig, *, cluster: str = "slurm", look_s: float = _LOOK_S) -> None:
        self.workers = config.workers or 64
        self._config = config if isinstance(config, ArrayConfig) else ArrayConfig(**config.model_dump())
        self._cluster, self._look_s = cluster, look_s
        self._slurm: Slurm | None = None
        self._silent_since: float | None = None
        self._told = ""

    def map(
        self, function: str, parts: Sequence[Part], *, scratch: Path, label: str, progress: Progress
    ) -> list[Result]:
        """See `Fanout.map`. Waits for the jobs; on an interrupt they are cancelled, and finished parts are kept."""
        records = [record_of(function, part, scratch=scratch, label=label) for part in parts]
        todo = [n for n, record in enumerate(records) if finished(record) is None]
        for n in todo:  # what failed the last time is tried again, not told again
            records[n].unlink(missing_ok=True)
        if not todo or self._stays_here(len(todo)):
            return Serial().map(function, parts, scratch=scratch, label=label, progress=progress)
        self._start(scratch / "array")
        progress.begin(label, len(parts), "parts")
        progress.advance(len(parts) - len(todo))
        fruitless = 0
        while todo:
            before, ended = len(todo), self._submitted(function, parts, records, todo, scratch, label, progress)
            todo = [n for n in todo if not records[n].exists()]
            fruitless = fruitless + 1 if len(todo) == before else 0
            if todo and fruitless >= WITHOUT_GAIN:
                raise UserError(
                    f"{label}: {len(todo)} of {len(parts)} parts", f"were cut off {fruitless} times in a row ({ended})",
                    f"raise fanout.time_min, or read the logs in {scratch / 'array'}; finished parts are kept",
                )  # fmt: skip
            if todo:
                progress.note(f"{label}: {len(todo)} parts were cut off ({ended}) and are submitted again")
        return [result_of(record, function=function) for record in records]

    def _stays_here(self, parts: int) -> bool:
        """Whether a job computes them itself: an array that works on one part at a time would only add a queue."""
        if self._cluster != "slurm" or "SLURM_JOB_ID" not in os.environ or self._config.gpus_per_worker:
            return False
        return min(parts, self.workers) == 1

    def _start(self, folder: Path) -> None:
        """Find the scheduler, and end what an earlier start of this stage was cut off from."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._cluster != "slurm":
            return
        from launch.slurm.scheduler.commands import Slurm

        try:
            self._slurm = Slurm.here(poll_s=self._config.poll_s, need=("sbatch", "srun", "squeue", "scancel"))
        except UserError as error:
            raise UserError(
                'fanout.kind = "slurm"', f"no SLURM here ({error.value}: {error.rule})",
                'submit from a login node, or set kind = "local"',
            ) from error  # fmt: skip
        if (folder / ARRAYS).exists():
            with suppress(UserError):
                self._slurm.cancel(read_json(folder / ARRAYS))

    def _executor(self, folder: Path, label: str) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                'fanout.kind = "slurm"', "needs the package submitit", "pip install 'rumpun[slurm]'"
            ) from error
        config = self._config
        threads = config.threads_per_worker
        words = {"slurm_python": shlex.join(config.python)} if self._cluster == "slurm" else {}
        executor = submitit.AutoExecutor(folder=folder, cluster=self._cluster, **words)
        executor.update_parameters(
            name=f"rumpun-{label}".replace(" ", "-"),
            timeout_min=config.time_min,
            mem_gb=config.memory_gb,
            cpus_per_task=threads,
            **({"gpus_per_node": config.gpus_per_worker} if config.gpus_per_worker else {}),
        )
        if self._cluster == "slurm":
            named = {name: getattr(config, name) for name in ("partition", "account", "qos", "constraint")}
            named["exclude"] = ",".join(config.exclude) or None
            executor.update_parameters(
                slurm_array_parallelism=self.workers,
                slurm_signal_delay_s=LEAD_S,
                # a step has no more cores than it asks for, whatever its job has
                slurm_srun_args=[f"--cpus-per-task={threads}", "--mpi=none", "--input=none", *config.step],
                slurm_additional_parameters={"requeue" if config.requeue else "no-requeue": True},
                slurm_setup=[
                    *config.setup,
                    f"export OMP_NUM_THREADS={threads}",
                    f'export PYTHONPATH={shlex.quote(str(_ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"',
                ],
                **{f"slurm_{name}": value for name, value in named.items() if value},
            )
        return executor

    def _submitted(
        self, function: str, parts: Sequence[Part], records: Sequence[Path], todo: Sequence[int], scratch: Path,
        label: str, progress: Progress,
    ) -> str:  # fmt: skip
        """Submit these parts once, and wait until all are done or no task is left. Returns how the tasks ended.

        Raises what the first part that failed has raised, or `UserError` for a task that failed or was cancelled.
        """
        folder = scratch / "array"
        tasks = min(len(todo), self._config.max_array_tasks)
        shares = [todo[n::tasks] for n in range(tasks)]
        with _outside_a_job(), _refused(self._config):
            jobs = self._executor(folder, label).map_array(
                Share(folder),
                [function] * tasks,
                [[dict(parts[n]) for n in share] for share in shares],
                [[str(records[n]) for n in share] for share in shares],
            )
        arrays = sorted({str(job.job_id).partition("_")[0] for job in jobs})
        try:
            write_json(folder / ARRAYS, arrays)
            open_records = {records[n] for n in todo}
            told = self._wait(jobs, [[records[n] for n in share] for share in shares], open_records, function, progress)
        except BaseException:
            self._cancel(jobs, arrays)
            raise
        (folder / ARRAYS).unlink(missing_ok=True)
        return told

    def _cancel(self, jobs: Sequence[Any], arrays: Sequence[str]) -> None:
        if self._slurm is not None:
            with suppress(UserError):  # what went wrong before matters more
                self._slurm.cancel(arrays)
            return
        for job in jobs:
            job.cancel()

    def _wait(
        self, jobs: Sequence[Any], shares: Sequence[Sequence[Path]], missing: set[Path], function: str,
        progress: Progress,
    ) -> str:  # fmt: skip
        """Until every result is there, or no task is left that could bring one."""

        def look() -> None:
            for record in sorted(record for record in missing if record.exists()):
                result_of(record, function=function)
                missing.discard(record)
                progress.advance(1)

        while True:
            look()
            if not missing:
                self._see_out(jobs)
                return "done"
            left = [(job, share) for job, share in zip(jobs, shares, strict=True) if missing & set(share)]
            states = self._states([job for job, _ in left], progress)
            if "" in states.values() and "CANCELLED" not in states.values():
                time.sleep(self._look_s)
                continue
            until = time.monotonic() + (_SETTLE_S if self._slurm else 0.0)
            while missing and time.monotonic() < until:
                time.sleep(min(0.2, self._look_s))
                look()
            look()
            for job, share in left:
                if missing & set(share):
                    self._check_end(job, states[str(job.job_id)])
            if "" not in states.values():
                return ", ".join(sorted(set(states.values())))

    def _states(self, jobs: Sequence[Any], progress: Progress) -> dict[str, str]:
        """How each task has ended; "" while it may still go on. Why none of them runs is told once."""
        ids = [str(job.job_id) for job in jobs]
        if self._slurm is None:
            return {id: ("FAILED" if job.done() else "") for id, job in zip(ids, jobs, strict=True)}
        try:
            told = self._slurm.jobs(ids)
            self._silent_since = None
        except UserError as error:  # results are seen without it
            self._silent_since = self._silent_since or time.monotonic()
            if time.monotonic() - self._silent_since > SILENCE_S:
                raise
            self._tell(progress, f"{error.value} {error.rule}; going on without it")
            return dict.fromkeys(ids, "")
        if all(state.waiting for state in told.values()):
            self._tell(progress, f"array {ids[0].partition('_')[0]} waits: {told[ids[0]].reason or 'no reason given'}")
        return {id: "" if state.active else state.state for id, state in told.items()}

    def _tell(self, progress: Progress, line: str) -> None:
        if line != self._told:
            self._told = line
            progress.note(line)

    def _check_end(self, job: Any, state: str) -> None:
        """Raise `UserError` where a task ended by itself, or by somebody's wish, before its parts were done."""
        keep = "then run the same command again: finished parts are kept"
        name, errors = str(job.job_id), job.paths.stderr
        if state == "CANCELLED":
            raise UserError(
                f"array task {name}", "was cancelled, not by this run",
                f"run the same command again: finished parts are kept; logs: {errors.parent}",
            )  # fmt: skip
        if not state or (self._slurm and state in _CUT_OFF) or (errors.parent / WARNED / name).exists():
            return
        if self._slurm is None and job.exception() is None:
            return
        why = {"OUT_OF_MEMORY": "out of memory (fanout.memory_gb)"}.get(state, state)
        last = _last_line(errors) if self._slurm else str(job.exception()).strip().splitlines()[-1]
        raise UserError(f"array task {name}", f"failed ({f'{why}: {last}'[:200]})", f"read {errors}, {keep}")

    def _see_out(self, jobs: Sequence[Any]) -> None:
        """Let the tasks write their last files: the folder will be removed."""
        until = time.monotonic() + _SETTLE_S
        while time.monotonic() < until and not all(job.paths.result_pickle.exists() for job in jobs):
            time.sleep(0.1)


def _last_line(path: Path) -> str:
    """What a log says last; of a task that was killed, what the scheduler says of it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "it left no log"
    told = [line for line in lines if line.startswith("srun: error:")] or lines
    return told[-1].strip() if told else "it left an empty log"


@contextmanager
def _outside_a_job() -> Iterator[None]:
    """Take out of the environment what tells a command that it runs inside a job, or a task of submitit."""
    from launch.slurm.scheduler.call import clean_environment

    before = dict(os.environ)
    kept = clean_environment()
    for name in before:
        if name not in kept or name in _DISTRIBUTED or name.startswith("SUBMITIT_"):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _refused(config: ArrayConfig) -> Iterator[None]:
    """The scheduler's refusal of an array in one line."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    try:
        yield
    except (FailedJobError, FailedSubmissionError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()] or str(error).splitlines()
        said = (lines[-1] if lines else "").removeprefix("sbatch: ").strip()[:200]
        raise UserError(
            f"an array of partition {config.partition or '(the default)'}", f"was refused ({said})",
            "mend [fanout] (partition, account, time_min, memory_gb, max_array_tasks) or the cluster's profile; "
            "slurm.fan_out = false computes the parts in the job itself",
        ) from error  # fmt: skip
