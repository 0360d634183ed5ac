"""A training phase without a model: real draws, a real ledger, and crashes where a test wants them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.arrange import Arrangement
from train.cursor import GlobalOrder, Source
from train.draws import Draws
from train.history.ledger import Ledger
from train.history.records import seal

BLEND = [Source("mine", 37, share=0.4), Source("pairs", 50), Source("synth", 23)]
BATCH = 8
Records = list[dict[str, Any]]


def order_of(*, block: int | None = None) -> GlobalOrder:
    return GlobalOrder(BLEND, fingerprint="aa/bb/cc", seed=7, block=block)


def arrangement_of(order: GlobalOrder, batch: int = BATCH) -> Arrangement:
    """Every third row carries one of three texts, so some are always moved."""

    def keys(position: int) -> tuple[int, ...]:
        source, row = order[position]
        return (row % 4 if row % 3 == 0 else 100 * source + 1000 + row,)

    return Arrangement(batch, keys=keys, group=lambda p: p // order.epoch_rows)


class Training:
    """Starts and steps of a phase over `epochs` epochs, recorded in `path`."""

    def __init__(self, path: Path, *, epochs: float = 3.0, order: GlobalOrder | None = None) -> None:
        self.path = path
        self.order = order or order_of()
        self.end = round(epochs * self.order.epoch_rows)
        self.arrangement = arrangement_of(self.order)
        self.saved = {0: 0}
        self.restart = 0

    @property
    def header(self) -> dict[str, Any]:
        return self.order.facts() | {"phase": "finetune", "order_batch": BATCH, "end": self.end, "history": "h"}

    def start(
        self,
        *,
        after: int = 0,
        steps: int | None = None,
        batch: int = BATCH,
        ranks: int = 2,
        save_every: int = 4,
        skipped: Mapping[int, str] | None = None,
        rewind: Callable[[int], tuple[int, str] | None] = lambda step: None,
        ending: str | None = None,
    ) -> None:
        """One start, from the checkpoint after step `after`; it takes `steps` steps, or all, and then stops or dies."""
        ledger = Ledger.open(self.path, self.header)
        try:
            position = self.saved[after]
            ledger.start(
                step=after, position=position, restart=self.restart, ranks=ranks, nodes=1, hosts=["n1"], job=None,
                zero_stage=1, batch=batch,
            )  # fmt: skip
            self.restart += 1
            draws = Draws(
                self.order, batch=batch, end=self.end, arrangement=self.arrangement, done_steps=after, done=position
            )
            last = draws.steps if steps is None else min(draws.steps, after + steps)
            for step in range(after + 1, last + 1):
                draw = draws(step)
                why = (skipped or {}).get(step)
                ledger.step(
                    draw, samples=list(draw.samples), loss=float("nan") if why else 1.0 / step, norm=None, rate=1e-3,
                    skipped=why,
                )  # fmt: skip
                back = rewind(step)
                if back is not None:
                    to_step, reason = back
                    first = self.saved[to_step]
                    ledger.event("rewind", step=step, to_step=to_step, first=first, end=draw.end, reason=reason)
                if back is not None or step % save_every == 0 or step == draws.steps:
                    self.saved[step] = draw.end
                    ledger.event("checkpoint", step=step, ranks=ranks, bytes=1000)
            if last == draws.steps:
                ledger.event("end", step=last)
            elif ending:
                ledger.event("stop", step=last, reason=ending)
        finally:
            ledger.close()


def read(path: Path) -> Records:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, records: Records, *, sealed: bool) -> None:
    """The records as a ledger; with seals of their own, or with those that they had."""
    chain, lines = "", b""
    for record in records:
        bare = {key: value for key, value in record.items() if key != "chain"}
        line, chain = seal(bare, chain)
        if not sealed:
            line = (json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
        lines += line
    path.write_bytes(lines)


def run_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process of its own that runs `code` with the repository importable."""
    repo = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], cwd=repo, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={"PYTHONPATH": f"{repo}:{repo / 'tests' / 'train'}", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
