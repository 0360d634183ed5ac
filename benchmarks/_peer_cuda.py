"""What a GPU reaches with a 1B cut: tokens per second, use of its peak, and memory, for both phases of training.

The trainers run one after the other, each alone on the device. The figures that are wanted: pretraining and the plain
contrastive step at 55 % of the peak or more by the trunk's operations (train/flops.py), and a step that keeps only some
graphs at most 1.15 times the plain one.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _facts
from _peer_texts import Lengths, Shape, make_world
from _turns import Block, Spread, TrainerFailed

from data_prep.shards import ShardWriter
from train.flops import CONVENTION, peak_flops

if TYPE_CHECKING:
    from peers import Bench


def write_token_rows(folder: Path, *, rows: int, row_tokens: int, vocabulary: int, lengths: Lengths, seed: int) -> Path:
    """A shard folder of token rows: documents of random ids with the lengths of the texts, laid end to end."""
    import numpy as np

    generator = np.random.default_rng(seed)
    with ShardWriter(folder, "tokens") as writer:
        for _ in range(rows):
            cuts = np.cumsum(lengths.draw(row_tokens // 6, generator))
            writer.append(
                {
                    "input_ids": generator.integers(3, vocabulary, size=row_tokens).tolist(),
                    "document_starts": [0, *(int(c) for c in cuts if c < row_tokens)],
                    "source": None,
                }
            )
    return folder


def phases(bench: Bench, *, shape: Shape, lengths: Lengths, small: bool) -> dict[str, dict[str, Any]]:
    """The jobs by name."""
    row_tokens, rows = (64, 4) if small else (2048, 32)
    micro = 64 if small else 16384
    world = bench.folder / "with-head"
    world.mkdir()
    make_world(world, shape=shape, lengths=lengths, pairs=64, data=None, seed=bench.args.seed, head=True)
    tokens = write_token_rows(
        world / "tokens", rows=4 * rows, row_tokens=row_tokens, vocabulary=shape.vocabulary, lengths=lengths,
        seed=bench.args.seed,
    )  # fmt: skip
    pretrain = {
        "batch_rows": rows, "learning_rate": bench.args.rate, "schedule": "constant", "warmup_steps": 0,
        "gradient_clip": 1.0, "precision": bench.precision, "zero_stage": 1, "micro_batch_tokens": micro,
    }  # fmt: skip
    packed = {"side": "pretraining", "model": str(world / "model"), "tokens": str(tokens)}
    chunks = math.ceil(sum(bench.counts) / bench.steps / micro)

    def contrastive(kept: int | str, **more: Any) -> dict[str, Any]:
        return {"side": "rumpun", "finetune": {"kept_chunks": kept, "micro_batch_tokens": micro, **more}}

    few = {
        "pretraining": {**packed, "pretrain": pretrain},
        "contrastive, every graph kept": contrastive("all"),
        "contrastive, one graph kept": contrastive(1),
    }
    if small:
        return few
    return {
        **few,
        "pretraining, compiled": {**packed, "pretrain": {**pretrain, "compile": True}},
        "contrastive, graphs kept as memory allows": contrastive("auto"),
        f"contrastive, {max(1, chunks // 2)} of about {chunks} graphs kept": contrastive(max(1, chunks // 2)),
    }


def alone(bench: Bench, job: dict[str, Any], *, name: str) -> list[Block]:
    """The blocks of a trainer that has the device to itself."""
    trainee = bench.arena.start(job, name=name)
    blocks = [trainee.train(bench.args.warm)]
    blocks += [trainee.train(bench.args.steps) for _ in range(bench.args.rounds)]
    trainee.close()
    return blocks


def _per_second(blocks: list[Block], key: str) -> Spread:
    return Spread.of([b.told[key] / b.wall_s for b in blocks[1:]])


def cuda_lines(
    bench: Bench, *, shape: Shape, lengths: Lengths, small: bool
) -> tuple[list[str], dict[str, list[Block]]]:
    """Markdown parts on rumpun alone, and all blocks."""
    device = (_facts.gpu_lines() or ["none"])[0].split(",")[0]
    peak = peak_flops(device, bench.precision)
    found: dict[str, list[Block]] = {}
    failed: list[str] = []
    for name, job in phases(bench, shape=shape, lengths=lengths, small=small).items():
        print(name, flush=True)
        try:
            found[name] = alone(bench, job, name="phase")
        except TrainerFailed as failure:
            failed.append(f"{name} failed: `{str(failure).splitlines()[0]}`")

    def share(blocks: list[Block], key: str) -> str:
        if peak is None:
            return "unknown device"
        use = _per_second(blocks, key)
        return str(Spread(*(100 * v / peak for v in (use.median, use.low, use.high))))

    plain = found.get("contrastive, every graph kept")
    rows = []
    for name, blocks in found.items():
        beside = "–"
        if plain and "contrastive" in name:
            beside = str(Spread.of([a.wall_s / b.wall_s for a, b in zip(blocks[1:], plain[1:], strict=True)]))
        rows.append(
            (
                name,
                str(_per_second(blocks, "tokens")),
                share(blocks, "trunk_flops"),
                share(blocks, "hardware_flops"),
                beside,
                f"{max(b.told['peak_memory_gb'] for b in blocks):.2f}",
            )
        )
    head = ["phase", "tokens/s", "trunk MFU, %", "HFU, %", "time over plain", "peak GB"]
    return ["## rumpun alone on the device", _facts.table(head, rows), *failed, CONVENTION], found
