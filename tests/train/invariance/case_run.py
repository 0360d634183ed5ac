"""One case on a rank: the real engine, the real step, the gradients of all parameters."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from invariance.batch import Row, global_batch
from invariance.cases import Case, encoder_settings, finetune_settings
from invariance.collectives import Collectives
from invariance.models import model_folder
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from data_prep.files import content_id
from train import engine as engine_module
from train.attention_layout import attention_layout
from train.draws import Draw
from train.encoder import EncoderConfig, load_backbone, make_encoder
from train.engine import Engine, Step
from train.finetune import train_step
from train.finetune_config import FinetuneConfig
from train.gather import world
from train.graph_memory import GraphMemory
from train.pair_stream import Hand, PairStream, load_sources
from train.recompute import recompute_layers
from train.relations import Chosen


class WatchedEngine(Engine):
    """An engine that says in which phase a collective is called."""

    collectives: Collectives

    def __call__(self, *args: Any) -> Any:
        with self.collectives.phase("forward"):
            return super().__call__(*args)

    @contextmanager
    def accumulation(self) -> Iterator[None]:
        with self.collectives.phase("backward"), super().accumulation():
            yield

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        with self.collectives.phase("backward"):
            super().backward(loss, last=last)

    def step(self, admit: Callable[[float], bool] | None = None) -> Step:
        with self.collectives.phase("step"):
            return super().step(admit)

    def close(self) -> None:
        """Let go of hooks and buffers: another engine follows in this process."""
        self._engine.destroy()


@contextmanager
def zero_settings(**changed: Any) -> Iterator[None]:
    """Change keys of DeepSpeed's `zero_optimization`.

    ZeRO-3 keeps weights below a threshold on every rank; it is set to 0, so that a tiny model is treated like a large one.
    """
    read = engine_module.read_ds_config

    def read_changed(config: Any) -> dict[str, Any]:
        settings = read(config)
        if settings["zero_optimization"]["stage"] == 3:
            settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        settings["zero_optimization"] |= changed
        return settings

    with mock.patch.object(engine_module, "read_ds_config", read_changed):
        yield


def count_runs(backbone: Any) -> list[int]:
    """A counter of the forward passes of the model's first layer, repeated ones included."""
    runs = [0]

    def ran(*_: Any) -> None:
        runs[0] += 1

    layers = backbone.encoder.layer if hasattr(backbone, "encoder") else backbone.layers
    # the attention inside: activation checkpointing repeats it, but calls the layer once
    next(iter(layers[0].children())).register_forward_pre_hook(ran)
    return runs


def chosen(row: Row) -> Chosen:
    """The row in the form that the trainer deals with."""
    return Chosen(
        query=row.query,
        query_id=content_id(row.query),
        passages=[p.text for p in row.passages],
        passage_ids=[content_id(p.text) for p in row.passages],
        positives=len(row.positives),
        known_ids=[content_id(text) for text in row.known_texts],
        documents=[p.document for p in row.passages],
        known_documents=list(row.known_documents),
        scores=[p.score for p in row.passages],
        source="test",
    )


def hand_of(folder: Path, home: Path, encoder: EncoderConfig, negatives: int) -> Hand:
    """This rank's part of the global batch."""
    rank, ranks = world()
    shards, sources = load_sources({"pairs": 1.0}, {"pairs": folder / "pairs"})
    stream = PairStream(
        shards, sources, tokenizer=AutoTokenizer.from_pretrained(home), encoder=encoder, seed=0, order_batch=2, positives=1,
        hard_negatives=1, homogeneous=False, avoid_duplicates=False, rank=rank, ranks=ranks,
    )  # fmt: skip
    batch = [chosen(row) for row in global_batch(negatives)]
    draw = Draw(step=1, first=0, end=len(batch), positions=range(len(batch)), samples=[])
    return stream.hand(batch, draw=draw, samples=[])


def run_case(case: Case, folder: Path, gradients_to: Path, **zero: Any) -> dict[str, Any]:
    """One forward, backward and optimiser step. Returns what is to be told of it.

    Args:
        zero: see `zero_settings`.
    """
    config = FinetuneConfig(**finetune_settings(case.settings))
    encoder = EncoderConfig(**encoder_settings(case.settings))
    home = model_folder(folder / "models", case.settings["model"])
    started = time.perf_counter()
    backbone = load_backbone(home, bidirectional=encoder.bidirectional, precision="fp32")
    layout = attention_layout(backbone, config.layout)
    if config.activation_checkpointing:
        recompute_layers(backbone)
    module: Any = make_encoder(backbone, encoder, layout=layout)
    if module.projection is not None:
        module.projection.load_state_dict(load_file(folder / "models" / "projection.safetensors"))
    layer_runs = count_runs(backbone)
    collectives = Collectives()
    with zero_settings(**zero):
        engine = WatchedEngine(module, config)
    engine.collectives = collectives
    memory = GraphMemory(config.kept_chunks, device=engine.device)
    hand = hand_of(folder, home, encoder, config.hard_negatives)
    with collectives:
        facts = train_step(engine, hand, config, memory, layout=layout)
    loss = torch.tensor(facts.share, dtype=torch.float64, device=engine.device)
    dist.all_reduce(loss)
    gradients = engine.full_gradients()
    with collectives:
        norm = engine.step().norm
    if dist.get_rank() == 0:
        save_file({name: g.contiguous() for name, g in gradients.items()}, gradients_to)
    engine.close()
    del engine, module, backbone
    gc.collect()
    return {
        "loss": float(loss),
        "norm": norm,
        "layout": layout,
        "chunks": facts.chunks,
        "kept": facts.kept,
        "layer_runs": layer_runs[0],
        "collectives": collectives.table(),
        "seconds": round(time.perf_counter() - started, 2),
    }
