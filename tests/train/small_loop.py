"""A phase without a network: the real loop, history, ledger, saver and telemetry around weights that just count.

After step s every weight is s, so a checkpoint tells which step it is of, bit by bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ledger_fixture import BATCH, order_of

from train.draws import Draw, Draws
from train.engine import Step
from train.flops import Work
from train.guard import StopRequest
from train.history.checkpoint import CheckpointConfig
from train.history.fence import Fence
from train.history.identity import Identity
from train.history.pieces import Piece
from train.history.resume import History
from train.lesson import Lesson
from train.loop import Loop
from train.meter import Meter
from train.phase import PhaseConfig
from train.survival import Survival
from train.telemetry import Telemetry

SIZE = 64


@dataclass
class Batch:
    draw: Draw

    @property
    def samples(self) -> list[tuple[int, int]]:
        return list(self.draw.samples)


class Counting:
    """An engine whose weights are the number of updates."""

    device, named_shapes, parameters_total = "cpu", {"w": (SIZE,)}, SIZE

    def __init__(self) -> None:
        self.updates = 0

    def set_rate(self, rate: float) -> None:
        pass

    def step(self, admit: Callable[[float], bool]) -> Step:
        applied = admit(1.0)
        self.updates += applied
        return Step(1.0, applied)

    def own_pieces(self) -> list[Piece]:
        tensors = {kind: torch.full((SIZE,), float(self.updates)) for kind in ("weight", "exp_avg", "exp_avg_sq")}
        return [Piece("w", (SIZE,), 0, tensors)]

    def restore(self, read: Callable[..., torch.Tensor], *, updates: int) -> None:
        assert read("w", "weight", 0, SIZE).tolist() == [float(updates)] * SIZE
        self.updates = updates


def train(
    history: Path,
    out: Path,
    *,
    fence: Fence | None = None,
    steps: int = 8,
    every: int | None = 2,
    keep: int = 2,
    background: bool = False,
    deadline: float | None = None,
    stop: StopRequest | None = None,
    teach: Callable[[Batch], float] = lambda batch: 1.0 / batch.draw.step,
    job: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """The phase from its beginning, or from where its history is, to its end. Raises what a phase raises."""
    config = PhaseConfig(precision="fp32", **(settings or {}))
    survival = Survival(
        history=history,
        checkpoint=CheckpointConfig(every_steps=every, every_s=None, keep=keep, background=background),
        stop=stop or StopRequest(deadline),
        fence=fence,
        job=job,
    )
    telemetry = Telemetry(out, history=history, active=True, fence=fence)
    telemetry.status("starting")
    order, end = order_of(), steps * BATCH
    identity = Identity(
        phase="finetune", seed=7, config={"batch": BATCH}, harmless=frozenset(), batch="batch", data={"d": "f"},
        model="m", sizes={},
    )  # fmt: skip
    opened = History.enter(history, identity, fence=fence)
    opened.open(order, phase="finetune", end=end, batch=BATCH, zero_stage=1, job=job)
    telemetry.resume(opened.done_steps)
    draws = Draws(order, batch=BATCH, end=end, done_steps=opened.done_steps, done=opened.done)
    loop = Loop(
        config,
        seed=7,
        engine=Counting(),  # type: ignore[arg-type]
        draws=draws,
        steps=steps,
        make=Batch,
        teach=lambda batch: Lesson(teach(batch), Work(tokens=1)),
        meter=Meter(telemetry),
        survival=survival,
        history=opened,
        out=out,
    )
    telemetry.status("training", total=loop.steps_left, notes=opened.notes)
    try:
        loop.run()
        loop.pause("saving the model")
        telemetry.status("saving")
        out.mkdir(parents=True, exist_ok=True)
        (out / "model").write_text(str(steps))
        loop.finish()
        telemetry.finish({"history": opened.id, "at": time.time()})
    finally:
        # a process would end here; in a test the ledger's thread would wait for ever
        with suppress(Exception):
            opened.close()
