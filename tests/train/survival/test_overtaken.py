"""Two generations of a real phase: ranks that were cut off go on when a newer start has long ended, and change nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from survival.ranks import ALONE, REPO, as_json
from survival.runs import Run, check_proof, left_over, numbers

from train.exit_codes import DONE, SUPERSEDED
from train.history.fence import claim

pytestmark = pytest.mark.slow
RANKS = 2


class Old:
    """Ranks as the launcher starts them; all of them can be stopped at once, as by a cut cable."""

    def __init__(self, run: Run) -> None:
        self.home = run.home / "old"
        self.home.mkdir(parents=True)
        fence = claim(run.history, job="41", restart=0).facts()
        job = run.job(out=self.home / "out", ranks=RANKS, store=self.home / "store", fence=fence)
        (self.home / "out").mkdir()
        (self.home / "job.json").write_text(json.dumps(as_json(job)))
        self.ranks = [self._rank(rank) for rank in range(RANKS)]

    def _rank(self, rank: int) -> subprocess.Popen[bytes]:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
        with (self.home / f"rank-{rank}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "launch.worker", str(self.home / "job.json")],
                env=os.environ | ALONE | {name: str(value) for name, value in place.items()},
                cwd=REPO, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    def stop_when(self, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + 120
        while not ready():
            assert time.monotonic() < until and all(r.poll() is None for r in self.ranks), self.told()
            time.sleep(0.0005)
        self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        for rank in self.ranks:
            rank.send_signal(number)

    def codes(self) -> list[int]:
        return [rank.wait(120) for rank in self.ranks]

    def told(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(self.home.glob("*.log")))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("moment", ["between two steps", "in the middle of a save"])
def test_ranks_that_were_cut_off_change_nothing_more(moment: str, run: Run, undisturbed: Any) -> None:
    old = Old(run)
    metrics = run.history / "metrics.jsonl"

    def ready() -> bool:
        if moment == "in the middle of a save":
            return (run.checkpoints / "latest").exists() and any(run.checkpoints.glob(".step-*.building"))
        return metrics.exists() and metrics.read_bytes().count(b"\n") >= 12

    try:
        old.stop_when(ready)
        run.start(RANKS, expect=DONE, fence=claim(run.history, job="41", restart=1).facts())
        before = content(run.history)
        old.signal(signal.SIGCONT)
        assert old.codes() == [SUPERSEDED] * RANKS, old.told()
    finally:
        old.signal(signal.SIGKILL)
    assert "Traceback" not in old.told(), old.told()
    assert "a newer start (job 41, restart 1" in old.told()
    assert content(run.history) == before
    assert numbers(run.steps()) == numbers(undisturbed().steps())
    assert run.weights() == undisturbed().weights()
    assert left_over(run.checkpoints) == []
    check_proof(run)
