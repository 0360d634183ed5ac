"""The trainings that the survival tests kill, and what they must come to: jobs, reference runs, comparisons.

One small world for all: 96 pairs and 60 rows of tokens, 30 steps with an epoch's end inside, a step of a few
milliseconds, a checkpoint every 5 steps.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from survival.ranks import Result, Zygote
from tiny import make_world, sentence

from data_prep.files import sha256_file
from data_prep.pairs.row import pair_row
from data_prep.shards import ShardWriter
from train.history.proof import Proof
from train.history.verify import verify

STEPS, EVERY, BATCH = 30, 5, 8
PAIRS, ROWS = 96, 60  # 2.5 epochs of pairs, 4 of rows
CHECKPOINT: dict[str, Any] = {"every_steps": EVERY, "every_s": None, "keep": 2, "background": True}
SHARED: dict[str, Any] = {
    "precision": "fp32", "learning_rate": 1e-3, "warmup_steps": 4, "schedule": "cosine", "gradient_clip": 0.5,
    "max_steps": STEPS, "epochs": 100.0, "zero_stage": 1,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "finetune": {
        **SHARED, "batch_pairs": BATCH, "micro_batch_tokens": 192, "hard_negatives": 1, "kept_chunks": 2,
        "blend": {"pairs": 1.0},
    },
    "pretrain": {**SHARED, "batch_rows": BATCH, "micro_batch_tokens": 160, "validation_rows": 6},
}  # fmt: skip
BATCH_FIELD = {"finetune": "batch_pairs", "pretrain": "batch_rows"}


def make_data(folder: Path) -> Path:
    """The tiny world, with `many/` pairs and `rows/{train,validation}` of tokens."""
    make_world(folder)
    rng = random.Random(5)
    with ShardWriter(folder / "many", "pairs") as writer:
        for i in range(PAIRS):
            negatives = [sentence(rng) for _ in range(i % 3)]
            positives = ["hujan lebat di pasar"] if i % 16 == 2 else [sentence(rng)]  # some rows share a positive
            writer.append(pair_row(sentence(rng, 2, 8), positives, negatives, "test", "ms"))
    for name, count in (("train", ROWS), ("validation", 6)):
        with ShardWriter(folder / "rows" / name, "tokens") as writer:
            for _ in range(count):
                starts = sorted({0, *(rng.randrange(1, 40) for _ in range(rng.randint(0, 4)))})
                ids = [rng.randrange(3, 300) for _ in range(40)]
                writer.append({"input_ids": ids, "document_starts": starts, "source": "berita"})
    return folder


@dataclass
class Run:
    """A training with its history, started as often as needed.

    Attributes:
        home: a folder of its own. settings, checkpoint, guard: what differs from the usual ones.
        starts: how each start ended.
    """

    zygote: Zygote
    data: Path
    home: Path
    phase: str = "finetune"
    settings: dict[str, Any] = field(default_factory=dict)
    checkpoint: dict[str, Any] = field(default_factory=dict)
    guard: dict[str, Any] = field(default_factory=dict)
    starts: list[Result] = field(default_factory=list)

    @property
    def history(self) -> Path:
        """The history's folder, as in a run folder."""
        return self.home / "history" / self.phase

    @property
    def checkpoints(self) -> Path:
        """Where its checkpoints lie."""
        return self.history / "checkpoints"

    def job(self, **changes: Any) -> dict[str, Any]:
        """What the launcher would hand to the ranks."""
        return {
            "phase": self.phase,
            "config": CONFIGS[self.phase] | self.settings,
            "encoder": {"max_tokens": 32},
            "sources": {"pairs": self.data / "many"},
            "tokens": self.data / "rows",
            "model": self.data / "model",
            "seed": 7,
            "history": self.history,
            "checkpoint": CHECKPOINT | self.checkpoint,
            "guard": self.guard,
            "deadline": None,
            "heartbeat": None,
            "inputs": {},
        } | changes

    def start(
        self, ranks: int = 2, *plan: Mapping[str, Any], expect: int | Sequence[int] | None = None,
        signals: list[Any] | None = None, **changes: Any,
    ) -> Result:  # fmt: skip
        """Start it once more, and wait until it ends; `expect` is the code that it must end with."""
        result = self.zygote.run(
            self.job(**changes), ranks=ranks, folder=self.home, plan=[dict(p) for p in plan], signals=signals
        )
        self.starts.append(result)
        if expect is not None:
            allowed = [expect] if isinstance(expect, int) else expect
            assert result.code in allowed, result.told()
        return result

    def copy(self, home: Path) -> Run:
        """The same run as it is now, elsewhere."""
        if self.history.exists():
            shutil.copytree(self.history, home / "history" / self.phase)
        return Run(
            self.zygote, self.data, home, self.phase, dict(self.settings), dict(self.checkpoint), dict(self.guard)
        )

    def records(self) -> list[dict[str, Any]]:
        """All lines of the ledger."""
        return [json.loads(line) for line in (self.history / "ledger.jsonl").read_text().splitlines()]

    def steps(self) -> list[dict[str, Any]]:
        """The steps that count, in order: what a later start did again is taken from there."""
        found: dict[int, dict[str, Any]] = {}
        for record in self.records():
            if record["kind"] == "start":
                found = {step: r for step, r in found.items() if step <= record["step"]}
            elif record["kind"] == "step":
                found[record["step"]] = record
        return [found[step] for step in sorted(found)]

    def recomputed(self) -> int:
        """Steps that were done more than once."""
        return sum(r["kind"] == "step" for r in self.records()) - len(self.steps())

    def weights(self) -> str:
        """SHA-256 of the final weights."""
        return sha256_file(self.starts[-1].out / "model" / "model.safetensors")


def numbers(steps: Sequence[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
    """What must come out equal to the bit: samples, loss, gradient norm, rate, and whether it was skipped."""
    return [
        (s["step"], s["first"], s["end"], s["order"], s["loss"], s["grad_norm"], s["rate"], s.get("skipped"))
        for s in steps
    ]


def left_over(checkpoints: Path) -> list[str]:
    """Names in a checkpoint folder that are neither whole checkpoints nor kept for a reason."""
    return sorted(
        p.name for p in checkpoints.iterdir()
        if not (p.name.startswith("step-") or p.name == "latest" or p.name.startswith(".damaged-step-"))
    )  # fmt: skip


def newest(checkpoints: Path) -> Path:
    """The newest checkpoint, by its name."""
    return max(p for p in checkpoints.iterdir() if p.name.startswith("step-"))


def check_proof(run: Run, *, ended: bool = True) -> Proof:
    """The ledger's proof, against the shards and the newest checkpoint."""
    from data_prep.shards import Shards

    manifest = json.loads((newest(run.checkpoints) / "manifest.json").read_text())
    shards = (
        {"pairs": Shards(run.data / "many", "pairs")}
        if run.phase == "finetune"
        else {"tokens": Shards(run.data / "rows" / "train", "tokens")}
    )
    proof = verify(run.history / "ledger.jsonl", shards=shards, mark=manifest["facts"]["ledger"])
    assert proof.claim().startswith("Proven"), proof.sentences()
    if ended:
        assert proof.tape.ended, proof.sentences()
        assert proof.samples == STEPS * BATCH
    return proof
