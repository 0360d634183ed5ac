"""One step of a training phase on a rank, for tests/train/test_ranks.py: writes loss and gradients from rank 0.

Run as `python -m torch.distributed.run … tests/train/rank_job.py PHASE FOLDER STAGE OUT`; FOLDER holds what
`tests/train/tiny.py` makes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import ENCODER, FINETUNE, PRETRAIN, finetune_batch
from transformers import AutoModelForCausalLM, AutoTokenizer

from train.attention import use_packed_attention
from train.encoder import load_backbone, make_encoder
from train.engine import Engine, start_ranks, stop_ranks
from train.finetune import FinetuneConfig, local_loss, rows_of_rank
from train.pretrain import PretrainConfig, TokenRows, backward_batch, make_language_model


def main(phase: str, folder: Path, stage: int, out: Path) -> None:
    rank, ranks = start_ranks()
    torch.manual_seed(0)
    if phase == "pretrain":
        config = PretrainConfig(**PRETRAIN, zero_stage=stage)
        model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        use_packed_attention(model)
        engine = Engine(make_language_model(model), config, steps=1)
        rows = TokenRows(folder / "tokens")
        batch = list(range(config.batch_rows))
        per = len(batch) // ranks
        mine, predicted = batch[rank * per : (rank + 1) * per], rows.predicted(batch)
        total = torch.tensor(backward_batch(engine, rows, mine, predicted=predicted, micro=config.micro_batch_rows))
        torch.distributed.all_reduce(total)
        loss = total / predicted
    else:
        config = FinetuneConfig(**FINETUNE, zero_stage=stage, loss=phase)
        engine = Engine(
            make_encoder(load_backbone(folder / "model", bidirectional=False, precision="fp32"), ENCODER),
            config,
            steps=1,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        rows = rows_of_rank(finetune_batch(folder), rank, ranks)
        loss, *_ = local_loss(engine, tokenizer, rows, config, ENCODER)
        engine.backward(loss, last=True)
        loss = loss.detach() / ranks
        torch.distributed.all_reduce(loss)
    gradients = engine.full_gradients()
    norm = engine.step()
    if rank == 0:
        clean = {name.removeprefix("model.model.").removeprefix("backbone."): g for name, g in gradients.items()}
        save_file({**clean, "loss": loss.reshape(1).float(), "norm": torch.tensor([norm])}, out)
    stop_ranks()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
