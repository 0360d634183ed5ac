"""The demo's claim, run in full: finetuning beats BM25, the teacher and the pretrained-only model beyond their intervals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.files import read_json


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_shows_what_it_claims(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.cli", "demo", "--runs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    run = tmp_path / "demo"
    results = read_json(run / "eval" / "results.json")
    recall = {m["system"]: m["metrics"]["recall@10"] for m in results["means"] if m["subset"] == "all"}
    for other in ("bm25", "teacher", "pretrained", "untrained"):
        assert recall["finetuned"]["low"] > recall[other]["high"], (other, recall)
    assert recall["bm25"]["mean"] < 0.5  # the task does not reward copying words
    for phase in ("pretrain", "finetune"):
        assert read_json(run / phase / "summary.json")["world_size"] >= 2
    summary = read_json(run / "pretrain" / "summary.json")
    assert summary["validation_loss_after"] < 0.6 * summary["validation_loss_before"]
    parity = read_json(run / "export" / "parity.json")
    assert parity["max_abs_difference"] < 1e-5
    assert "finetuned" in done.stdout and "report.html" in done.stdout
