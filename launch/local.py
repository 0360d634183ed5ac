"""Starting the ranks of a training phase on this machine, watching them, and ending them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from launch.worker import FAILURE

if TYPE_CHECKING:
    from data_prep.progress import Progress
    from launch.recipe import LaunchConfig

ROOT = Path(__file__).resolve().parent.parent
POLL_S = 0.2
GRACE_S = 10.0


class RankFailure(Exception):
    """A rank ended by a signal or an exception; the message holds the end of its log and where the rest is."""


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
                "use another, or 0 to take a free one",
            ) from error


def command(job: Path, *, launch: LaunchConfig, logs: Path) -> list[str]:
    """The command line that starts all ranks under torch.distributed.run."""
    meet = ["--standalone"]
    if launch.port:
        meet = ["--rdzv-backend", "static", "--master-addr", "127.0.0.1", "--master-port", str(launch.port)]
    options = ["--nproc-per-node", str(launch.nproc), "--log-dir", str(logs), "--redirects", "3"]
    return [sys.executable, "-m", "launch.agent", *meet, *options, "-m", "launch.worker", str(job)]


def environment(launch: LaunchConfig) -> dict[str, str]:
    """The ranks' environment: this one, with threads pinned and this checkout importable."""
    path = os.pathsep.join(p for p in (str(ROOT), os.environ.get("PYTHONPATH", "")) if p)
    return os.environ | {
        "OMP_NUM_THREADS": str(launch.threads_per_process),
        # every rank tokenises the global batch in the background, with as many threads as it may use
        "TOKENIZERS_PARALLELISM": "true" if launch.threads_per_process > 1 else "false",
        "RAYON_NUM_THREADS": str(launch.threads_per_process),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONPATH": path,
    }


class _Tail:
    """Complete new lines of a growing file."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset = path, 0

    def lines(self) -> Iterator[str]:
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        yield from whole.decode().splitlines()


def _relay(out: Path, metrics: _Tail, progress: Progress, told: dict[str, Any]) -> None:
    """Move what the ranks wrote since the last look into the progress display."""
    try:
        status = json.loads((out / "status.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        status = {}
    records = [json.loads(line) for line in metrics.lines()]
    if status and status != told.get("status"):
        told["status"] = status
        # a status is written before its records, so others that were read with it belong to the bar before
        own = {"training": "loss", "validating": "validation_loss"}.get(status["what"])
        _advance(progress, [r for r in records if own not in r])
        progress.begin(status["what"], status["total"], "steps")
        records = [r for r in records if own in r]
    _advance(progress, records)


def _advance(progress: Progress, records: list[dict[str, Any]]) -> None:
    for record in records:
        if "loss" in record:
            progress.advance(1, **shown(record))
        elif "validation_loss" in record:
            progress.advance(0, validation_loss=record["validation_loss"])


def shown(record: dict[str, Any]) -> dict[str, float | str]:
    """What the progress line shows of a training step: the use of the device's peak only where it is known."""
    values: dict[str, float | str] = {"loss": record["loss"], "tokens_per_s": record["tokens_per_s"]}
    if "trunk_mfu" in record:
        values["trunk_mfu"] = f"{record['trunk_mfu']:.1%}"
    return values


def _log_end(logs: Path, lines: int = 12) -> str:
    """The last lines of the rank log that ends in an exception, else of the longest."""
    texts = [(p, p.read_text(errors="replace").strip()) for p in sorted(logs.rglob("stderr.log"))]
    texts = [(p, t) for p, t in texts if t]
    if not texts:
        return "the ranks left no message (killed by the system? check memory with `dmesg`)"
    path, text = max(texts, key=lambda pt: ("Traceback" in pt[1], len(pt[1])))
    return f"{path}:\n" + "\n".join(text.splitlines()[-lines:])


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the agent and its ranks: politely, then by force."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run_ranks(
    job: dict[str, Any], *, out: Path, logs: Path, launch: LaunchConfig, progress: Progress
) -> dict[str, Any]:
    """Run one training phase in `launch.nproc` processes and wait for it.

    Args:
        job: what `launch.worker` reads. out: the stage's folder. logs: where each rank's output goes.

    Returns:
        The phase's summary.json.

    Raises:
        UserError: a mistake found by a rank, or a taken port. RankFailure: a rank died.
    """
    check_port(launch.port)
    logs.mkdir(parents=True, exist_ok=True)
    job_file = logs / "job.json"
    write_json(job_file, job)
    process = subprocess.Popen(
        command(job_file, launch=launch, logs=logs),
        env=environment(launch),
        stdin=subprocess.DEVNULL,
        stdout=(logs / "agent.log").open("wb"),
        stderr=subprocess.STDOUT,
        start_new_session=True,  # ^C reaches only the launcher, which ends the ranks in order
    )
    metrics, told = _Tail(out / "metrics.jsonl"), dict[str, Any]()
    try:
        while process.poll() is None:
            _relay(out, metrics, progress, told)
            time.sleep(POLL_S)
        _relay(out, metrics, progress, told)
    finally:
        _end(process)
    if (out / FAILURE).exists():
        raise UserError(**read_json(out / FAILURE))
    if process.returncode != 0:
        raise RankFailure(
            f"{job['phase']} failed in a rank (exit code {process.returncode}). "
            f"End of {_log_end(logs)}\nAll logs: {logs}"
        )
    summary: dict[str, Any] = read_json(out / "summary.json")
    progress.add_work("train", summary["train_s"])
    return summary
