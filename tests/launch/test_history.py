"""What becomes of a phase's history: gone on with, kept aside, or replaced when its result stands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finished_run import copied, without

from data_prep.files import read_json
from launch.history import folder_of, is_finished, prepare

RECIPE = Path(__file__).with_name("tiny.toml")
STEPS = 100
LONGER = ["--set", f"finetune.max_steps={STEPS}", "--set", "finetune.epochs=100", "--set", "checkpoint.every_steps=10"]


def make_history(run: Path, name: str) -> Path:
    folder = folder_of(run, "finetune")
    folder.mkdir(parents=True)
    (folder / "identity.json").write_text(json.dumps({"history": name}))
    return folder


def finish(run: Path, name: str) -> None:
    (run / "finetune").mkdir(exist_ok=True)
    (run / "finetune" / "summary.json").write_text(json.dumps({"history": name}))


def test_a_phase_without_a_history_begins_one(tmp_path: Path) -> None:
    assert prepare(tmp_path, "finetune", fresh=False) == (tmp_path / "history" / "finetune", None)
    assert not is_finished(tmp_path, "finetune")


def test_an_unfinished_history_stays_where_it_is(tmp_path: Path) -> None:
    folder = make_history(tmp_path, "a")
    finish(tmp_path, "of an earlier training, whose result is still there")
    assert prepare(tmp_path, "finetune", fresh=False) == (folder, None)
    assert (folder / "identity.json").exists()


def test_a_fresh_start_keeps_every_unfinished_history(tmp_path: Path) -> None:
    for number in (1, 2):
        make_history(tmp_path, f"name {number}")
        folder, line = prepare(tmp_path, "finetune", fresh=True)
        assert not folder.exists()
        assert line is not None and f"finetune.kept-{number}" in line
    kept = [read_json(tmp_path / "history" / f"finetune.kept-{n}" / "identity.json")["history"] for n in (1, 2)]
    assert kept == ["name 1", "name 2"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_finished_history_makes_place(tmp_path: Path, fresh: bool) -> None:
    folder = make_history(tmp_path, "a")
    finish(tmp_path, "a")
    assert is_finished(tmp_path, "finetune")
    assert prepare(tmp_path, "finetune", fresh=fresh) == (folder, None)
    assert os.listdir(tmp_path / "history") == []


def rumpun(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *words], cwd=folder, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_a_user_changes_only_the_resources(tiny_run: Path, tmp_path: Path) -> None:
    """Stopped by a signal on 2 processes under ZeRO 1; goes on with the same command on 3 under ZeRO 3."""
    without(copied(tiny_run, tmp_path / "runs"), "finetune")
    command = ["finetune", str(RECIPE), *LONGER]
    history = tmp_path / "runs" / "tiny" / "history" / "finetune"
    process = subprocess.Popen(
        [sys.executable, "-m", "launch.cli", *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    metrics = history / "metrics.jsonl"
    while process.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b'"loss"') < 15):
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    stopped = int((history / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert 15 <= stopped < STEPS

    refused = rumpun(tmp_path, *command, "--set", "finetune.learning_rate=0.5", "--set", "finetune.zero_stage=3")
    assert refused.returncode == 2
    assert "finetune.learning_rate 0.001 -> 0.5" in refused.stderr
    assert "harmless: finetune.zero_stage 1 -> 3" in refused.stderr

    resumed = rumpun(tmp_path, *command, "--nproc", "3", "--set", "finetune.zero_stage=3")
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on after step {stopped} (start 2, 3 processes, ZeRO 3)" in resumed.stdout
    assert f"training: {STEPS - stopped} steps" in resumed.stdout
    assert read_json(tmp_path / "runs" / "tiny" / "finetune" / "summary.json")["restarts"] == 1

    proof = rumpun(tmp_path, "ledger", "verify", "runs/tiny")
    assert proof.returncode == 0, proof.stdout
    said = " ".join(proof.stdout.split())
    assert (
        f"{STEPS} steps in 2 starts: 2 processes on 1 node (ZeRO 1, batch 16); after step {stopped} on 3 processes"
        in said
    )
    assert "Proven: every sample was used exactly once" in said

    same = rumpun(tmp_path, *command, "--set", "finetune.zero_stage=2", "--nproc", "1")
    assert "nothing to do" in same.stdout, "what changes no number rebuilds nothing"


@pytest.mark.slow
def test_a_fresh_start_is_one_word(tiny_run: Path, tmp_path: Path) -> None:
    without(copied(tiny_run, tmp_path / "runs"), "pretrain")
    command = ["pretrain", str(RECIPE), "--nproc", "1"]
    stopped = rumpun(tmp_path, *command, "--set", "launch.stop_after_s=1")
    assert stopped.returncode == 75, stopped.stderr
    assert "time limit" in stopped.stderr
    changed = rumpun(tmp_path, *command, "--set", "pretrain.learning_rate=2e-3")
    assert changed.returncode == 2
    assert "--fresh" in changed.stderr
    fresh = rumpun(tmp_path, *command, "--set", "pretrain.learning_rate=2e-3", "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert "history is kept in runs/tiny/history/pretrain.kept-1" in fresh.stdout
    assert read_json(tmp_path / "runs" / "tiny" / "pretrain" / "summary.json")["restarts"] == 0
