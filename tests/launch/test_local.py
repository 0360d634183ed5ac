"""Starting ranks: what is asked of torch.distributed.run, and what a failure says."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from data_prep.progress import Progress
from launch.local import RankFailure, _relay, _Tail, check_port, command, environment, run_ranks, shown
from launch.recipe import LaunchConfig


def test_a_taken_port_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(UserError, match=rf"launch\.port = {port}: is taken.*Fix: use another, or 0"):
            check_port(port)
    check_port(0)


def test_command_and_environment() -> None:
    words = command(Path("/x/job.json"), launch=LaunchConfig(nproc=3), logs=Path("/x/logs"))
    assert words[:4] == [sys.executable, "-m", "launch.agent", "--standalone"]
    assert words[words.index("--nproc-per-node") + 1] == "3"
    fixed = command(Path("j"), launch=LaunchConfig(port=29511), logs=Path("l"))
    assert "--standalone" not in fixed and fixed[fixed.index("--master-port") + 1] == "29511"
    assert environment(LaunchConfig(threads_per_process=4))["OMP_NUM_THREADS"] == "4"


def test_the_line_of_a_step_claims_no_mfu_that_is_not_known() -> None:
    record = {"step": 3, "loss": 0.5, "tokens_per_s": 1200.0, "lr": 1e-3}
    assert shown(record) == {"loss": 0.5, "tokens_per_s": 1200.0}
    assert shown({**record, "trunk_mfu": 0.4127})["trunk_mfu"] == "41.3%"


def test_records_go_to_the_bar_of_their_status(tmp_path: Path) -> None:
    class Bars(Progress):
        seen: list[tuple[str, dict]] = []  # noqa: RUF012

        def begin(self, label: str, total: int | None = None, unit: str = "rows") -> None:
            self.seen.append((label, {}))

        def advance(self, n: int = 1, **shown: float | str) -> None:
            label, held = self.seen[-1]
            self.seen[-1] = (label, held | {"n": held.get("n", 0) + n} | shown)

    def tell(what: str, *records: dict) -> None:
        (tmp_path / "status.json").write_text(json.dumps({"what": what, "total": 2}))
        with (tmp_path / "metrics.jsonl").open("a") as stream:
            stream.writelines(json.dumps(r) + "\n" for r in records)
        _relay(tmp_path, tail, bars, told)

    bars, tail, told = Bars(), _Tail(tmp_path / "metrics.jsonl"), dict[str, Any]()
    steps = [{"loss": loss, "tokens_per_s": 9.0} for loss in (3.0, 2.0)]
    tell("validating")
    tell("training", {"validation_loss": 5.0}, steps[0])  # the launcher looked late, twice
    tell("validating", steps[1])
    tell("saving", {"validation_loss": 4.0})
    assert bars.seen == [
        ("validating", {"n": 0, "validation_loss": 5.0}),
        ("training", {"n": 2, "loss": 2.0, "tokens_per_s": 9.0}),
        ("validating", {"n": 0, "validation_loss": 4.0}),
        ("saving", {}),
    ]


def job(tmp_path: Path, **more: object) -> dict:
    config = {"batch_rows": 4, "precision": "fp32"}
    return {
        "phase": "pretrain",
        "out": str(tmp_path),
        "seed": 0,
        "config": config,
        "tokens": str(tmp_path / "none"),
        "model": str(tmp_path),
        **more,
    }


@pytest.mark.slow
def test_a_mistake_found_by_a_rank_arrives_as_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a shard folder"):
        run_ranks(
            job(tmp_path), out=tmp_path, logs=tmp_path / "logs", launch=LaunchConfig(nproc=2), progress=Progress()
        )


@pytest.mark.slow
def test_a_dead_rank_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with pytest.raises(RankFailure, match="pretrain failed in a rank") as caught:
        run_ranks(
            job(tmp_path, seed="not a number", config={"nonsense": 1}),
            out=tmp_path,
            logs=tmp_path / "logs",
            launch=LaunchConfig(nproc=1),
            progress=Progress(),
        )
    assert "ValidationError" in str(caught.value) and "logs" in str(caught.value)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_rank_outlives_a_killed_launcher(tmp_path: Path) -> None:
    """kill -9 of the process that started the agent ends the agent and every rank."""
    sleeper = tmp_path / "sleeper.py"
    sleeper.write_text(
        "import os, sys, time\nfrom launch.agent import die_with_parent\ndie_with_parent()\n"
        "open(sys.argv[1] + '/' + os.environ['RANK'], 'w').write(str(os.getpid()))\ntime.sleep(120)\n"
    )
    starter = (
        "import subprocess, sys\n"
        "p = subprocess.Popen([sys.executable, '-m', 'launch.agent', '--standalone', '--nproc-per-node', '2', *sys.argv[1:]], start_new_session=True)\n"
        "p.wait()\n"
    )
    launcher = subprocess.Popen(
        [sys.executable, "-c", starter, str(sleeper), str(tmp_path)], env=environment(LaunchConfig())
    )
    deadline = time.monotonic() + 60
    while not all((tmp_path / r).exists() and (tmp_path / r).read_text() for r in "01"):
        assert time.monotonic() < deadline, "the ranks never started"
        time.sleep(0.2)
    ranks = [int((tmp_path / r).read_text()) for r in "01"]
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()

    def alive(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
        except FileNotFoundError:
            return False

    deadline = time.monotonic() + 30
    while any(alive(r) for r in ranks):
        assert time.monotonic() < deadline, f"ranks {[r for r in ranks if alive(r)]} outlived their launcher"
        time.sleep(0.2)
    assert os.getpid() not in ranks
