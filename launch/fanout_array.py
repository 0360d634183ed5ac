"""Parts of a data stage as array jobs, through submitit.

A task computes its parts one after another and writes each result before the next, so a task that is requeued or killed
loses one part at most. submitit's own files (a pickled function, its result, logs) lie in the scratch folder of the
stage: they are written and read by this run alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.fanout import Part, Result, finished, record_of, result_of, run_part
from data_prep.progress import Progress

if TYPE_CHECKING:
    from launch.fanout import FanoutConfig

_POLL_S = 1.0


def run_parts(function: str, parts: Sequence[Part], records: Sequence[str]) -> int:
    """What one array task does: its parts one after another, but those that are done. Returns how many it computed."""
    computed = 0
    for part, record in zip(parts, map(Path, records), strict=True):
        if finished(record) is None:
            run_part(function, part, record)
            computed += 1
    return computed


class ArrayFanout:
    """Array jobs on a cluster.

    Args:
        config: of the recipe. cluster: submitit's executor; `local` runs the same tasks as processes here.
    """

    def __init__(self, config: FanoutConfig, *, cluster: str = "slurm", poll_s: float = _POLL_S) -> None:
        self.workers = config.workers or 64
        self._config, self._cluster, self._poll_s = config, cluster, poll_s

    def _executor(self, folder: Path, label: str) -> Any:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                'fanout.kind = "slurm"', "needs the package submitit", "pip install 'rumpun[slurm]'"
            ) from error
        config = self._config
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=self._cluster)
        except RuntimeError as error:  # no sbatch on this machine
            raise UserError(
                'fanout.kind = "slurm"', f"no SLURM here ({error})", 'submit from a login node, or set kind = "local"'
            ) from error
        executor.update_parameters(
            name=f"rumpun-{label}".replace(" ", "-"),
            timeout_min=config.time_min,
            mem_gb=config.memory_gb,
            cpus_per_task=config.threads_per_worker,
            gpus_per_node=config.gpus_per_worker,
        )
        if self._cluster == "slurm":
            executor.update_parameters(
                slurm_array_parallelism=self.workers,
                **({"slurm_partition": config.partition} if config.partition else {}),
                **({"slurm_account": config.account} if config.account else {}),
                slurm_setup=[f"export OMP_NUM_THREADS={config.threads_per_worker}"],
            )
        return executor

    def map(
        self, function: str, parts: Sequence[Part], *, scratch: Path, label: str, progress: Progress
    ) -> list[Result]:
        """See `Fanout.map`. Waits for the jobs; on an interrupt they are cancelled, and finished parts are kept."""
        records = [record_of(function, part, scratch=scratch, label=label) for part in parts]
        todo = [n for n, record in enumerate(records) if finished(record) is None]
        progress.begin(label, len(parts), "parts")
        progress.advance(len(parts) - len(todo))
        for n in todo:  # what failed the last time is tried again, not told again
            records[n].unlink(missing_ok=True)
        if todo:
            tasks = min(len(todo), self._config.max_array_tasks)
            shares = [todo[n::tasks] for n in range(tasks)]
            jobs = self._executor(scratch / "array", label).map_array(
                run_parts,
                [function] * tasks,
                [[dict(parts[n]) for n in share] for share in shares],
                [[str(records[n]) for n in share] for share in shares],
            )
            try:
                self._wait(jobs, [records[n] for n in todo], function, progress)
            except BaseException:
                for job in jobs:
                    job.cancel()
                raise
        return [result_of(record, function=function) for record in records]

    def _wait(self, jobs: list[Any], records: list[Path], function: str, progress: Progress) -> None:
        """Until all jobs have ended; raises at the first part or job that failed."""
        open_records = set(records)
        while True:
            ended = all(job.done() for job in jobs)
            for record in sorted(open_records):
                if record.exists():
                    result_of(record, function=function)
                    open_records.remove(record)
                    progress.advance(1)
            if ended:
                break
            time.sleep(self._poll_s)
        for job in jobs:
            error = job.exception()
            if error is not None:
                raise UserError(
                    f"array task {job.job_id}",
                    f"failed ({str(error).strip().splitlines()[-1][:200]})",
                    f"read {job.paths.stderr}, then run the same command again: finished parts are kept",
                )
