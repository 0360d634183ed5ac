"""Contrastive finetuning across ranks, under DeepSpeed.

Invariant: every query of the global batch sees the passages of all ranks, and the loss and gradient are those of one
process that holds the whole batch. Rows are dealt to ranks by length; which rank computes a row changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data_prep.errors import UserError
from data_prep.shards import Shards
from train.backbone import copy_tokenizer, parameter_counts
from train.cursor import GlobalOrder, Source
from train.encoder import EncoderConfig, load_backbone, make_encoder, save_encoder_config, tokenise
from train.meter import Meter
from train.negatives import id_table, number_of, world
from train.objectives import info_nce, margin_contrastive
from train.packing import deal, pack
from train.phase import PhaseConfig, check_divides, total_steps
from train.telemetry import Telemetry

if TYPE_CHECKING:
    import torch

    from train.engine import Engine

Row = dict[str, Any]
PairSource = Literal["pairs", "mine", "synth"]


class FinetuneConfig(PhaseConfig):
    """[finetune]: contrastive finetuning on a blend of pair shards."""

    batch_pairs: Annotated[int, Field(gt=1)] = 64
    """Queries in one optimiser step, over all ranks; each sees the passages of all the others as negatives."""
    loss: Literal["info_nce", "margin"] = "info_nce"
    """`info_nce` over all ranks; `margin` is the paper's pairwise loss, which uses the stored negatives alone."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Divides the cosines of InfoNCE; the paper took 0.02."""
    margin: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Cosine distance beyond which the `margin` loss leaves a negative alone; 0.5 as in the paper."""
    symmetric: bool = False
    """Also rank the queries for each passage (InfoNCE only)."""
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    """Stored negatives used for each query, drawn anew each epoch; rows with fewer use what they have."""
    blend: dict[PairSource, Annotated[float, Field(gt=0, le=1)]] = {"pairs": 1.0, "synth": 1.0, "mine": 0.3}  # noqa: RUF012 - frozen by pydantic
    """Share of each source that an epoch uses; 100 % synthetic and 30 % mined as in the paper; absent ones drop out."""


def load_sources(config: FinetuneConfig, folders: Mapping[str, Path]) -> tuple[list[Shards], list[Source], str]:
    """The shards of the blend, their shares, and the fingerprint of all. Raises `UserError` where nothing is left."""
    shards, sources = [], []
    for name, share in sorted(config.blend.items()):
        if name in folders:
            opened = Shards(folders[name], "pairs")
            if opened.rows:
                shards.append(opened)
                sources.append(Source(name, opened.rows, share))
    if not sources:
        raise UserError(
            f"finetune.blend = {sorted(config.blend)}",
            f"none of these sources has pairs (there are: {sorted(folders) or 'none'})",
            "switch on [mine], [synth] or [pairs], or name an existing source",
        )
    return shards, sources, "/".join(s.fingerprint for s in shards)


def choose(row: Row, *, position: int, hard_negatives: int) -> Row:
    """The texts that this use of a row trains on: one positive and up to `hard_negatives` negatives.

    The choice walks through the row's lists with the position in the global order, so it is the same on any number of
    ranks and after any restart.
    """
    positive = position % len(row["positives"])
    negatives = row["negatives"] or []
    picked = [(position + j) % len(negatives) for j in range(min(hard_negatives, len(negatives)))]
    return {
        "query": row["query"],
        "passages": [row["positives"][positive], *(negatives[j] for j in picked)],
        "passage_ids": [row["positive_ids"][positive], *(row["negative_ids"][j] for j in picked)],
        "known_ids": [*row["positive_ids"], row["query_id"]],
        "query_id": row["query_id"],
    }


def local_loss(
    engine: Engine, tokenizer: Any, mine: list[Row], config: FinetuneConfig, encoder: EncoderConfig
) -> tuple[torch.Tensor, int, int]:
    """(loss, tokens, sequences) of this rank's rows; the loss averages over ranks to that of the global batch."""
    import torch

    slots = 1 + config.hard_negatives
    queries = tokenise(tokenizer, [r["query"] for r in mine], encoder, "query")
    texts = [(i, j, t) for i, r in enumerate(mine) for j, t in enumerate(r["passages"])]
    passages = tokenise(tokenizer, [t for *_, t in texts], encoder, "passage")
    stream = pack(queries + passages, device=engine.device)
    vectors = engine(stream)  # one forward for queries and passages: ZeRO-3 gathers the weights once
    own, found = vectors[: len(queries)], vectors[len(queries) :]
    places = torch.tensor([i * slots + j for i, j, _ in texts], device=vectors.device)
    table = (
        vectors.new_zeros(len(mine) * slots, vectors.shape[1]).index_copy(0, places, found).view(len(mine), slots, -1)
    )
    passage_ids = id_table([r["passage_ids"] for r in mine], width=slots).to(vectors.device)
    if config.loss == "margin":
        loss = margin_contrastive(own, table, passage_ids=passage_ids, margin=config.margin)
    else:
        loss = info_nce(
            own,
            table,
            passage_ids=passage_ids,
            known_ids=id_table([r["known_ids"] for r in mine]).to(vectors.device),
            query_ids=torch.tensor([number_of(r["query_id"]) for r in mine], device=vectors.device),
            temperature=config.temperature,
            symmetric=config.symmetric,
        )
    return loss, sum(stream.lengths), len(stream.lengths)


def rows_of_rank(rows: list[Row], rank: int, ranks: int) -> list[Row]:
    """This rank's rows of a global batch, dealt by length in characters (known without tokenising the others')."""
    costs = [len(r["query"]) + sum(len(p) for p in r["passages"]) for r in rows]
    return [rows[i] for i in sorted(deal(costs, ranks)[rank])]


def finetune(
    config: FinetuneConfig, encoder: EncoderConfig, *, sources: Mapping[str, Path], model: Path, out: Path, seed: int
) -> None:
    """Train on every rank of an already started group; rank 0 writes `out/model`, metrics.jsonl and summary.json.

    Args:
        sources: pair shard folders by name (`pairs`, `mine`, `synth`).
        model: a model folder with tokenizer; an output head in it is left behind.
    """
    import torch
    import torch.distributed as dist
    from transformers import AutoTokenizer

    from train.checkpoint import save_model
    from train.engine import Engine

    started = time.perf_counter()
    rank, ranks = world()
    check_divides(config.batch_pairs, ranks, name="finetune.batch_pairs")
    torch.manual_seed(seed)
    telemetry = Telemetry(out, active=rank == 0)
    telemetry.status("starting")
    shards, blend, fingerprint = load_sources(config, sources)
    order = GlobalOrder(blend, fingerprint=fingerprint, seed=seed)
    if order.epoch_rows < ranks:
        raise UserError(
            f"{order.epoch_rows} pairs",
            f"must be at least one for each of the {ranks} processes",
            "add pairs or lower --nproc",
        )
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    backbone = load_backbone(model, bidirectional=encoder.bidirectional, precision="fp32")
    if config.activation_checkpointing:
        backbone.gradient_checkpointing_enable()
    counts = parameter_counts(backbone)
    steps = total_steps(config, samples=order.epoch_rows, batch=config.batch_pairs)
    engine = Engine(make_encoder(backbone, encoder), config, steps=steps)
    meter = Meter(telemetry, startup_s=time.perf_counter() - started)
    telemetry.status("training", total=steps)
    for step in range(steps):
        meter.begin_step()
        first = step * config.batch_pairs
        rows = [
            choose(shards[source].take([row])[0], position=first + j, hard_negatives=config.hard_negatives)
            for j, (source, row) in enumerate(order.batch(step, config.batch_pairs))
        ]
        rate = engine.rate
        mine = rows_of_rank(rows, rank, ranks)
        loss, tokens, texts = local_loss(engine, tokenizer, mine, config, encoder)
        engine.backward(loss, last=True)
        norm = engine.step()
        shared = torch.tensor([float(loss.detach()) / ranks, tokens, texts], dtype=torch.float64, device=engine.device)
        if ranks > 1:
            dist.all_reduce(shared)
        meter.end_step(
            loss=float(shared[0]),
            rate=rate,
            norm=norm,
            tokens=int(shared[1]),
            sequences=int(shared[2]),
            pairs=config.batch_pairs,
        )
    train_s = meter.elapsed_s
    telemetry.status("saving")
    save_model(engine, backbone, out / "model")
    if rank == 0:
        copy_tokenizer(model, out / "model")
        save_encoder_config(encoder, out / "model")
    telemetry.finish(
        meter.summary(
            "finetune",
            config,
            ranks=ranks,
            device=engine.device,
            sizes=counts,
            train_s=train_s,
            save_s=meter.elapsed_s - train_s,
        )
    )
