"""The checkpoint benchmark's quick form, from start to end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_cost_of_checkpoints_is_measured_with_both_sides(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "cost.md"
    answer = subprocess.run(
        [sys.executable, "benchmarks/checkpoint_cost.py", "--quick", "--out", str(out), "--folder", str(tmp_path)],
        cwd=repo, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert out.read_text() in answer.stdout
    found = json.loads(out.with_suffix(".json").read_text())
    assert [setup["ranks"] for setup in found] == [1, 2]
    for setup in found:
        assert 12 <= setup["bytes"] / setup["parameters"] < 12.1
        for side in ("background", "waiting"):
            assert len(setup[side]["held_up_s"]) == 3 and min(setup[side]["safe_s"]) > 0
    assert {path.name for path in tmp_path.iterdir()} == {"cost.md", "cost.json"}
