"""One trainer in its own process: `python _peer_sides.py JOB.json` (see _turns.py for who talks to it).

Every side trains the same weights on the same batches in the same order with the same loss, learning rate, clipping and
AdamW without decay, through its own trainer: what a user of that library would run. A job holds `side`, `folder` (from
_peer_texts.py), `batches` (JSON lines, one list of [query, passage] a step), `steps`, `batch`, `temperature`, `rate`,
`clip`, `device`, `seed`, and what the side adds.
"""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from _turns import Gate

Job = dict[str, Any]


def read_batches(job: Job) -> list[list[list[str]]]:
    """The batches in order; with `sorted` the rows of each are laid by length, which changes no loss."""
    batches = [json.loads(line) for line in Path(job["batches"]).read_text().splitlines()]
    if job.get("sorted"):
        batches = [sorted(rows, key=lambda row: len(row[0]) + len(row[1])) for rows in batches]
    return batches


def memory(device: str) -> dict[str, float]:
    """Peak memory in GB: of the device on CUDA, else of the process."""
    if device == "cuda":
        import torch

        return {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def ahead(job: Job) -> int:
    """Batches made in the background. None where sides take turns: they would be made while another is timed."""
    return 2 if job["device"] == "cuda" else 0


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
    """rumpun: the stream, the step and the engine of train/finetune.py on one rank; the turn includes making batches.

    `host_linear = false` leaves the linear maps to PyTorch's default library (see train/host_linear.py).
    """
    start_one_rank()
    import torch
    from _peer_texts import pair_stream
    from transformers import AutoTokenizer

    from train import host_linear
    from train.attention_layout import attention_layout
    from train.backbone import copy_tokenizer
    from train.checkpoint import save_encoder
    from train.encoder import EncoderConfig, load_backbone, make_encoder, save_encoder_config
    from train.engine import Engine
    from train.finetune import FinetuneConfig, shared_facts, train_step
    from train.flops import Flops, Work
    from train.graph_memory import GraphMemory
    from train.loader import Prefetch

    torch.manual_seed(job["seed"])
    config, encoder = FinetuneConfig(**job["finetune"]), EncoderConfig(**job["encoder"])
    model = Path(job["model"])
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    stream = pair_stream(Path(job["pairs"]), tokenizer, config, encoder, seed=job["seed"])
    if not job.get("host_linear", True):
        host_linear.onednn_is_better = lambda: False
    backbone = load_backbone(model, bidirectional=encoder.bidirectional, precision="fp32")
    layout = attention_layout(backbone, config.layout)
    flops = Flops.of(backbone.config, bidirectional=encoder.bidirectional or job.get("two_sided", False))
    module = make_encoder(backbone, encoder, layout=layout)
    engine = Engine(module, config, steps=job["steps"])
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
    hands = Prefetch(stream, range(job["steps"]), depth=ahead(job))
    while True:
        gate.next_step()
        facts = train_step(engine, next(hands), config, graphs, layout=layout)
        engine.step()
        loss, work, _ = shared_facts(facts, engine.device)
        done[0] = done[0] + work
        gate.saw(loss)


def pretraining(job: Job, gate: Gate) -> None:
    """rumpun's continued pretraining on one rank: the passes and the engine of train/pretrain.py."""
    start_one_rank()
    import torch
    from transformers import AutoModelForCausalLM

    from train.attention_layout import attention_layout
    from train.cursor import GlobalOrder, Source
    from train.engine import Engine
    from train.flops import Flops, Work
    from train.loader import Prefetch
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
    engine = Engine(make_language_model(network, layout=layout), config, steps=job["steps"])
    order = GlobalOrder([Source("tokens", len(rows))], fingerprint=rows.fingerprint, seed=job["seed"])
    batches = TokenBatches(
        rows, order, batch=config.batch_rows, micro_tokens=config.micro_batch_tokens, device=engine.device
    )
    done = [Work()]

    def tell() -> dict[str, Any]:
        work, done[0] = done[0], Work()
        assert flops is not None
        return {
            **memory(job["device"]), "tokens": work.tokens, "layout": layout,
            "trunk_flops": flops.model(work), "hardware_flops": flops.hardware(work),
        }  # fmt: skip

    gate.tell = tell
    prepared = Prefetch(batches, range(job["steps"]), depth=ahead(job))
    while True:
        gate.next_step()
        batch = next(prepared)
        loss = backward_batch(engine, batch)
        engine.step()
        done[0] = done[0] + batch.work
        gate.saw(float(loss))


def hugging_face_arguments(job: Job) -> dict[str, Any]:
    """What the three peers' trainers are told alike; nothing is logged, saved or evaluated on the way."""
    return {
        "output_dir": str(Path(job["folder"]) / "unused"),
        "per_device_train_batch_size": job["batch"],
        "max_steps": job["steps"] + 1,  # the parent ends it before
        "learning_rate": job["rate"],
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "weight_decay": 0.0,
        "max_grad_norm": job["clip"],
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": job["seed"],
        "use_cpu": job["device"] != "cuda",
        "bf16": job["device"] == "cuda",
        "dataloader_pin_memory": job["device"] == "cuda",
        "dataloader_num_workers": ahead(job),
        "logging_nan_inf_filter": False,  # it would look at every loss, which waits for the device
    }


def gated(trainer: Any, gate: Gate) -> Any:
    """Let a transformers trainer pass the gate before each step, and keep its losses. Returns the trainer."""
    from transformers import TrainerCallback

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            gate.next_step()

    trainer.add_callback(Turns())
    original = trainer.training_step

    def training_step(*args: Any, **more: Any) -> Any:
        loss = original(*args, **more)
        gate.saw(loss.detach())
        return loss

    trainer.training_step = training_step
    return trainer


def _our_schedule(job: Job, model: Any) -> tuple[Any, Any]:
    """AdamW as the trainer would make it, under the schedule of the job's finetuning table."""
    import torch

    from train.finetune import FinetuneConfig
    from train.phase import rate_factor

    config = FinetuneConfig(**job["finetune"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(config, step=step, steps=job["steps"])
    )


def sentence_transformers(job: Job, gate: Gate) -> None:
    """sentence-transformers: its trainer with one of its two ranking losses.

    `loss` is `mnrl` or `cached`; `cached` takes `mini_batch_size` or `mini_batch_num_tokens`.
    """
    arguments = hugging_face_arguments(job)
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    class InOrder(DefaultBatchSampler):
        def __init__(self, dataset: Any, batch_size: int, drop_last: bool, **_: Any) -> None:
            super().__init__(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last)

    torch.manual_seed(job["seed"])
    options = {"attn_implementation": job["attention"]} if "attention" in job else {}
    model = SentenceTransformer(
        job["st"], device=job["device"], local_files_only=True, model_kwargs=options,
    )  # fmt: skip
    model.max_seq_length = job["encoder"]["max_tokens"]
    scale = 1 / job["temperature"]
    if job["loss"] == "mnrl":
        loss: Any = losses.MultipleNegativesRankingLoss(model, scale=scale)
    else:
        sizes = {k: job[k] for k in ("mini_batch_size", "mini_batch_num_tokens") if k in job}
        loss = losses.CachedMultipleNegativesRankingLoss(model, scale=scale, **sizes)
    rows = [row for batch in read_batches(job) for row in batch]
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(**arguments, batch_sampler=InOrder),
        train_dataset=Dataset.from_dict({"anchor": [r[0] for r in rows], "positive": [r[1] for r in rows]}),
        loss=loss,
        optimizers=_our_schedule(job, model) if job.get("our_schedule") else (None, None),
    )
    gate.save = lambda folder: model.save_pretrained(folder)
    gated(trainer, gate).train()


def flag_embedding(job: Job, gate: Gate) -> None:
    """FlagEmbedding: its embedder, collator and trainer; `sub_batch_size` splits and pads a batch in parts."""
    arguments = hugging_face_arguments(job)
    import torch
    from FlagEmbedding.abc.finetune.embedder import AbsEmbedderCollator, AbsEmbedderTrainingArguments
    from FlagEmbedding.finetune.embedder.decoder_only.base.modeling import BiDecoderOnlyEmbedderModel
    from FlagEmbedding.finetune.embedder.decoder_only.base.trainer import DecoderOnlyEmbedderTrainer
    from torch.utils.data import SequentialSampler
    from transformers import AutoModel, AutoTokenizer

    class InOrder(DecoderOnlyEmbedderTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    torch.manual_seed(job["seed"])
    longest, part = job["encoder"]["max_tokens"], job.get("sub_batch_size", -1)
    tokenizer = AutoTokenizer.from_pretrained(job["model"], local_files_only=True)
    model = BiDecoderOnlyEmbedderModel(
        AutoModel.from_pretrained(job["model"], dtype=torch.float32, local_files_only=True),
        tokenizer=tokenizer,
        temperature=job["temperature"],
        sub_batch_size=part,
        sentence_pooling_method="mean",
        normalize_embeddings=True,
    )
    trainer = InOrder(
        model=model,
        args=AbsEmbedderTrainingArguments(**arguments, remove_unused_columns=False, temperature=job["temperature"]),
        train_dataset=[(q, [p], None) for batch in read_batches(job) for q, p in batch],
        data_collator=AbsEmbedderCollator(
            tokenizer, query_max_len=longest, passage_max_len=longest, sub_batch_size=part
        ),
        processing_class=tokenizer,
    )
    gated(trainer, gate).train()


def tevatron(job: Job, gate: Gate) -> None:
    """tevatron: its dense model, collator and trainer. Its cached trainer has no temperature, so it is not compared."""
    arguments = hugging_face_arguments(job)
    import torch
    from tevatron.retriever.arguments import DataArguments, TevatronTrainingArguments
    from tevatron.retriever.collator import TrainCollator
    from tevatron.retriever.modeling import DenseModel
    from tevatron.retriever.trainer import TevatronTrainer
    from torch.utils.data import SequentialSampler
    from transformers import AutoModel, AutoTokenizer

    class InOrder(TevatronTrainer):
        def _get_train_sampler(self, *_: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    torch.manual_seed(job["seed"])
    longest = job["encoder"]["max_tokens"]
    trainer = InOrder(
        model=DenseModel(
            AutoModel.from_pretrained(job["model"], dtype=torch.float32, local_files_only=True),
            pooling="mean",
            normalize=True,
            temperature=job["temperature"],
        ),
        args=TevatronTrainingArguments(**arguments, warmup_ratio=0.0, remove_unused_columns=False),
        train_dataset=[((q,), [(p,)]) for batch in read_batches(job) for q, p in batch],
        data_collator=TrainCollator(
            DataArguments(query_max_len=longest, passage_max_len=longest, pad_to_multiple_of=None),
            AutoTokenizer.from_pretrained(job["model"], local_files_only=True),
        ),
    )
    gated(trainer, gate).train()


SIDES = {
    "rumpun": rumpun,
    "pretraining": pretraining,
    "sentence-transformers": sentence_transformers,
    "FlagEmbedding": flag_embedding,
    "tevatron": tevatron,
}


def main(path: str) -> None:
    """Run the side of a job file; what it cannot do is told to the parent, with the traceback in the log."""
    job = json.loads(Path(path).read_text())
    random.seed(job["seed"])
    gate = Gate()
    gate.tell = lambda: memory(job["device"])
    if job["device"] == "cuda":
        import torch

        gate.synchronise = torch.cuda.synchronize
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        SIDES[job["side"]](job, gate)
    except Exception as error:
        traceback.print_exc()
        gate.fail(f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}")


if __name__ == "__main__":
    main(sys.argv[1])
