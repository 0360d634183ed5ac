"""rumpun's side of a comparison: the stream, the step and the engine of its two training phases, on one rank.

A turn includes making the batches; on a GPU they are made ahead, as in train/finetune.py and train/pretrain.py.
"""

from __future__ import annotations

import os
import socket
from itertools import count
from pathlib import Path
from typing import Any

from _peer_job import ahead, memory
from _turns import Gate, Job


def start_one_rank() -> None:
    """A process group of this process alone, as the launcher would make it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    from train.engine import start_ranks

    start_ranks()


def rumpun(job: Job, gate: Gate) -> None:
    """Contrastive finetuning. A job holds `finetune`, `encoder`, `model` and `pairs`.

    `host_linear = false` leaves the linear maps to PyTorch's default library (see train/host_linear.py).
    """
    start_one_rank()
    import torch
    from _peer_texts import draws_of, pair_stream
    from transformers import AutoTokenizer

    from train import host_linear
    from train.attention_layout import attention_layout
    from train.backbone import copy_tokenizer
    from train.encoder import EncoderConfig, load_backbone, make_encoder, save_encoder_config
    from train.engine import Engine
    from train.finetune import teach
    from train.finetune_config import FinetuneConfig
    from train.flops import Flops, Work
    from train.graph_memory import GraphMemory
    from train.lesson import summed
    from train.loader import Prefetch
    from train.model_folder import save_encoder
    from train.phase import rate_factor

    torch.manual_seed(job["seed"])
    config, encoder = FinetuneConfig(**job["finetune"]), EncoderConfig(**job["encoder"])
    model = Path(job["model"])
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    stream = pair_stream(Path(job["pairs"]), tokenizer, config, encoder, seed=job["seed"])
    if not job.get("host_linear", True):
        host_linear.onednn_is_better = lambda: False
    backbone = load_backbone(model, bidirectional=encoder.bidirectional, precision="fp32")
    layout = attention_layout(backbone, config.layout)
    flops = Flops.of(backbone.config, bidirectional=encoder.bidirectional)
    module = make_encoder(backbone, encoder, layout=layout)
    engine = Engine(module, config)
    graphs = GraphMemory(config.kept_chunks, device=engine.device)
    done = [Work()]

    def tell() -> dict[str, Any]:
        work, done[0] = done[0], Work()
        found = {**memory(job["device"]), "tokens": work.tokens, "again_tokens": work.again_tokens, "layout": layout}
        if flops is not None:
            found |= {"trunk_flops": flops.model(work), "hardware_flops": flops.hardware(work)}
        return found

    def save(folder: str) -> None:
        out = Path(folder)
        save_encoder(engine, module, out)
        copy_tokenizer(model, out)
        save_encoder_config(encoder, out)

    gate.tell, gate.save = tell, save
    draws = draws_of(stream, job["steps"])
    hands = Prefetch(lambda step: stream(draws(step)), range(1, job["steps"] + 1), depth=ahead(job))
    for step in count():
        gate.next_step()
        engine.set_rate(config.learning_rate * rate_factor(config, step=step, steps=job["steps"]))
        lesson = teach(engine, next(hands), config, graphs, layout=layout)
        loss, work, *_ = summed(lesson, [], device=engine.device)
        engine.step()
        done[0] = done[0] + work
        gate.saw(loss)


def pretraining(job: Job, gate: Gate) -> None:
    """Continued pretraining. A job holds `pretrain`, `model` (with an output head) and `tokens`."""
    start_one_rank()
    import torch
    from transformers import AutoModelForCausalLM

    from train.attention_layout import attention_layout
    from train.cursor import GlobalOrder, Source
    from train.draws import Draws
    from train.engine import Engine
    from train.flops import Flops, Work
    from train.loader import Prefetch
    from train.phase import rate_factor
    from train.pretrain import PretrainConfig, backward_batch, make_language_model
    from train.token_rows import TokenBatches, TokenRows

    torch.manual_seed(job["seed"])
    config = PretrainConfig(**job["pretrain"])
    rows = TokenRows(Path(job["tokens"]))
    network: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32, local_files_only=True)
    layout = attention_layout(network.get_decoder(), "packed")
    if config.compile:
        from train.compiled import compile_token_wise

        compile_token_wise(network)
    flops = Flops.of(network.config, bidirectional=False)
    engine = Engine(make_language_model(network, layout=layout), config)
    order = GlobalOrder([Source("tokens", len(rows))], fingerprint=rows.fingerprint, seed=job["seed"])
    draws = Draws(order, batch=config.batch_rows, end=job["steps"] * config.batch_rows)
    batches = TokenBatches(rows, micro_tokens=config.micro_batch_tokens, device=engine.device)
    done = [Work()]

    def tell() -> dict[str, Any]:
        work, done[0] = done[0], Work()
        assert flops is not None
        return {
            **memory(job["device"]), "tokens": work.tokens, "layout": layout,
            "trunk_flops": flops.model(work), "hardware_flops": flops.hardware(work),
        }  # fmt: skip

    gate.tell = tell
    prepared = Prefetch(lambda step: batches(draws(step)), range(1, job["steps"] + 1), depth=ahead(job))
    for step in count():
        gate.next_step()
        engine.set_rate(config.learning_rate * rate_factor(config, step=step, steps=job["steps"]))
        batch = next(prepared)
        loss = backward_batch(engine, batch)
        engine.step()
        done[0] = done[0] + batch.work
        gate.saw(float(loss))
