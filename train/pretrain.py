"""Continued pretraining: next-token prediction that never crosses a document, under DeepSpeed.

Invariant: the loss is the mean over all predicted tokens of the global batch, whatever the ranks, the micro-batch and
the packing; the samples of step s are a pure function of the data, the seed and s.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_prep.errors import UserError
from data_prep.shards import Shards
from train.backbone import copy_tokenizer, parameter_counts
from train.cursor import GlobalOrder, Source
from train.flops import Work
from train.meter import Meter
from train.negatives import world
from train.packing import Packed
from train.phase import PhaseConfig, check_divides, total_steps
from train.telemetry import Telemetry

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from train.engine import Engine


class PretrainConfig(PhaseConfig):
    """[pretrain]: continued pretraining of the cut model on the token shards."""

    batch_rows: Annotated[int, Field(gt=0)] = 16
    """Rows of tokens in one optimiser step, over all ranks. The paper's step was 16 rows of 32,768 tokens."""
    micro_batch_rows: Annotated[int, Field(gt=0)] = 4
    """Rows in one forward pass of a rank; more is faster until memory ends. Never changes the result."""
    validation_rows: Annotated[int, Field(ge=0)] = 64
    """Held-out rows for the validation loss before and after training; 0 leaves it out. The paper had none."""


class TokenRows:
    """Token shards in memory: `ids` [n, L] int32 and where documents start in each row."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        shards = Shards(folder, "tokens")
        self.fingerprint = shards.fingerprint
        self.ids: NDArray[np.int32] = np.array(shards.column("input_ids"), dtype=np.int32)
        self.starts: list[list[int]] = shards.column("document_starts")

    def __len__(self) -> int:
        return len(self.ids)

    def predicted(self, rows: list[int]) -> int:
        """Tokens of these rows that have a predecessor in their own document."""
        return sum(self.ids.shape[1] - len(self.starts[r]) for r in rows)

    def work(self, rows: list[int]) -> Work:
        """What one training pass over these rows computes."""
        ends = [(*self.starts[r][1:], self.ids.shape[1]) for r in rows]
        lengths = [b - a for r, row in zip(rows, ends, strict=True) for a, b in zip(self.starts[r], row, strict=True)]
        return Work.of(lengths, head_tokens=sum(lengths))

    def packed(self, rows: list[int], device: Any) -> tuple[Packed, torch.Tensor]:
        """The rows as one stream of documents, and the [T] targets (-100 at each document's last token)."""
        import torch

        from train.packing import pack

        pieces: list[NDArray[np.int32]] = []
        for r in rows:
            ends = [*self.starts[r][1:], self.ids.shape[1]]
            pieces += [self.ids[r, a:b] for a, b in zip(self.starts[r], ends, strict=True)]
        stream = pack([p.tolist() for p in pieces], device=device)
        targets = torch.roll(stream.input_ids[0], -1)
        targets[stream.boundaries[1:].long() - 1] = -100
        return stream, targets


def make_language_model(model: Any) -> torch.nn.Module:
    """A module that maps (Packed, targets [T]) to the summed cross-entropy of a causal LM."""
    import torch

    from train.objectives import causal_lm_sum

    class LanguageModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, packed: Packed, targets: torch.Tensor) -> torch.Tensor:
            hidden = self.model.get_decoder()(**packed.model_inputs()).last_hidden_state[0]
            return causal_lm_sum(hidden, self.model.get_output_embeddings(), targets)

    return LanguageModel()


def backward_batch(engine: Engine, rows: TokenRows, mine: list[int], *, predicted: int, micro: int) -> float:
    """Forward and backward of this rank's rows of one global batch. Returns its summed loss.

    Args:
        predicted: predicted tokens of the whole global batch; the loss is divided by it once, exactly.
    """
    _, ranks = world()
    total = 0.0
    chunks = [mine[i : i + micro] for i in range(0, len(mine), micro)]
    for number, chunk in enumerate(chunks):
        stream, targets = rows.packed(chunk, engine.device)
        loss = engine(stream, targets)
        engine.backward(loss * (ranks / predicted), last=number == len(chunks) - 1)
        total += float(loss.detach())
    return total


def validation_loss(engine: Engine, rows: TokenRows, *, limit: int, micro: int) -> float:
    """Mean loss per predicted token over the first `limit` held-out rows. A collective."""
    import torch
    import torch.distributed as dist

    rank, ranks = world()
    chosen = list(range(min(limit, len(rows))))
    rounds = -(-len(chosen) // (micro * ranks))  # every rank runs as many forwards: ZeRO-3 gathers weights in each
    sums = torch.zeros(2, device=engine.device)
    with torch.no_grad():
        for turn in range(rounds):
            first = (turn * ranks + rank) * micro
            part = chosen[first : first + micro]
            stream, targets = rows.packed(part or [0], engine.device)
            if not part:
                targets.fill_(-100)
            sums += torch.stack([engine(stream, targets).float(), (targets >= 0).sum().float()])
    if ranks > 1:
        dist.all_reduce(sums)
    return float(sums[0] / sums[1].clamp(min=1))


def pretrain(config: PretrainConfig, *, tokens: Path, model: Path, out: Path, seed: int) -> None:
    """Train on every rank of an already started group; rank 0 writes `out/model`, metrics.jsonl and summary.json.

    Raises `UserError` where the rows cannot fill a batch or the ranks do not divide it.
    """
    import torch
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM

    from train.attention import use_packed_attention
    from train.checkpoint import save_model
    from train.engine import Engine

    started = time.perf_counter()
    rank, ranks = world()
    per_rank = check_divides(config.batch_rows, ranks, name="pretrain.batch_rows")
    torch.manual_seed(seed)
    telemetry = Telemetry(out, active=rank == 0)
    telemetry.status("starting")
    rows = TokenRows(tokens / "train")
    if len(rows) < ranks:
        raise UserError(
            f"{len(rows)} rows of tokens",
            f"must be at least one for each of the {ranks} processes",
            "add text or lower tokens.row_tokens or --nproc",
        )
    held_out = TokenRows(tokens / "validation") if config.validation_rows else None
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    use_packed_attention(network)
    if config.activation_checkpointing:
        network.gradient_checkpointing_enable()
    counts = parameter_counts(network)
    order = GlobalOrder([Source("tokens", len(rows))], fingerprint=rows.fingerprint, seed=seed)
    steps = total_steps(config, samples=len(rows), batch=config.batch_rows)
    engine = Engine(make_language_model(network), config, steps=steps)
    meter = Meter(telemetry, startup_s=time.perf_counter() - started)

    def validate(step: int) -> float | None:
        if held_out is None or not len(held_out):
            return None
        telemetry.status("validating")
        value = validation_loss(engine, held_out, limit=config.validation_rows, micro=config.micro_batch_rows)
        telemetry.log({"step": step, "validation_loss": value})
        return value

    before = validate(0)
    telemetry.status("training", total=steps)
    for step in range(steps):
        meter.begin_step()
        batch = [row for _, row in order.batch(step, config.batch_rows)]
        rate = engine.rate
        mine = batch[rank * per_rank : (rank + 1) * per_rank]
        predicted = rows.predicted(batch)
        local = backward_batch(engine, rows, mine, predicted=predicted, micro=config.micro_batch_rows)
        summed = torch.tensor(local, device=engine.device)
        norm = engine.step()
        if ranks > 1:
            dist.all_reduce(summed)
        meter.end_step(
            loss=float(summed) / predicted,
            rate=rate,
            norm=norm,
            work=rows.work(batch),
        )
    after = validate(steps)
    train_s = meter.elapsed_s
    telemetry.status("saving")
    save_model(engine, network, out / "model")
    if rank == 0:
        copy_tokenizer(model, out / "model")
    telemetry.finish(
        meter.summary(
            "pretrain",
            config,
            ranks=ranks,
            device=engine.device,
            sizes=counts,
            train_s=train_s,
            save_s=meter.elapsed_s - train_s,
            validation_loss_before=before,
            validation_loss_after=after,
        )
    )
