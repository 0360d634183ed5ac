"""The benchmark of the corpus stage runs, on text that it generates."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_rule_is_measured(repo: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/corpus_stage.py", "--quick", "--data", str(tmp_path / "none")]
    done = subprocess.run(command, cwd=repo, capture_output=True, text=True, timeout=580, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    measured = re.findall(
        r"^\| (repair|personal data|quality|evaluation gate|whole first pass) \| ([\d.]+)", done.stdout, re.M
    )
    assert len(measured) == 5 and all(float(speed) > 0 for _, speed in measured)
    assert "Generated text" in done.stdout
