"""The soak of benchmarks/ in its quick form: ten kills at random moments. `make soak` takes a hundred."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(repo: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.md"
    done = subprocess.run(
        [sys.executable, str(repo / "benchmarks" / "soak.py"), "--quick", "--seed", "3", "--out", str(out)],
        cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    page = out.read_text()
    assert "**the same bits**" in page and "the same samples" in page
    assert page.count("Proven: every sample was used exactly once") == 2
    # a start that ends before its signal is not counted
    assert int(re.search(r"killed (\d+) times", page)[1]) >= 7
