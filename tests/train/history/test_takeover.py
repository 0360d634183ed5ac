"""Two generations of one phase: an old start is stopped before any touch of the disk, a newer one takes over, and the
old one goes on, after the newer one has ended or in the middle of its work. Nothing of it arrives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

JOB = Path(__file__).with_name("takeover_job.py")


def takeovers(folder: Path, *how: object) -> list[tuple[int, int, int]]:
    done = subprocess.run(
        [sys.executable, str(JOB), str(folder), *map(str, how)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [tuple(found) for found in json.loads(done.stdout.splitlines()[-1])]


def test_an_old_start_in_the_middle_of_its_work_changes_nothing_more(tmp_path: Path) -> None:
    """A few places; the slow tests are at all of them."""
    found = takeovers(tmp_path, "late", 60, 75)
    assert [k for k, _, _ in found][:2] == [60, 135]
    codes = [code for _, _, code in found]
    # at its last touches it may have had nothing left to do (0)
    assert set(codes[:-1]) <= {78, 79} and codes[-1] in (0, 78, 79)


@pytest.mark.slow
def test_at_many_touches(tmp_path: Path) -> None:
    """Every tenth of some two hundred; `takeover_job.py FOLDER late 1 1` is at all of them."""
    found = takeovers(tmp_path, "late", 4, 10)
    codes = [code for _, _, code in found]
    assert len(codes) > 15
    # 79: it ended by another error, since its folders were swept away, and then saw that it had lost the history
    assert set(codes) <= {0, 78, 79} and codes.count(78) > 8
    # 0: it had nothing left to do but to write what it was told, into a folder of its own
    assert 0 not in codes[:-6]


@pytest.mark.slow
def test_while_the_newer_one_is_at_work(tmp_path: Path) -> None:
    assert len(takeovers(tmp_path, "between", 1, 60)) > 20
