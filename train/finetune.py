"""Contrastive finetuning across ranks, under DeepSpeed.

Invariant: every query of the global batch sees the passages of all ranks, and the loss and gradient are those of one
process that holds the whole batch. Sequences are dealt to ranks by length; which rank encodes one changes nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.blend import PRESETS, blend_facts, check_blend, stages_of
from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.agree import on_first_rank, together
from train.backbone import copy_tokenizer, parameter_counts
from train.compiled import compile_where_it_pays
from train.draws import Draws
from train.dropout import set_dropout
from train.encoder import EncoderConfig, load_backbone, make_encoder, save_encoder_config
from train.flops import Flops, Work
from train.gather import world
from train.history.identity import Identity, flat, folder_fingerprint
from train.history.resume import History
from train.loop import Lesson, Loop
from train.meter import Meter
from train.objectives import ObjectiveName
from train.pair_stream import PairStream, load_blend, source_of
from train.phase import PhaseConfig, check_fills, total_steps
from train.recompute import recompute_layers
from train.survival import Survival
from train.telemetry import Telemetry
from train.unused_head import unused_parameters

if TYPE_CHECKING:
    import torch

    from train.attention_layout import Layout
    from train.engine import Engine
    from train.gradcache import ShareOfLoss, StepFacts
    from train.graph_memory import GraphMemory
    from train.pair_stream import Hand
    from train.relations import Relations

_log = logging.getLogger(__name__)


class FinetuneConfig(PhaseConfig):
    """[finetune]: contrastive finetuning on a blend of pair shards."""

    HARMLESS: ClassVar[frozenset[str]] = PhaseConfig.HARMLESS | {"kept_chunks", "layout", "blend_preset"}

    batch_pairs: Annotated[int, Field(gt=1)] = 64
    """Queries in one optimiser step, over all ranks; each sees the passages of all the others as negatives."""
    loss: ObjectiveName = "info_nce"
    """`info_nce` over the texts of all ranks; `margin` is the paper's pairwise loss and `triplet` compares a positive
    with each stored negative; `cosent` orders (query, passage) pairs by their teacher scores."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Divides the cosines of InfoNCE and CoSENT; the paper took 0.02."""
    margin: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Cosine distance of `margin` and `triplet`; 0.5 as in the paper."""
    symmetric: bool = False
    """Also rank the queries for each positive, with half of the weight (InfoNCE only)."""
    query_negatives: bool = False
    """Other queries are negatives of a query too (InfoNCE only; Li et al., 2023)."""
    passage_negatives: bool = False
    """Other passages are negatives of the positive too (InfoNCE only; Li et al., 2023)."""
    positives: Annotated[int, Field(ge=1)] = 1
    """Positives of a query used in one step, where it has several; each counts for its share of the query."""
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    """Stored negatives used for each query, drawn anew each epoch; rows with fewer use what they have."""
    negative_order: Literal["cycle", "easy-to-hard"] = "cycle"
    """`cycle` lets a row's negatives take turns; `easy-to-hard` goes from the lowest score to the highest as training
    goes on, for rows that were mined with the policy of that name."""
    false_negative_margin: Annotated[float, Field(ge=-1, le=2)] | None = None
    """Hide a negative whose cosine passes the positive's by more than this (InfoNCE only); Qwen3-Embedding took 0.1.
    Texts that are known to be positives, or of the same document, are always hidden, across all ranks."""
    matryoshka: list[Annotated[int, Field(gt=0)]] = []  # noqa: RUF012 - frozen by pydantic
    """Also train these shorter prefixes of the vector, e.g. [256, 64], with equal weights; empty: the whole only."""
    homogeneous: bool = False
    """Each batch holds pairs of one source, on all ranks at once: negatives are then of the same kind."""
    avoid_duplicates: bool = True
    """Move pairs that share a text with another of their batch to a batch nearby; each is still used once an epoch."""
    kept_chunks: Annotated[int, Field(ge=1)] | Literal["auto", "all"] = "auto"
    """Chunks of `micro_batch_tokens` whose autograd graph is kept; the others are encoded twice (GradCache). `auto`: as
    many as memory allows, `all`: the plain step, 1: least memory. It never changes the result."""
    layout: Literal["packed", "padded"] = "packed"
    """`packed` computes no padding; models that cannot be packed are padded, with a line in the log."""
    blend: dict[str, Annotated[float, Field(ge=0, le=1)]] = {"pairs": 1.0, "synth": 1.0, "mine": 0.3}  # noqa: RUF012 - frozen by pydantic
    """Share of each source that an epoch uses; 100 % synthetic and 30 % mined as in the paper; absent ones drop out.
    `"pairs:legal_*" = 0.5` is for sources inside a stage's pairs; the most specific entry wins, 0 leaves out."""
    blend_preset: Literal["paper"] | None = None
    """Writes `blend`: `paper` is 100 % synthetic and 30 % mined, and nothing else."""
    blend_cap: Annotated[int, Field(ge=1)] | None = None
    """Most rows that a source gives to an epoch (each value of the pairs' column `source` counts), so that a large one
    does not drown the rest; other rows each epoch."""
    blend_temperature: Annotated[float, Field(ge=1)] | None = None
    """T takes n^(1/T) rows of a source of n, times one factor for all, the largest that repeats no row: 1 as they are,
    2 by the square root; small sources then count for more. The smallest source sets the factor."""

    @field_validator("blend")
    @classmethod
    def _blend_is_known(cls, blend: dict[str, float]) -> dict[str, float]:
        check_blend(blend)
        return blend

    @model_validator(mode="before")
    @classmethod
    def _preset_is_the_blend(cls, given: Any) -> Any:
        preset = given.get("blend_preset") if isinstance(given, dict) else None
        if not isinstance(preset, str) or preset not in PRESETS:
            return given
        if given.get("blend", PRESETS[preset]) != PRESETS[preset]:
            raise ValueError(
                f"finetune.blend_preset = {preset!r}: and finetune.blend say different things. Fix: remove one of them"
            )
        return {**given, "blend": PRESETS[preset]}

    @property
    def blended(self) -> set[str]:
        """The stages whose pairs the blend takes."""
        return stages_of(self.blend)

    def essentials(self) -> dict[str, Any]:
        """What the result depends on, as JSON values; what is unset is left out, as before it could be set."""
        found = super().essentials()
        return {k: v for k, v in found.items() if v is not None or k not in ("blend_cap", "blend_temperature")}

    @model_validator(mode="after")
    def _triplets_need_negatives(self) -> FinetuneConfig:
        if self.loss == "triplet" and not self.hard_negatives:
            raise ValueError(
                "finetune.loss = 'triplet': needs stored negatives. Fix: set finetune.hard_negatives to 1 or more"
            )
        return self


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
) -> None:
    """Train on every rank of an already started group; rank 0 writes `out/model`, metrics.jsonl and summary.json.

    Args:
        sources: pair shard folders by name (`pairs`, `mine`, `synth`).
        model: a model folder with tokenizer; an output head in it is left behind.
        survival: where the history lies, and so on; a history in `out/history` without it.

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
    )
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
