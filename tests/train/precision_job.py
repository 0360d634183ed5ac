"""Thirty tiny updates of a weight of ones in bf16, for tests/train/test_precision.py.

Run on each rank as `precision_job.py STAGE OUT`, by forks.py or `python -m torch.distributed.run`. The gradient is
constant, so AdamW moves every element by the learning rate, 1e-4, in each step: a fortieth of the distance of bf16
numbers below 1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from data_prep.files import write_json
from train.engine import Engine, start_ranks, stop_ranks
from train.model_folder import gathered_state
from train.phase import PhaseConfig

STEPS = 30


def main(stage: int, out: Path) -> None:
    rank, _ = start_ranks()
    module = torch.nn.Linear(16, 8, bias=False)
    torch.nn.init.ones_(module.weight)
    config = PhaseConfig(
        learning_rate=1e-4, warmup_steps=0, schedule="constant", weight_decay=0.0, gradient_clip=0.0,
        zero_stage=stage, precision="bf16",
    )  # fmt: skip
    engine = Engine(module, config)
    working: list[float] = []
    for _ in range(STEPS):
        output = engine(torch.ones(1, 16, dtype=torch.bfloat16))
        working.append(float(output.detach().max()) / 16)
        engine.backward(output.float().sum(), last=True)
        engine.step()
    state = gathered_state(engine, engine.module)
    if rank == 0:
        assert state is not None
        master = state["weight"]
        facts = {"dtype": str(master.dtype), "min": float(master.min()), "max": float(master.max()), "working": working}
        write_json(out, facts)
    stop_ranks()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
