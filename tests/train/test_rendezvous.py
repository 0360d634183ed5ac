"""Ranks that meet through a file, and those that wait for one that does not come."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
CODE = """
import os, sys
from pathlib import Path
import torch.distributed as dist
from train.rendezvous import meet
rank, ranks, within_s = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
meet(Path(sys.argv[1]), rank=rank, ranks=ranks, backend="gloo", device=None, within_s=within_s)
import torch
total = torch.tensor([rank + 1.0])
dist.all_reduce(total)
print(total.item(), flush=True)
os._exit(0)
"""


def start(store: Path, *ranks: tuple[int, int], within_s: float) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of processes that believe to be rank A of B."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, str(store), *map(str, rank), str(within_s)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in ranks
    ]  # fmt: skip
    try:
        told = [p.communicate(timeout=200) for p in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *t) for p, t in zip(processes, told, strict=True)]


def test_all_ranks_meet(tmp_path: Path) -> None:
    assert [(c, o) for c, o, _ in start(tmp_path / "store", (0, 2), (1, 2), within_s=60)] == [(0, "3.0\n")] * 2


def test_a_rank_that_never_comes_is_named_by_those_who_came(tmp_path: Path) -> None:
    began = time.monotonic()
    found = start(tmp_path / "store", (0, 4), (3, 4), within_s=5)
    assert time.monotonic() - began < 120  # starts take long where much else runs; the usual limit is 1800 s
    for rank, (code, _, err) in zip((0, 3), found, strict=True):
        assert code == 1
        assert f"TimeoutError: rank {rank} waited 5 s for ranks [1, 2] of 0-3, which did not come" in err


def test_another_number_of_ranks_is_named(tmp_path: Path) -> None:
    first, second = start(tmp_path / "store", (0, 2), (1, 3), within_s=5)
    assert first[0] == second[0] == 1
    assert "was started as one of 3 ranks, rank 0 as one of 2. Fix: start all ranks with the same" in first[2]
    assert "as one of 2 ranks, rank 1 as one of 3" in second[2] or "ranks [2] of 0-2, which did not come" in second[2]
