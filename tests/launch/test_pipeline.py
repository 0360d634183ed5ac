"""The whole graph through the command line: real stages, real DeepSpeed ranks, real kills."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished_run import copied, without

from data_prep.files import read_json
from launch.pipeline import STAGES

RECIPE = Path(__file__).with_name("tiny.toml")
pytestmark = pytest.mark.slow


def start(runs: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "run", str(RECIPE), "--runs", str(runs), *more],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # a shell without job control starts background commands with ^C ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def rumpun(runs: Path, *more: str) -> tuple[int, str, str]:
    process = start(runs, *more)
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def built(output: str) -> list[str]:
    """Stages that a run built, from what it printed."""
    return [name for name in STAGES if f"[{name}] done" in output]


@pytest.fixture
def finished(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of an uninterrupted run; its folder `runs`."""
    return copied(tiny_run, tmp_path / "finished")


@pytest.fixture
def prepared(finished: Path) -> Path:
    """A run that was ended before its first training; its folder `runs`."""
    return without(finished, "pretrain")


def test_everything_is_there_and_numbers_come_from_the_run(tiny_run: Path) -> None:
    run = tiny_run
    out = (run.parent / "stdout.txt").read_text()
    assert built(out) == [s for s in STAGES if s not in ("held_out", "pairs")]
    results = read_json(run / "eval" / "results.json")
    assert [s["name"] for s in results["systems"]] == ["bm25", "teacher", "untrained", "pretrained", "finetuned"]
    assert read_json(run / "export" / "parity.json")["max_abs_difference"] < 1e-5
    encoding = read_json(run / "eval" / "encoding.json")
    assert set(encoding) == {"untrained", "pretrained", "finetuned"}
    assert all(e["tokens_per_s"] > 0 and e["padding"] == 0 for e in encoding.values())
    for phase in ("pretrain", "finetune"):
        summary = read_json(run / phase / "summary.json")
        assert (summary["world_size"], summary["zero_stage"], summary["steps"]) == (2, 1, 6)
        assert list((run / phase / "tensorboard").iterdir())
    summary = read_json(run / "pretrain" / "summary.json")
    assert summary["validation_loss_after"] < summary["validation_loss_before"]
    # what the pretrained folder holds beyond the base model: the untied head, width x vocabulary
    shape = read_json(run / "pretrain" / "model" / "config.json")
    summary = read_json(run / "finetune" / "summary.json")
    assert summary["head_parameters_left_out"] == shape["hidden_size"] * shape["vocab_size"]
    assert summary["layout"] == "packed" and summary["padding"] == 0
    page = (run / "report" / "report.html").read_text()
    assert "<script" not in page and "src=" not in page and 'href="http' not in page
    recall = next(m for m in results["means"] if m["system"] == "finetuned" and m["subset"] == "all")["metrics"][
        "recall@10"
    ]
    assert f"{recall['mean']:.3f}" in page


def test_a_second_run_is_a_quick_no_op_that_says_so(finished: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code, out, _ = rumpun(finished)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert code == 0 and built(out) == []
    assert "nothing to do: all 16 stages are up to date" in out
    assert "finetuned" in out  # the table is shown all the same
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5.0


def test_another_number_of_processes_rebuilds_nothing(finished: Path) -> None:
    assert "nothing to do" in rumpun(finished, "--nproc", "1")[1]


def test_a_changed_value_rebuilds_exactly_what_depends_on_it(finished: Path) -> None:
    code, out, err = rumpun(finished, "--set", "finetune.temperature=0.07")
    assert code == 0, err
    assert built(out) == ["finetune", "eval", "export", "report"]
    assert "[finetune] rebuilding: finetune.temperature 0.05 -> 0.07" in out
    # and back again: evaluation alone does not retrain
    code, out, err = rumpun(finished, "--set", "finetune.temperature=0.07", "--set", "eval.bm25=false")
    assert code == 0 and built(out) == ["eval", "report"], err


def test_only_and_from(finished: Path, tmp_path: Path) -> None:
    code, out, _ = rumpun(finished, "--only", "mine")
    assert code == 0 and "nothing to do" in out
    code, out, _ = rumpun(finished, "--only", "mine", "--force")
    assert code == 0 and built(out) == ["mine"]
    code, _, err = rumpun(tmp_path, "--only", "mine")
    assert code == 2 and "stage mine: needs corpus, which is not built yet" in err
    code, _, err = rumpun(finished, "--only", "mien")
    assert code == 2 and "did you mean 'mine'" in err
    code, _, err = rumpun(finished, "--only", "pairs")
    assert code == 2 and "switched off" in err


def wait_for(condition, process: subprocess.Popen[str], *, limit_s: float = 240) -> bool:
    """True as soon as the condition holds; False if the process ends first."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if condition():
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.002)
    raise AssertionError("neither happened in time")


def test_kill_minus_nine_in_every_stage_ends_in_the_same_table(tiny_run: Path, tmp_path: Path) -> None:
    runs, killed = tmp_path / "killed", []
    for name in [s for s in STAGES if s not in ("held_out", "pairs")]:
        process = start(runs)
        if wait_for(lambda stage=name: (runs / "tiny" / ".building" / stage).exists(), process):
            time.sleep(0.05 if name not in ("pretrain", "finetune") else 6)  # ranks take seconds to reach a step
            process.kill()
            killed.append(name)
        process.communicate()
    assert {"corpus", "mine", "pretrain", "finetune", "eval"} <= set(killed)
    code, _, err = rumpun(runs)
    assert code == 0, err
    assert read_json(runs / "tiny" / "eval" / "results.json") == read_json(tiny_run / "eval" / "results.json")
    assert not (runs / "tiny" / ".building").exists()


def ranks_of(run: Path) -> list[int]:
    """Processes whose command line names this run's job files."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(run.resolve()) in line and "launch.worker" in line:
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGUSR1])
def test_a_request_to_stop_saves_and_leaves_nothing_half_written(prepared: Path, sent: signal.Signals) -> None:
    """Sent while the ranks are still starting: they end between two parts of the start-up, or save their first step."""
    process = start(prepared)
    assert wait_for(lambda: bool(ranks_of(prepared / "tiny")), process)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    step = re.search(r"after step ([01]); the same command goes on", err)
    assert step and "Traceback" not in err, err
    assert ranks_of(prepared / "tiny") == []
    assert not (prepared / "tiny" / "pretrain").exists()
    assert not list((prepared / "tiny").glob(".building/*"))
    assert (prepared / "tiny" / "truncate" / "stage.json").exists()
    latest = prepared / "tiny" / "history" / "pretrain" / "checkpoints" / "latest"
    assert (latest.read_text() if latest.exists() else "") == ("step-00000001\n" if step[1] == "1" else "")


def test_a_second_interrupt_ends_everything_at_once(prepared: Path) -> None:
    process = start(prepared)
    assert wait_for(lambda: bool(ranks_of(prepared / "tiny")), process)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "the same command goes on" in err and "Traceback" not in err
    assert ranks_of(prepared / "tiny") == []
    assert not list((prepared / "tiny").glob(".building/*"))


def test_a_second_run_on_the_folder_is_told_who_holds_it(tmp_path: Path) -> None:
    first = start(tmp_path)
    try:
        assert wait_for(lambda: (tmp_path / "tiny" / ".building").exists(), first)
        code, _, err = rumpun(tmp_path)
        assert code == 2 and f"process {first.pid}" in err.replace("pid ", "process ") and "in use" in err
    finally:
        first.kill()
        first.communicate()


def test_a_taken_port_stops_before_training(finished: Path) -> None:
    import socket

    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        code, _, err = rumpun(finished, "--set", f"launch.port={port}", "--from", "pretrain")
    assert code == 2 and f"launch.port = {port}: is taken" in err
    assert (finished / "tiny" / "finetune" / "stage.json").exists()
    assert os.listdir(finished / "tiny" / "pretrain" / "model")
