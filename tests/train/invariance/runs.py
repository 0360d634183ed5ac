"""What is run beside the cases: wrong exchanges, unfair dealing, damaged weights, pretraining, twenty steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from invariance.case_run import WatchedEngine, hand_of, zero_settings
from invariance.collectives import Collectives
from invariance.models import model_folder
from safetensors.torch import save_file

import train.engine
import train.finetune
from train.attention_layout import attention_layout
from train.draws import Draw
from train.encoder import EncoderConfig, load_backbone, make_encoder
from train.engine import Step
from train.finetune import finetune, train_step
from train.finetune_config import FinetuneConfig
from train.gather import sum_gradients, world
from train.graph_memory import GraphMemory
from train.pair_stream import Hand, PairStream
from train.pretrain import PretrainConfig, pretrain

STEPS = 20
WATCHED_EVERY = 8
FINETUNE: dict[str, Any] = {
    "precision": "fp32", "batch_pairs": 10, "positives": 2, "hard_negatives": 2, "max_steps": STEPS, "epochs": 100.0,
    "learning_rate": 2e-3, "warmup_steps": 4, "schedule": "cosine", "gradient_clip": 0.5, "temperature": 0.1,
    "kept_chunks": 1, "micro_batch_tokens": 250, "blend": {"pairs": 1.0},
}  # fmt: skip
PRETRAIN: dict[str, Any] = {
    "precision": "fp32", "batch_rows": 7, "max_steps": 2, "micro_batch_tokens": 90, "gradient_clip": 0.0,
    "learning_rate": 1e-3, "warmup_steps": 0, "validation_rows": 7,
}  # fmt: skip


def wrong_scale(gradients: torch.Tensor, hands: Sequence[Sequence[int]]) -> torch.Tensor:
    """The usual mistake: a mean over ranks where a sum belongs."""
    return sum_gradients(gradients, hands) / len(hands)


def detached(gradients: torch.Tensor, hands: Sequence[Sequence[int]]) -> torch.Tensor:
    """The other usual mistake: what other ranks' losses say about this rank's texts is lost."""
    return gradients[torch.tensor(hands[world()[0]], device=gradients.device)]


def lopsided(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Everything to rank 0, but one text in the middle for each of the others, which then have too few chunks."""
    others = [[len(costs) // 2 + rank] for rank in range(1, ranks)]
    given = {hand[0] for hand in others}
    return [[i for i in range(len(costs)) if i not in given], *others]


def spreads_nan(folder: Path) -> dict[str, Any]:
    """Weights that are damaged on the last rank alone. Returns every rank's share of the loss, as text."""
    rank, ranks = world()
    home = model_folder(folder / "models", "llama")
    encoder = EncoderConfig(max_tokens=32)
    backbone = load_backbone(home, bidirectional=False, precision="fp32")
    layout = attention_layout(backbone, "packed")
    config = FinetuneConfig(precision="fp32", zero_stage=0)
    engine = WatchedEngine(make_encoder(backbone, encoder, layout), config)
    engine.collectives = Collectives()
    if rank == ranks - 1:
        with torch.no_grad():
            backbone.norm.weight[3] = float("nan")
    hand = hand_of(folder, home, encoder, negatives=1)
    share = train_step(engine, hand, config, GraphMemory("all", device=engine.device), layout=layout).share
    engine.close()
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, str(share))
    return {"shares": found}


class KeepingEngine(WatchedEngine):
    """Keeps the gradients of the first step."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.collectives = Collectives()
        self.first: dict[str, torch.Tensor] | None = None
        KeepingEngine.last = self

    def step(self, admit: Callable[[float], bool] | None = None) -> Step:
        if self.first is None:
            self.first = self.full_gradients()
        return super().step(admit)

    last: KeepingEngine


def small_pretraining(folder: Path, out: Path, stage: int) -> dict[str, Any]:
    """Two steps of continued pretraining on rows that no number of ranks divides; the gradients of the first."""
    config = PretrainConfig(**PRETRAIN, zero_stage=stage)
    out.mkdir(exist_ok=True)
    with zero_settings(), mock.patch.object(train.engine, "Engine", KeepingEngine):
        pretrain(config, tokens=folder / "token_rows", model=folder / "model", out=out, seed=0)
    engine = KeepingEngine.last
    if dist.get_rank() == 0 and engine.first is not None:
        save_file({name: g.contiguous() for name, g in engine.first.items()}, out.with_suffix(".safetensors"))
    engine.close()
    return {}


class RecordingStream(PairStream):
    """Remembers which rows and which token sequences were handed out."""

    seen: dict[int, Any]

    def __call__(self, draw: Draw) -> Hand:
        hand = super().__call__(draw)
        rows = [(row.query, tuple(row.passages)) for _, row in self.rows(draw)]
        RecordingStream.seen[draw.step] = (rows, [tuple(ids) for ids in hand.ids])
        return hand


def small_training(folder: Path, out: Path, stage: int) -> dict[str, Any]:
    """The real finetuning for twenty steps, from pair shards to saved weights. Returns what was trained on.

    On one rank nothing is watched, on several the retrieval of the model is: the same weights must come out.
    """
    RecordingStream.seen = {}
    out.mkdir(exist_ok=True)
    watched = [folder / "watched"] if world()[1] > 1 else []
    config = FinetuneConfig(**FINETUNE, zero_stage=stage, eval_every_steps=WATCHED_EVERY, eval_documents=50)
    encoder = EncoderConfig(max_tokens=32, projection=24)
    with (
        mock.patch.object(train.finetune, "PairStream", RecordingStream),
        mock.patch.object(train.engine, "Engine", KeepingEngine),
    ):
        finetune(
            config,
            encoder,
            sources={"pairs": folder / "many_pairs"},
            model=folder / "models" / "llama",
            out=out,
            seed=3,
            watched=watched,
        )
    KeepingEngine.last.close()
    ranks = world()[1]
    found: list[Any] = [None] * ranks
    dist.all_gather_object(found, RecordingStream.seen)
    steps = range(1, STEPS + 1)
    return {
        "rows": [found[0][step][0] for step in steps],
        "ranks_agree": all(part[step][0] == found[0][step][0] for part in found for step in steps),
        "sequences": [sorted(ids for part in found for ids in part[step][1]) for step in steps],
    }
