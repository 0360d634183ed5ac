"""Runs of the real product that begin in a fraction of a second: ranks are forked from a process that has imported all.

A rank's start takes about 9 s, nearly all of it imports. A *zygote* imports torch, DeepSpeed, transformers and this
project once, without a thread and without a tensor, and forks the ranks of each run that it is asked for. A forked rank
gets the environment that launch/local.py would give it and calls the real `launch.worker.main`; everything but the
start of the process is the product's. Ranks of a run are a process group, so that `killpg` is a node that goes down.

    with Zygote() as zygote:
        result = zygote.run(job, ranks=2, folder=tmp_path)          # codes, stderr of each rank
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from survival.faults import Place

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[2]
MAX_S = 120.0
ALONE = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore::FutureWarning",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",  # else the memory allocator of pyarrow starts a thread
}  # fmt: skip
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        codes: exit code of each rank, negative for the signal that ended it.
        first: the rank that ended badly first, None where all ended with 0.
        hit: where the ranks that `signals` went to were just then, where that is recorded.
        home: the folder of this start.
        late: ranks that had to be killed, since they went on for longer than launch/ranks.py allows after the first end.
        stderr: of each rank. out: the folder that the ranks were told to write to.
    """

    codes: list[int]
    first: int | None
    late: list[int]
    stderr: list[str]
    wall_s: float
    hit: list[Place]
    out: Path
    home: Path

    @property
    def code(self) -> int:
        """What a launcher goes by: the code of the first rank that ended badly."""
        return 0 if self.first is None else self.codes[self.first]

    def told(self) -> str:
        """Everything that the ranks said, for a test that fails."""
        said = "\n".join(f"-- rank {rank}\n{text[-3000:]}" for rank, text in enumerate(self.stderr))
        said += f"\n-- told: {self.failure()}"
        return f"exit codes {self.codes}, first {self.first}, killed late {self.late}, {self.wall_s:.1f} s\n{said}"

    def failure(self) -> str:
        """What the ranks told the launcher to print: a user's mistake or a divergence; "" where they told nothing."""
        told = [self.out / name for name in ("failure.json", "diverged.json")]
        return " ".join(" ".join(json.loads(path.read_text()).values()) for path in told if path.exists())


class Zygote:
    """Keeps the process that forks ranks; a context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._runs = 0

    def __enter__(self) -> Zygote:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve())],
            env=os.environ | ALONE | {"PYTHONPATH": os.pathsep.join([str(REPO), str(HERE.parent)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()  # the end of its requests: it goes, and what it forked goes with it
            self._process.wait(30)

    def run(
        self,
        job: dict[str, Any],
        *,
        ranks: int,
        folder: Path,
        plan: list[dict[str, Any]] | None = None,
        signals: list[tuple[str, float, int, list[int] | None]] | None = None,
        max_s: float = MAX_S,
    ) -> Result:
        """Run a job in `ranks` processes and wait for them.

        Args:
            job: what the worker reads; its `out` is made here, anew for each run.
            folder: for the files of all runs of a test; also holds `out`, where the job names none.
            plan: planted faults, see faults.py; a `where` of "here" is the folder of this start.
            signals: ("start" or "first step", seconds from then on, signal, ranks or None for all), sent from outside.
        """
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        self._runs += 1
        home = folder / f"run-{self._runs:03d}"
        home.mkdir(parents=True)
        out = Path(job.get("out", home / "out"))
        out.mkdir(parents=True, exist_ok=True)
        for rank in range(ranks):
            (home / f"rank-{rank}.log").touch()  # a rank may be killed before it does
        meeting = {"ranks": ranks, "store": home / "store"}
        (home / "job.json").write_text(json.dumps(as_json({**job, **meeting, "out": out})))
        for fault in plan or []:
            if fault.get("where") == "here":
                fault["where"] = str(home)
        request = {
            "job": str(home / "job.json"), "home": str(home), "ranks": ranks, "plan": plan or [],
            "signals": signals or [], "max_s": max_s,
        }  # fmt: skip
        print(json.dumps(as_json(request)), file=self._process.stdin, flush=True)
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the zygote died (exit code {self._process.wait()})")
        told = json.loads(line)
        stderr = [(home / f"rank-{rank}.log").read_text(errors="replace") for rank in range(ranks)]
        hit = [Place(*place) for place in told.pop("hit")]
        return Result(stderr=stderr, out=out, home=home, hit=hit, **told)


def as_json(value: Any) -> Any:
    """Paths as text, tuples as lists."""
    if isinstance(value, dict):
        return {key: as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


IMPORTED = (
    "numpy", "pandas", "pyarrow.dataset", "pyarrow.parquet", "safetensors.torch", "deepspeed.ops",
    "transformers.integrations.deepspeed", "transformers.models.llama.modeling_llama", "torch.utils.tensorboard",
    "launch.local", "launch.worker", "train.finetune", "train.pretrain", "train.loop", "train.graph_memory",
    "train.zero_state", "train.model_folder", "train.objectives.info_nce", "train.objectives.matryoshka",
)  # fmt: skip


def import_everything() -> None:
    """What a rank would import on its way, so that forks share it; no thread may be running afterwards."""
    import torch

    with mock.patch.object(torch, "compile", lambda *a, **_: a[0] if a else lambda inner: inner):
        # DeepSpeed looks for its optimiser there; its decorators alone take a second (train/engine.py)
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    for name in IMPORTED:
        importlib.import_module(name)
    from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - they are made when asked for
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("llama")  # compiles a thousand expressions
    threads = os.listdir("/proc/self/task")
    if len(threads) != 1:
        raise RuntimeError(f"{len(threads)} threads run before the fork: a fork would lose their work")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


def _rank(request: dict[str, Any], rank: int) -> int:
    """A forked rank, until its exit code. Output goes to its log."""
    home, ranks = Path(request["home"]), request["ranks"]
    log = os.open(home / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    os.environ.update({name: str(value) for name, value in place.items()})
    try:
        from survival.faults import plant

        from launch import worker
        from train.guard import StopRequest

        stop = StopRequest()
        stop.install()
        plant([fault for fault in request["plan"] if fault.get("ranks") is None or rank in fault["ranks"]], rank=rank)
        worker.main(Path(request["job"]), stop)
    except BaseException:
        traceback.print_exc()
    return 1


def _fork(request: dict[str, Any]) -> list[int]:
    from train.guard import STOP_SIGNALS

    pids: list[int] = []
    # as launch/local.py: a request that comes before a rank can note it waits for it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setpgid(0, pids[0] if pids else 0)
                _die_with_parent()
                code = _rank(request, rank)
            finally:
                with suppress(Exception):
                    sys.stderr.flush()
                os._exit(code)
        with suppress(OSError):  # both sides set it, so that neither has to wait for the other
            os.setpgid(pid, pids[0] if pids else pid)
        pids.append(pid)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return pids


def _serve(request: dict[str, Any]) -> dict[str, Any]:
    from launch.ranks import FAILED_LEAVE_S, LEAVE_S

    started = time.monotonic()
    pids = _fork(request)
    codes: dict[int, int] = {}
    first: int | None = None
    late: list[int] = []
    until = started + request["max_s"]
    signals = request["signals"]
    since = {"start": started}
    hit: list[Place] = []
    while len(codes) < len(pids):
        now = time.monotonic()
        if "first step" not in since and Place.read(Path(request["home"]), 0).step:
            since["first step"] = now
        for due in [s for s in signals if s[0] in since and now - since[s[0]] >= s[1]]:
            signals.remove(due)
            _, _, number, whom = due
            for rank in range(len(pids)) if whom is None else whom:
                if rank not in codes:
                    hit.append(Place.read(Path(request["home"]), rank))
                    os.kill(pids[rank], number)
        for rank, pid in enumerate(pids):
            if rank in codes:
                continue
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(status)
                if codes[rank] != 0 and first is None:
                    first = rank
                until = min(until, now + LEAVE_S.get(codes[rank], FAILED_LEAVE_S))
        if now > until and not late:
            late = [rank for rank in range(len(pids)) if rank not in codes]
            for rank in late:
                os.kill(pids[rank], signal.SIGKILL)
        time.sleep(0.002)
    return {
        "codes": [codes[rank] for rank in range(len(pids))], "first": first, "late": late,
        "wall_s": time.monotonic() - started, "hit": [[place.place, place.step, place.saving] for place in hit],
    }  # fmt: skip


def _main() -> None:
    _die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not look like an answer
    import_everything()
    for line in sys.stdin:
        print(json.dumps(_serve(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    _main()
