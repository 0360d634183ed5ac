"""Trainers that take turns, so that their times can be compared on a machine that others use too.

Every trainer has a process of its own with the same number of threads. The parent lets one of them train a block of
steps while the others wait in a read, then the next, in an order that rotates; a ratio is formed inside each round, so
that what slows the machine for a minute slows both of its sides. Wall time is what a user waits for; CPU time of the
process hardly moves when the cores are shared, and stands beside it.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

Job = dict[str, Any]
OURS = ("rumpun", "pretraining")
SETTINGS = {
    "loss": "",
    "attention": "",
    "mini_batch_size": "mini_batch_size",
    "mini_batch_num_tokens": "mini_batch_num_tokens",
    "sub_batch_size": "sub_batch_size",
}
"""What tells settings of a peer apart, and what it is called in the results."""


@dataclass(frozen=True)
class Block:
    """What one trainer did in one turn: wall and CPU seconds, the loss of each step, and what else it told."""

    wall_s: float
    cpu_s: float
    losses: list[float]
    told: dict[str, Any] = field(default_factory=dict)

    def seconds(self, clock: str) -> float:
        """Seconds by `wall` or `cpu`."""
        return self.wall_s if clock == "wall" else self.cpu_s


class Gate:
    """The end inside the trainer's process: each step asks to pass, and waits where its turn is over.

    Attributes:
        synchronise: waits for the device, so that a turn ends when its work is done.
        tell: makes the facts that go with every turn. save: writes the model to a folder.
    """

    def __init__(self) -> None:
        # libraries print; the parent reads only what is meant for it
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.synchronise: Callable[[], None] = lambda: None
        self.tell: Callable[[], dict[str, Any]] = dict
        self.save: Callable[[str], None] | None = None
        self._left, self._losses = 0, []
        self._wall = self._cpu = 0.0
        self._answer: dict[str, Any] = {"ready": True}

    def saw(self, loss: Any) -> None:
        """Keep the loss of a step: a number, or a tensor that is read when the turn is over."""
        self._losses.append(loss)

    def next_step(self) -> None:
        """Pass into the next step, or report the turn and do as the parent says; never returns after the last."""
        if self._left == 0:
            if self._losses:
                self._end_turn()
            self._left = self._orders()
            self._losses = []
            self._wall, self._cpu = time.perf_counter(), time.process_time()
        self._left -= 1

    def _end_turn(self) -> None:
        self.synchronise()
        wall_s, cpu_s = time.perf_counter() - self._wall, time.process_time() - self._cpu
        losses = [float(value) for value in self._losses]
        self._answer = {"wall_s": wall_s, "cpu_s": cpu_s, "losses": losses, "told": self.tell()}

    def _orders(self) -> int:
        """Answer, and read until the parent gives a number of steps."""
        while True:
            self._out.write(json.dumps(self._answer) + "\n")
            order, _, value = sys.stdin.readline().strip().partition(" ")
            if order == "train":
                return int(value)
            if order != "save" or self.save is None:
                self.leave()
            self.save(value)
            self._answer = {"saved": value}

    def fail(self, reason: str) -> NoReturn:
        """Tell the parent why this trainer cannot go on, and end the process."""
        self._out.write(json.dumps({"failed": reason}) + "\n")
        self.leave(1)

    def leave(self, code: int = 0) -> NoReturn:
        """End the process without unwinding trainers that believe they have steps left."""
        self._out.flush()
        sys.stderr.flush()
        os._exit(code)


class TrainerFailed(RuntimeError):
    """A trainer's process ended or said that it cannot train; the text says why."""


class Trainee:
    """The parent's end of a trainer.

    Args:
        script: the Python file that runs it; gets the path of a JSON file with `job` as its only argument.
        python: the interpreter that has the trainer installed.
        threads: of OpenMP and MKL, equal for all.
        folder: where its job and log are kept.
    """

    def __init__(
        self, name: str, job: Mapping[str, Any], *, script: Path, python: str, threads: int, folder: Path
    ) -> None:
        self.name, self._log = name, folder / f"{name}.log"
        path = folder / f"{name}.json"
        path.write_text(json.dumps(dict(job)))
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [python, str(script), str(path)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment,
            )  # fmt: skip
        self._read()

    def _read(self) -> dict[str, Any]:
        output: IO[str] = self._process.stdout  # type: ignore[assignment]
        line = output.readline()
        if not line:
            self._process.wait()
            tail = self._log.read_text(errors="replace").strip().splitlines()[-15:]
            raise TrainerFailed(f"{self.name} ended with code {self._process.returncode}:\n" + "\n".join(tail))
        message: dict[str, Any] = json.loads(line)
        if "failed" in message:
            self.close()
            raise TrainerFailed(str(message["failed"]))
        return message

    def _tell(self, order: str) -> dict[str, Any]:
        entry: IO[str] = self._process.stdin  # type: ignore[assignment]
        entry.write(order + "\n")
        entry.flush()
        return self._read()

    def train(self, steps: int) -> Block:
        """Let it train so many steps, and wait for them."""
        return Block(**self._tell(f"train {steps}"))

    def save(self, folder: Path) -> None:
        """Let it write its model to a folder."""
        self._tell(f"save {folder}")

    def close(self) -> None:
        """End the process."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True)
class Arena:
    """What the trainers of one comparison share.

    Attributes:
        folder: for jobs and logs. script: runs a trainer. job: what every job holds; a trainer's own job overrides it.
        python: the interpreter of the peers; ours run under this one. threads: of each process.
    """

    folder: Path
    script: Path
    job: Job
    python: str
    threads: int

    def start(self, job: Job, *, name: str) -> Trainee:
        """A trainer in its own process. Raises `TrainerFailed` where it cannot start."""
        whole = {**self.job, **job, "finetune": {**self.job["finetune"], **job.get("finetune", {})}}
        place = self.folder / "jobs" / f"{len(list(self.folder.glob('jobs/*'))):02d}-{job['side']}"
        place.mkdir(parents=True)
        python = sys.executable if job["side"] in OURS else self.python
        return Trainee(name, whole, script=self.script, python=python, threads=self.threads, folder=place)

    def trials(self, candidates: Sequence[Job], *, steps: int, clock: str) -> list[Trial]:
        """Each setting alone for a few steps, after one to warm up."""
        found = []
        for job in candidates:
            try:
                trainee = self.start(job, name="trial")
                trainee.train(1)
                trial = Trial(job, trainee.train(steps).seconds(clock) / steps)
                trainee.close()
            except TrainerFailed as failure:
                trial = Trial(job, math.inf, str(failure).splitlines()[0])
            print(f"  {job['side']}: {label(job)}: {trial}", flush=True)
            found.append(trial)
        return found


@dataclass(frozen=True)
class Trial:
    """A setting and its seconds a step, or why it failed (then it took for ever)."""

    job: Job
    seconds: float
    failed: str = ""

    def __str__(self) -> str:
        return f"failed: {self.failed}" if self.failed else f"{self.seconds:.2f}"


def best(trials: Sequence[Trial], *, as_shipped: bool = False) -> Job | None:
    """The fastest setting; `as_shipped` leaves out those in which we lay the rows. None where all failed."""
    usable = [t for t in trials if not t.failed and not (as_shipped and t.job.get("sorted"))]
    return min(usable, key=lambda t: t.seconds).job if usable else None


def label(job: Job) -> str:
    """The setting of a peer in a few words."""
    words = [f"{name} {job[key]}".strip() for key, name in SETTINGS.items() if key in job]
    words += ["rows laid by length by us"] if job.get("sorted") else []
    return ", ".join(words) or "as shipped"


def take_turns(trainees: Sequence[Trainee], *, warm: int, steps: int, rounds: int) -> dict[str, list[Block]]:
    """Every trainer's blocks: one of `warm` steps that does not count for time, then `rounds` of `steps`."""
    blocks = {trainee.name: [trainee.train(warm)] for trainee in trainees}
    for number in range(rounds):
        first = number % len(trainees)
        for trainee in [*trainees[first:], *trainees[:first]]:
            blocks[trainee.name].append(trainee.train(steps))
    return blocks


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one number."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f}–{self.high:.2f})"


def ratio(slower: Sequence[Block], faster: Sequence[Block], *, clock: str) -> Spread:
    """How many times longer `slower` took, round by round; the warm-up blocks are left out."""
    pairs = zip(slower[1:], faster[1:], strict=True)
    return Spread.of([a.seconds(clock) / b.seconds(clock) for a, b in pairs])


def rate(blocks: Sequence[Block], per_block: float, *, clock: str) -> Spread:
    """Units per second, where a block does `per_block` of them; the warm-up block is left out."""
    return Spread.of([per_block / block.seconds(clock) for block in blocks[1:]])


def losses(blocks: Sequence[Block]) -> list[float]:
    """The losses of all steps from the first on."""
    return [value for block in blocks for value in block.losses]


def largest_difference(one: Sequence[float], other: Sequence[float], *, steps: int) -> float:
    """The largest relative difference of the first `steps` losses. Raises `ValueError` where one side has fewer."""
    if min(len(one), len(other)) < steps:
        raise ValueError(f"{len(one)} and {len(other)} losses, but {steps} are to be compared")
    return max(abs(a - b) / abs(b) for a, b in zip(one[:steps], other[:steps], strict=True))


def as_json(blocks: Mapping[str, Sequence[Block]]) -> dict[str, list[dict[str, Any]]]:
    """All blocks as plain data."""
    return {name: [asdict(block) for block in given] for name, given in blocks.items()}
