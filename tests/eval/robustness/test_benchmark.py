"""The benchmark's quick form, and what it says where there is nothing to measure."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[3]


def _run(*arguments: str) -> str:
    command = [sys.executable, str(REPO / "benchmarks" / "robustness.py"), *arguments]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_quick_form_measures_every_kind_and_writes_nothing() -> None:
    results = sorted((p.name, p.stat().st_mtime_ns) for p in (REPO / "benchmarks" / "results").iterdir())
    page = _run("--quick")
    counts = re.search(r"so (\d+) damaged queries for each system = (\d+) changed \+ (\d+) left", page)
    assert counts and int(counts[1]) == int(counts[2]) + int(counts[3])
    lost = {m[1]: float(m[2]) for m in re.finditer(r"^\| (\w+) \| [^|]+ \| \d+ of \d+ \| (\S+) ", page, re.MULTILINE)}
    assert len(lost) == 21 and lost["typo_swap"] > 0.3 and lost["case_upper"] == lost["emoji"] == 0
    assert results == sorted((p.name, p.stat().st_mtime_ns) for p in (REPO / "benchmarks" / "results").iterdir())


def test_without_the_sets_it_says_so(tmp_path: Path) -> None:
    assert _run("--data", str(tmp_path)).startswith("skipped: no sets bcari_noisy_standard")
