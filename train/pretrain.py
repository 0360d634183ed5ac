"""Continued pretraining: next-token prediction that never crosses a document, under DeepSpeed.

Invariant: the loss is the mean over all predicted tokens of the global batch, whatever the ranks, the micro-batch and
the layout; the samples of step s are a pure function of the data, the seed and s.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.agree import on_first_rank, together
from train.backbone import copy_tokenizer, parameter_counts
from train.cursor import GlobalOrder, Source
from train.draws import Draws
from train.dropout import set_dropout
from train.flops import Flops
from train.gather import world
from train.history.identity import Identity, flat, folder_fingerprint
from train.history.resume import History
from train.host_linear import use_host_linear
from train.lesson import Lesson
from train.loop import Loop
from train.meter import Meter
from train.phase import PhaseConfig, check_fills, total_steps
from train.recompute import recompute_layers
from train.survival import Survival
from train.telemetry import Telemetry
from train.token_rows import Passes, TokenBatches, TokenRows

if TYPE_CHECKING:
    import torch

    from train.attention_layout import Layout
    from train.engine import Engine
    from train.packing import Packed


class PretrainConfig(PhaseConfig):
    """[pretrain]: continued pretraining of the cut model on the token shards."""

    batch_rows: Annotated[int, Field(gt=0)] = 16
    """Rows of tokens in one optimiser step, over all ranks. The paper's step was 16 rows of 32,768 tokens."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the squared log of the softmax's normaliser, which keeps logits small in long bf16 runs; PaLM took
    1e-4. Part of the training loss, not of the validation loss."""
    validation_rows: Annotated[int, Field(ge=0)] = 64
    """Held-out rows for the validation loss, of all and of each source, before and after training; 0 leaves it out."""


def make_language_model(model: Any, *, layout: Layout = "packed", z_loss: float = 0.0) -> torch.nn.Module:
    """A module that maps (Packed, targets [T]) to the summed loss of a causal LM, with the z-loss in training mode.

    `model` must be switched to `layout`; see train/attention_layout.py.
    """
    import torch

    from train.attention_layout import token_states
    from train.objectives.causal_lm import causal_lm_sum

    class LanguageModel(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, packed: Packed, targets: torch.Tensor) -> torch.Tensor:
            hidden = token_states(self.model.get_decoder(), packed, layout)
            return causal_lm_sum(
                hidden, self.model.get_output_embeddings(), targets, z_loss=z_loss if self.training else 0.0
            )

    return LanguageModel()


def backward_batch(engine: Engine, batch: Passes) -> torch.Tensor:
    """Forward and backward of this rank's passes of one global batch. Returns its share of the mean loss, a scalar.

    The summed loss is divided once by the predicted tokens of the whole batch, so that how rows are cut into passes and
    dealt to ranks does not count.
    """
    import torch

    _, ranks = world()
    total = torch.zeros((), device=engine.device)
    with engine.accumulation():
        for number, (stream, targets) in enumerate(batch.passes, start=1):
            loss = engine(stream, targets)
            engine.backward(loss * (ranks / batch.predicted), last=number == len(batch.passes))
            total += loss.detach()  # read once a step: every look at a number would wait for the device
    return total / batch.predicted


def validation_losses(engine: Engine, rows: TokenRows, *, limit: int, micro_tokens: int) -> dict[str, float]:
    """Mean loss per predicted token over up to `limit` held-out rows. A collective.

    Returns:
        `all`, and each source by name where rows are of one source.
    """
    import torch
    import torch.distributed as dist

    rank, ranks = world()
    chosen = rows.sample(limit)
    names = sorted({rows.sources[r] or "" for r in chosen})
    micro = max(1, micro_tokens // rows.row_tokens)
    chunks = []
    for number, name in enumerate(names):
        own = [r for r in chosen if (rows.sources[r] or "") == name]
        chunks += [(number, own[i : i + micro]) for i in range(0, len(own), micro)]
    sums = torch.zeros(len(names), 2, dtype=torch.float64, device=engine.device)
    engine.module.eval()
    with torch.no_grad():
        for first in range(0, len(chunks), ranks):  # every rank runs as many forwards: ZeRO-3 gathers weights in each
            number, part = chunks[first + rank] if first + rank < len(chunks) else (0, [])
            stream, targets = rows.packed(part, engine.device) if part else rows.idle(engine.device)
            sums[number] += torch.stack([engine(stream, targets).double(), (targets >= 0).sum().double()])
    engine.module.train()
    if ranks > 1:
        dist.all_reduce(sums)
    loss, tokens = sums.sum(0).tolist()
    found = {"all": loss / max(1, tokens)}
    return found | {name: s / max(1, n) for name, (s, n) in zip(names, sums.tolist(), strict=True) if name}


def teach(engine: Engine, batch: Passes) -> Lesson:
    """Forward and backward of this rank's passes of one global batch."""
    return Lesson(backward_batch(engine, batch), batch.work, whole=True)


def pretrain(
    config: PretrainConfig, *, tokens: Path, model: Path, out: Path, seed: int, survival: Survival | None = None
) -> None:
    """Train on every rank of an already started group; rank 0 writes `out/model`, metrics.jsonl and summary.json.

    Args:
        survival: where the history lies, and so on; a history in `out/history` without it.

    Raises:
        UserError: rows or batch do not give every rank at least one row, or the history is of something else.
        Stopped: a signal or the time limit ended it early; see train/loop.py.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from train.attention_layout import attention_layout
    from train.compiled import compile_where_it_pays
    from train.engine import Engine
    from train.model_folder import save_model

    started = time.perf_counter()
    survival = survival or Survival(history=out / "history")
    rank, ranks = world()
    check_fills(config.batch_rows, ranks, name="pretrain.batch_rows")
    torch.manual_seed(seed)
    telemetry = Telemetry(out, history=survival.history, active=rank == 0, fence=survival.fence)
    telemetry.status("starting")
    survival.begin("reading the data")
    rows = TokenRows(tokens / "train")
    if len(rows) < ranks:
        raise UserError(
            f"{len(rows)} rows of tokens",
            f"must be at least one for each of the {ranks} processes",
            "add text or lower tokens.row_tokens or --nproc",
        )
    held_out = TokenRows(tokens / "validation") if config.validation_rows else None
    survival.begin("loading the model")
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, use_safetensors=True, local_files_only=True
    )
    layout = attention_layout(network.get_decoder(), "packed")
    use_host_linear(network)
    set_dropout(network, config.dropout)
    if config.activation_checkpointing:
        recompute_layers(network)
    if config.compile:
        compile_where_it_pays(network)
    counts = parameter_counts(network)
    survival.begin("opening the history")
    history = History.enter(
        survival.history,
        Identity(
            phase="pretrain",
            seed=seed,
            config=flat("pretrain", config.model_dump(mode="json")),
            harmless=frozenset(f"pretrain.{name}" for name in config.HARMLESS),
            batch="pretrain.batch_rows",
            data={"tokens": rows.fingerprint},
            model=survival.inputs.get("model") or on_first_rank(lambda: folder_fingerprint(model)),
            sizes=counts,
        ),
        fence=survival.fence,
    )
    order = GlobalOrder([Source("tokens", len(rows))], fingerprint=rows.fingerprint, seed=seed)
    steps = total_steps(config, samples=len(rows), batch=history.order_batch)
    end = steps * history.order_batch
    history.open(
        order, phase="pretrain", end=end, batch=config.batch_rows, zero_stage=config.zero_stage, job=survival.job
    )
    together(lambda: telemetry.resume(history.done_steps))
    survival.at("starting the engine")
    engine = Engine(make_language_model(network, layout=layout, z_loss=config.z_loss), config)
    draws = Draws(order, batch=config.batch_rows, end=end, done_steps=history.done_steps, done=history.done)
    batches = TokenBatches(
        rows,
        micro_tokens=config.micro_batch_tokens,
        rank=rank,
        ranks=ranks,
        device=engine.device,
        padded=layout == "padded",
        recomputed=config.activation_checkpointing,
    )
    meter = Meter(
        telemetry,
        startup_s=time.perf_counter() - started,
        flops=Flops.of(network.config, bidirectional=False),
        device=engine.device,
        ranks=ranks,
        precision=config.precision,
    )
    before = dict(history.facts.get("phase", {}).get("validation", {}))
    loop = Loop(
        config,
        seed=seed,
        engine=engine,
        draws=draws,
        steps=steps,
        make=batches,
        teach=lambda batch: teach(engine, batch),
        meter=meter,
        survival=survival,
        history=history,
        out=out,
        remember=lambda: {"validation": before},
    )

    def validate(step: int) -> dict[str, float]:
        if held_out is None or not len(held_out):
            return {}
        survival.at("validating", step)
        telemetry.status("validating")
        found = validation_losses(
            engine, held_out, limit=config.validation_rows, micro_tokens=config.micro_batch_tokens
        )
        named = {"validation_loss" + (f"/{name}" if name != "all" else ""): value for name, value in found.items()}
        telemetry.log({"step": step, **named})
        return found

    if history.checkpoint is None:
        before |= validate(0)
    telemetry.status("training", total=loop.steps_left, notes=history.notes)
    loop.run()
    loop.pause("about to validate")
    after = validate(draws.steps)
    train_s = meter.elapsed_s
    loop.pause("saving the model")
    telemetry.status("saving")

    def write() -> None:
        save_model(engine, network, out / "model")
        if rank == 0:
            with disk_errors(out):
                copy_tokenizer(model, out / "model")

    together(write)
    loop.finish()
    telemetry.finish(
        meter.summary(
            "pretrain",
            config,
            ranks=ranks,
            device=engine.device,
            sizes=counts,
            train_s=train_s,
            save_s=meter.elapsed_s - train_s,
            layout=layout,
            validation_loss_before=before.get("all"),
            validation_loss_after=after.get("all"),
            validation_loss_by_source={name: [before[name], after[name]] for name in before if name != "all"},
            **loop.summary(),
        )
    )
