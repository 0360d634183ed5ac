"""Steps of pretraining on a rank, for tests/train/test_pretrain.py; rank 0 writes losses, gradients and weights.

Run on each rank as `pretrain_job.py FOLDER OUT CASE…`, by forks.py or `python -m torch.distributed.run`; FOLDER holds
what `tiny.py` makes and a CASE is `NAME=JSON` with the settings that differ from the tiny ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from tiny import PRETRAIN
from transformers import AutoModelForCausalLM

from data_prep.files import write_json
from train.attention_layout import attention_layout
from train.cursor import GlobalOrder, Source
from train.draws import Draws
from train.engine import Engine, start_ranks, stop_ranks
from train.gather import world
from train.pretrain import PretrainConfig, backward_batch, make_language_model, validation_losses
from train.recompute import recompute_layers
from train.token_rows import TokenBatches, TokenRows


def run_case(name: str, settings: dict[str, Any], folder: Path, out: Path) -> None:
    """One step; gradients and loss of the first batch, the weights after it, the validation losses before it."""
    rank, ranks = world()
    torch.manual_seed(0)
    layout = settings.pop("layout", "packed")
    config = PretrainConfig(**PRETRAIN | settings)
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    attention_layout(model.get_decoder(), layout)
    if config.activation_checkpointing:
        recompute_layers(model)
    engine = Engine(make_language_model(model, layout=layout, z_loss=config.z_loss), config)
    rows = TokenRows(folder / "tokens")
    order = GlobalOrder([Source("tokens", len(rows))], fingerprint="f", seed=0)
    batches = TokenBatches(
        rows, micro_tokens=config.micro_batch_tokens, rank=rank, ranks=ranks,
        padded=layout == "padded", recomputed=config.activation_checkpointing,
    )  # fmt: skip
    validation = validation_losses(engine, rows, limit=11, micro_tokens=config.micro_batch_tokens)
    batch = batches(Draws(order, batch=config.batch_rows, end=config.batch_rows)(1))
    loss = backward_batch(engine, batch)
    if ranks > 1:
        dist.all_reduce(loss)
    gradients = engine.full_gradients()
    norm = engine.step().norm
    facts = {"loss": float(loss), "norm": norm, "validation": validation, "passes": len(batch.passes)}
    if rank == 0:
        save_file({n.removeprefix("model."): g for n, g in gradients.items()}, out / f"{name}.safetensors")
        write_json(out / f"{name}.json", facts | {"work": batch.work.values()})
    engine._engine.destroy()


def main(folder: Path, out: Path, cases: list[str]) -> None:
    start_ranks()
    for case in cases:
        name, _, settings = case.partition("=")
        run_case(name, json.loads(settings), folder, out)
    stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
