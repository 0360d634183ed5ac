"""SIGKILL at any moment of a save leaves a whole checkpoint, an older or a newer one, and a folder that goes on."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from saved import assert_whole, look

from train.history.folder import steps_in

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scene", "before", "after"),
    [
        ("next", [2, 0], [3, 0]),
        ("first", [0, 0], [3, 0]),
        ("only", [2, 0], [2, 1]),
        ("fallback", [1, 0], [2, 1]),
    ],
)
def test_a_kill_between_any_two_system_calls(tmp_path: Path, scene: str, before: list[int], after: list[int]) -> None:
    answer = subprocess.run(
        [sys.executable, str(HERE / "crash_job.py"), scene, str(tmp_path)],
        capture_output=True, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout)
    switch = found.index(after)  # the moment of the rename: old before it, new from there on, and nothing else
    assert len(found) > 40 and 10 < switch < len(found) - 3
    assert found == [before] * switch + [after] * (len(found) - switch)


@pytest.mark.slow
def test_ranks_that_are_killed_at_random_go_on(tmp_path: Path) -> None:
    folder, dice, reached = tmp_path / "checkpoints", random.Random(0), 0
    for _ in range(2):
        (tmp_path / "ready").unlink(missing_ok=True)
        ranks = [
            subprocess.Popen(
                [sys.executable, str(HERE / "endless_job.py"), str(folder), str(rank), "2"],
                stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
            )
            for rank in range(2)
        ]  # fmt: skip
        assert ranks[0].stdout
        committed = [int(ranks[0].stdout.readline()) for _ in range(2)]
        assert committed == [reached + 1, reached + 2]
        time.sleep(dice.random() / 4)
        for process in dice.sample(ranks, 2):
            process.kill()
            time.sleep(dice.choice([0, 0.02]))
        committed += map(int, ranks[0].stdout)
        for process in ranks:
            process.communicate()
        found = look(folder, expected=committed[-1])
        assert found.notes == [] and found.checkpoint and found.checkpoint.step >= committed[-1]
        assert_whole(found.checkpoint)
        assert len(steps_in(folder)) <= 3  # two, and one whose elder had not left yet
        reached = found.checkpoint.step
