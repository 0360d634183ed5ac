"""The peers' sides of a comparison: each through its own trainer, as a user of that library would run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from _peer_job import ahead
from _turns import Gate, Job


def read_batches(job: Job) -> list[list[list[str]]]:
    """The batches in order; with `sorted` the rows of each are laid by length, which changes no loss."""
    batches = [json.loads(line) for line in Path(job["batches"]).read_text().splitlines()]
    if job.get("sorted"):
        batches = [sorted(rows, key=lambda row: len(row[0]) + len(row[1])) for rows in batches]
    return batches


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

    from train.finetune_config import FinetuneConfig
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
    model = SentenceTransformer(job["st"], device=job["device"], local_files_only=True, model_kwargs=options)
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
