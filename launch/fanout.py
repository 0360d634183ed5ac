"""Who computes the parts of a data stage: processes on this machine, or array jobs on a cluster.

Both follow `data_prep.fanout.Fanout`: a part's result lies in a file before it counts as done, finished parts are not
computed again, and the parts themselves cannot tell who computes them.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.fanout import Fanout, Part, Result, Serial, finished, record_of, result_of
from data_prep.progress import Progress

_GPUS = Path("/proc/driver/nvidia/gpus")
_REPO = Path(__file__).resolve().parent.parent


class FanoutConfig(Section):
    """`[fanout]`: who computes the parts of data preparation. Never changes the result."""

    kind: Literal["local", "slurm"] = "local"
    """`local`: processes on this machine; `slurm`: array jobs through submitit (extra `slurm`). An array took 3 s more
    than a job's own cores for four empty parts on an idle cluster, and it waits in the queue: it pays off where those
    cores need more than a few minutes."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Parts computed at once; unset: one for each core that this process may use, or 64 array tasks. In a job of the
    cluster, what leaves work for one task only is computed in the job itself."""
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """OpenMP threads of each worker; cores are better used by more workers."""
    partition: str | None = None
    """slurm only: partition of the array jobs; unset: the cluster's default."""
    account: str | None = None
    """slurm only: account that pays."""
    time_min: Annotated[int, Field(ge=1)] = 240
    """slurm only: minutes that an array task may take."""
    memory_gb: Annotated[int, Field(ge=1)] = 8
    """slurm only: host memory of an array task."""
    gpus_per_worker: Annotated[int, Field(ge=0)] = 0
    """slurm only: GPUs of an array task; 1 for embedding with a large teacher."""
    max_array_tasks: Annotated[int, Field(ge=1)] = 1000
    """slurm only: tasks in one array; more parts share tasks. Below the cluster's MaxArraySize (often 1001)."""
    poll_s: Annotated[float, Field(gt=0)] = 10.0
    """slurm only: seconds between two questions to the scheduler; results are seen sooner, in the file system."""


def make_fanout(config: FanoutConfig, *, devices: bool = False) -> Fanout:
    """The fan-out that a recipe asks for.

    Args:
        devices: whether the parts use an accelerator: then this machine computes one part on each GPU it has, and
            each process sees its own alone.
    """
    if config.kind == "slurm":
        from launch.fanout_array import ArrayFanout

        return ArrayFanout(config)
    workers = config.workers or len(os.sched_getaffinity(0))
    gpus = visible_gpus() if devices else []
    return LocalFanout(min(workers, len(gpus)) if gpus else workers, threads=config.threads_per_worker, gpus=gpus)


def visible_gpus() -> list[str]:
    """The NVIDIA GPUs of this machine that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [device.strip() for device in named.split(",") if device.strip() not in ("", "-1")]
    try:
        return [str(number) for number, _ in enumerate(_GPUS.iterdir())]
    except OSError:
        return []


class LocalFanout:
    """Processes on this machine, started when there is work for two and ended after it.

    Args:
        workers: processes at most. threads: OpenMP threads of each.
        gpus: the devices that the processes share out; empty leaves them what this process sees.
    """

    def __init__(self, workers: int, *, threads: int = 1, gpus: Sequence[str] = ()) -> None:
        self.workers, self._threads, self._gpus = workers, threads, list(gpus)

    def map(
        self, function: str, parts: Sequence[Part], *, scratch: Path, label: str, progress: Progress
    ) -> list[Result]:
        """See `Fanout.map`. A worker that dies ends the stage; finished parts are kept."""
        records = [record_of(function, part, scratch=scratch, label=label) for part in parts]
        todo = [n for n, record in enumerate(records) if finished(record) is None]
        if min(len(todo), self.workers) <= 1:  # a process would cost more than it saves
            return Serial().map(function, parts, scratch=scratch, label=label, progress=progress)
        progress.begin(label, len(parts), "parts")
        progress.advance(len(parts) - len(todo))
        lines = [
            json.dumps({"function": function, "part": dict(parts[n]), "record": str(records[n])}, ensure_ascii=False)
            for n in todo
        ]
        pool = [
            _Worker(self._threads, gpu=self._gpus[n % len(self._gpus)] if self._gpus else None)
            for n in range(min(self.workers, len(todo)))
        ]
        try:
            self._work(pool, lines, [records[n] for n in todo], function, label, progress)
        finally:
            for worker in pool:
                worker.end()
        return [result_of(record, function=function) for record in records]

    def _work(
        self,
        pool: list[_Worker],
        lines: list[str],
        records: list[Path],
        function: str,
        label: str,
        progress: Progress,
    ) -> None:
        """Hand out the lines, one to each free worker; stops at the first part that fails."""
        waiting = list(range(len(lines)))
        with selectors.DefaultSelector() as selector:
            for worker in pool:
                selector.register(worker.output, selectors.EVENT_READ, worker)
                worker.ask(lines[waiting[0]], waiting.pop(0))
            while any(worker.busy is not None for worker in pool):
                for key, _ in selector.select():
                    worker = key.data
                    number = worker.busy
                    assert number is not None
                    line = worker.output.readline()
                    if not line:
                        raise worker.died(label, number)
                    if mistake := json.loads(line).get("mistake"):
                        raise UserError(*mistake)
                    result_of(records[number], function=function)
                    progress.advance(1)
                    worker.busy = None
                    if waiting:
                        worker.ask(lines[waiting[0]], waiting.pop(0))
                    else:
                        selector.unregister(worker.output)


class _Worker:
    """One process of launch/part_worker.py; `busy` is the number of the part it computes."""

    def __init__(self, threads: int, *, gpu: str | None = None) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        environment["PYTHONPATH"] = os.pathsep.join([str(_REPO), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "launch.part_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert self._process.stdin and self._process.stdout
        self._input, self.output = self._process.stdin, self._process.stdout
        self.busy: int | None = None

    def ask(self, line: str, number: int) -> None:
        """Hand it a part."""
        self.busy = number
        try:
            self._input.write(line + "\n")
            self._input.flush()
        except BrokenPipeError:
            pass  # it died: the end of its output tells

    def died(self, label: str, number: int) -> UserError:
        """How it ended, in words for the user."""
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        hint = " (often: no memory left)" if code == -signal.SIGKILL else ""
        return UserError(
            f"{label}, part {number + 1}",
            f"its process {how}{hint}",
            "lower fanout.workers or free memory, then run the same command again: finished parts are kept",
        )

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill() if self.busy is not None else self._input.close()
        self._process.wait()
        self.output.close()
