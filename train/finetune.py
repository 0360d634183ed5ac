"""Contrastive finetuning across ranks, under DeepSpeed.

Invariant: every query of the global batch sees the passages of all ranks, and the loss and gradient are those of one
process that holds the whole batch. Sequences are dealt to ranks by length; which rank encodes one changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.blend import blend_facts
from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.agree import on_first_rank, together
from train.backbone import copy_tokenizer, parameter_counts
from train.compiled import compile_where_it_pays
from train.draws import Draws
from train.dropout import set_dropout
from train.encoder import EncoderConfig, load_backbone, make_encoder, save_encoder_config
from train.finetune_config import FinetuneConfig
from train.flops import Flops, Work
from train.gather import world
from train.history.identity import Identity, flat, folder_fingerprint
from train.history.resume import History
from train.lesson import Lesson
from train.loop import Loop
from train.meter import Meter
from train.pair_stream import PairStream, load_blend, source_of
from train.phase import check_fills, total_steps
from train.recompute import recompute_layers
from train.survival import Survival
from train.telemetry import Telemetry
from train.unused_head import unused_parameters
from train.watch import Watch, Watching, draw_watched

if TYPE_CHECKING:
    import torch

    from train.attention_layout import Layout
    from train.engine import Engine
    from train.gradcache import ShareOfLoss, StepFacts
    from train.graph_memory import GraphMemory
    from train.pair_stream import Hand
    from train.relations import Relations

_log = logging.getLogger(__name__)


def objective_of(config: FinetuneConfig, relations: Relations, *, share: tuple[int, int]) -> ShareOfLoss:
    """The loss of a recipe over the embeddings of one global batch.

    Args:
        relations: of the batch, on the device of the embeddings. share: (rank, ranks).
    """
    from train.objectives.cosent import cosent
    from train.objectives.info_nce import info_nce
    from train.objectives.margin import margin_contrastive
    from train.objectives.matryoshka import matryoshka
    from train.objectives.triplet import triplet

    known: dict[str, Any] = {
        "info_nce": partial(
            info_nce,
            temperature=config.temperature,
            symmetric=config.symmetric,
            query_negatives=config.query_negatives,
            passage_negatives=config.passage_negatives,
            false_negative_margin=config.false_negative_margin,
        ),
        "margin": partial(margin_contrastive, margin=config.margin),
        "triplet": partial(triplet, margin=config.margin),
        "cosent": partial(cosent, temperature=config.temperature),
    }
    loss = known[config.loss]
    if config.matryoshka:
        loss = partial(matryoshka, loss, config.matryoshka)
    queries = len(relations.query_ids)

    def share_of_loss(embeddings: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = loss(embeddings[:queries], embeddings[queries:], relations, share=share)
        return found

    return share_of_loss


def train_step(
    engine: Engine, hand: Hand, config: FinetuneConfig, memory: GraphMemory, *, layout: Layout = "packed"
) -> StepFacts:
    """Forward and backward of one global batch; see train/gradcache.py. The caller applies `engine.step()`."""
    from train.gradcache import contrastive_step

    objective = objective_of(config, hand.relations.to(engine.device), share=world())
    facts = contrastive_step(engine, hand, objective, memory, budget_tokens=config.micro_batch_tokens, layout=layout)
    if config.activation_checkpointing:  # every backward pass computes its layers once more
        facts = replace(facts, work=facts.work + Work.of([], again=[len(ids) for ids in hand.ids]))
    return facts


def teach(
    engine: Engine, hand: Hand, config: FinetuneConfig, memory: GraphMemory, *, layout: Layout = "packed"
) -> Lesson:
    """This rank's part of one global batch, and what the record says of it."""
    facts = train_step(engine, hand, config, memory, layout=layout)
    return Lesson(
        facts.share,
        facts.work,
        parts={"gather": facts.gather_s},
        notes={
            "truncated": hand.truncated,
            "chunks": facts.chunks,
            "kept_chunks": facts.kept,
            "duplicates_in_batch": hand.draw.duplicates,
            "source": "+".join(hand.sources),
        },
    )


def finetune(
    config: FinetuneConfig,
    encoder: EncoderConfig,
    *,
    sources: Mapping[str, Path],
    model: Path,
    out: Path,
    seed: int,
    survival: Survival | None = None,
    watched: Sequence[Path] = (),
) -> None:
    """Train on every rank of an already started group; rank 0 writes `out/model`, metrics.jsonl and summary.json.

    Args:
        sources: pair shard folders by name (`pairs`, `mine`, `synth`).
        model: a model folder with tokenizer; an output head in it is left behind.
        survival: where the history lies, and so on; a history in `out/history` without it.
        watched: evaluation sets that `eval_every_steps` draws from.

    Raises:
        UserError: too few pairs, or the history is of something else.
        Stopped: a signal or the time limit ended it early; see train/loop.py.
    """
    import torch
    from transformers import AutoTokenizer

    from train.attention_layout import attention_layout
    from train.engine import Engine
    from train.graph_memory import GraphMemory
    from train.model_folder import save_encoder
    from train.objectives.matryoshka import check_dims

    started = time.perf_counter()
    survival = survival or Survival(history=out / "history")
    rank, ranks = world()
    check_fills(config.batch_pairs, ranks, name="finetune.batch_pairs")
    torch.manual_seed(seed)
    telemetry = Telemetry(out, history=survival.history, active=rank == 0, fence=survival.fence)
    telemetry.status("starting")
    survival.begin("reading the data")
    shards, portions = load_blend(config.blend, sources, cap=config.blend_cap, temperature=config.blend_temperature)
    blend = [source_of(portion) for portion in portions]
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    survival.begin("loading the model")
    backbone = load_backbone(model, bidirectional=encoder.bidirectional, precision="fp32")
    check_dims(config.matryoshka, encoder.projection or backbone.config.hidden_size)
    layout = attention_layout(backbone, config.layout)
    set_dropout(backbone, config.dropout)
    if config.activation_checkpointing:
        recompute_layers(backbone)
    if config.compile:
        compile_where_it_pays(backbone)
    counts, left_out = parameter_counts(backbone), unused_parameters(model)
    survival.begin("opening the history")
    history = History.enter(
        survival.history,
        Identity(
            phase="finetune",
            seed=seed,
            config=flat("finetune", config.model_dump(mode="json")) | flat("encoder", encoder.model_dump(mode="json")),
            harmless=frozenset(f"finetune.{name}" for name in config.HARMLESS),
            batch="finetune.batch_pairs",
            data={source.name: shard.fingerprint for source, shard in zip(blend, shards, strict=True)},
            model=survival.inputs.get("model") or on_first_rank(lambda: folder_fingerprint(model)),
            sizes=counts,
        ),
        fence=survival.fence,
    )
    stream = PairStream(
        shards,
        blend,
        tokenizer=tokenizer,
        encoder=encoder,
        seed=seed,
        order_batch=history.order_batch,
        positives=config.positives,
        hard_negatives=config.hard_negatives,
        easy_to_hard=config.negative_order == "easy-to-hard",
        homogeneous=config.homogeneous,
        avoid_duplicates=config.avoid_duplicates,
        rank=rank,
        ranks=ranks,
    )
    if stream.order.epoch_rows < ranks:
        raise UserError(
            f"{stream.order.epoch_rows} pairs",
            f"must be at least one for each of the {ranks} processes",
            "add pairs or lower --nproc",
        )
    steps = total_steps(config, samples=stream.order.epoch_rows, batch=history.order_batch)
    end = stream.end = steps * history.order_batch
    history.open(
        stream.order,
        phase="finetune",
        end=end,
        batch=config.batch_pairs,
        zero_stage=config.zero_stage,
        job=survival.job,
    )
    together(lambda: telemetry.resume(history.done_steps))
    survival.at("starting the engine")
    flops = Flops.of(backbone.config, bidirectional=encoder.bidirectional)
    module = make_encoder(backbone, encoder, layout=layout)
    engine = Engine(module, config)
    memory = GraphMemory(config.kept_chunks, device=engine.device)
    remembered = history.facts.get("phase", {})
    truncated = int(remembered.get("truncated", 0))
    memory.load(remembered.get("graph_memory"))
    meter = Meter(
        telemetry,
        startup_s=time.perf_counter() - started,
        flops=flops,
        device=engine.device,
        ranks=ranks,
        precision=config.precision,
    )

    watching = None
    if config.eval_every_steps and watched:
        samples = draw_watched(
            watched, queries=config.eval_queries, documents=config.eval_documents, seed=seed
        )  # fmt: skip
        watch = Watch(samples, tokenizer=tokenizer, encoder=encoder, budget_tokens=config.micro_batch_tokens)
        watching = Watching(
            lambda: watch.measure(engine), every=config.eval_every_steps, meter=meter, telemetry=telemetry,
            survival=survival,
        )  # fmt: skip

    def learn(hand: Hand) -> Lesson:
        nonlocal truncated
        truncated += hand.truncated
        return teach(engine, hand, config, memory, layout=layout)

    loop = Loop(
        config,
        seed=seed,
        engine=engine,
        draws=Draws(
            stream.order,
            batch=config.batch_pairs,
            end=end,
            arrangement=stream.arrangement,
            done_steps=history.done_steps,
            done=history.done,
        ),
        steps=steps,
        make=stream,
        teach=learn,
        meter=meter,
        survival=survival,
        history=history,
        out=out,
        remember=lambda: {"truncated": truncated, "graph_memory": memory.state()},
        watching=watching,
    )
    if watching is not None and history.checkpoint is None:
        watching.after(0)
    telemetry.status("training", total=loop.steps_left, notes=history.notes)
    loop.run()
    train_s = meter.elapsed_s
    if truncated:
        _log.warning("%d sequences were cut to encoder.max_tokens = %d tokens", truncated, encoder.max_tokens)
    loop.pause("saving the model")
    telemetry.status("saving")

    def write() -> None:
        save_encoder(engine, module, out / "model")
        if rank == 0:
            with disk_errors(out):
                copy_tokenizer(model, out / "model")
                save_encoder_config(encoder, out / "model")

    together(write)
    loop.finish()
    telemetry.finish(
        meter.summary(
            "finetune",
            config,
            ranks=ranks,
            device=engine.device,
            sizes=counts,
            train_s=train_s,
            save_s=meter.elapsed_s - train_s,
            layout=layout,
            truncated=truncated,
            blend=blend_facts(portions),
            head_parameters_left_out=left_out.parameters,
            head_training_bytes_left_out=left_out.training_bytes,
            **loop.summary(),
        )
    )
