"""One rank that saves step after step in the background until it is killed.

Usage: python endless_job.py FOLDER RANK RANKS: goes on after the newest checkpoint; rank 0 prints what it committed.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from saved import alone, split, state

from train.history.checkpoint import find
from train.history.saver import Saver


def main() -> None:
    """Save until death."""
    folder, rank, ranks = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ready = folder.parent / "ready"
    if rank == 0:
        found = find(folder, rank=0, ranks=1, exchange=alone).checkpoint
        saver = Saver(folder, rank=0, ranks=ranks, committed=lambda step, _: print(step, flush=True))
        beside = folder.parent / "ready.tmp"
        beside.write_text(str(found.step if found else 0))
        beside.replace(ready)
    while not ready.exists():  # stands for the collective between making the savers and the first save
        time.sleep(0.01)
    if rank > 0:
        saver = Saver(folder, rank=rank, ranks=ranks)
    step = int(ready.read_text())
    while True:
        step += 1
        pieces = split(state(step), ranks)[rank]
        own = {"rng": torch.full((5,), 10 * step + rank, dtype=torch.int64)}
        saver.save(step, pieces, {"version": 0, "step": step}, own)
        if (failure := saver.failure()) is not None:
            raise failure


if __name__ == "__main__":
    main()
