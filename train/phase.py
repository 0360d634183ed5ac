"""What both training phases share in a recipe: length, optimiser, schedule, ZeRO stage, precision."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.errors import UserError


class PhaseConfig(Section):
    """Fields of [pretrain] and [finetune] that mean the same in both."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data; a fraction stops early. Each full pass uses every sample exactly once."""
    max_steps: Annotated[int, Field(gt=0)] | None = None
    """Upper bound on optimiser steps; unset means that `epochs` alone decides."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Peak rate of AdamW; 2e-5 is the paper's for its 600M-2B models."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps of linear warm-up from 0; a few avoid Adam's noisy first updates. The paper used none."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Decay after warm-up, to a tenth of the peak. The paper's rate was in effect constant, which wastes the end."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """AdamW decay on matrices only; norms, biases and embeddings are left out."""
    gradient_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 switches clipping off. Written out because DeepSpeed clips at 1.0 silently."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """DeepSpeed ZeRO stage: 1 shards optimiser state, 2 gradients, 3 weights. 1 is fastest where it fits."""
    offload: bool = False
    """Keep optimiser state (and weights, at stage 3) in host memory. The paper always did; below 2B it only slows."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """bf16 on GPUs that have it (fp32 master weights are kept); fp32 on CPUs, where bf16 is emulated and slower."""
    micro_batch_tokens: Annotated[int, Field(gt=0)] = 16384
    """Tokens in one forward pass of a rank: more is faster until memory ends. It never changes the result."""
    activation_checkpointing: bool = False
    """Recompute layer activations in the backward pass: less memory, about a third more time."""

    @model_validator(mode="after")
    def _bf16_is_sharded(self) -> PhaseConfig:
        # at stage 0 DeepSpeed swaps in another bf16 optimizer, whose losses differ from those of stages 1-3
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage = 0: has no exact bf16 optimiser. Fix: set zero_stage to 1, or precision to 'fp32'"
            )
        return self


def total_steps(config: PhaseConfig, *, samples: int, batch: int) -> int:
    """Optimiser steps of a phase over `samples` samples in global batches of `batch`, at least 1."""
    steps = max(1, math.ceil(config.epochs * samples / batch))
    return min(steps, config.max_steps) if config.max_steps else steps


def rate_factor(config: PhaseConfig, *, step: int, steps: int) -> float:
    """The learning rate of step number `step` (from 0) as a share of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    done = min(1.0, (step - config.warmup_steps) / max(1, steps - config.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.schedule == "cosine" else 1 - done
    return 0.1 + 0.9 * shape


def check_divides(batch: int, ranks: int, *, name: str) -> int:
    """Samples per rank of a global batch. Raises `UserError` where the ranks do not divide it."""
    if batch % ranks:
        down = batch // ranks * ranks
        near = [str(n) for n in (down, down + ranks) if n > 0]
        raise UserError(
            f"{name} = {batch}",
            f"must be a multiple of the {ranks} processes",
            f"use {' or '.join(near)}, or another --nproc",
        )
    return batch // ranks
