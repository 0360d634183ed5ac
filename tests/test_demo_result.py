"""The demo's claim, run in full: finetuning beats BM25, the teacher and the pretrained-only model beyond their intervals."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.files import read_json


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_demo_shows_what_it_claims(demo_run: Path) -> None:
    results = read_json(demo_run / "eval" / "results.json")
    recall = {m["system"]: m["metrics"]["recall@10"] for m in results["means"] if m["subset"] == "all"}
    for other in ("bm25", "teacher", "pretrained", "untrained"):
        assert recall["finetuned"]["low"] > recall[other]["high"], (other, recall)
    assert recall["bm25"]["mean"] < 0.5  # the task does not reward copying words
    for phase in ("pretrain", "finetune"):
        assert read_json(demo_run / phase / "summary.json")["world_size"] >= 2
    summary = read_json(demo_run / "pretrain" / "summary.json")
    assert summary["validation_loss_after"] < 0.6 * summary["validation_loss_before"]
    parity = read_json(demo_run / "export" / "parity.json")
    assert parity["max_abs_difference"] < 1e-5
    said = (demo_run.parent / "stdout.txt").read_text()
    assert "finetuned" in said and "report.html" in said
