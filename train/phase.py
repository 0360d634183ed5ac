"""What both training phases share in a recipe: length, optimiser, schedule, ZeRO stage, precision."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.errors import UserError


class PhaseConfig(Section):
    """Fields of [pretrain] and [finetune] that mean the same in both."""

    HARMLESS: ClassVar[frozenset[str]] = frozenset(
        {"zero_stage", "offload", "micro_batch_tokens", "activation_checkpointing", "reduce_once", "compile"}
    )
    """Fields that decide speed and memory but no number: a resumed run may change them, a finished one stays valid."""

    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the data; a fraction stops early. Each full pass uses every sample exactly once."""
    max_steps: Annotated[int, Field(gt=0)] | None = None
    """Upper bound on optimiser steps; unset means that `epochs` alone decides."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-5
    """Peak rate of AdamW; 2e-5 is the paper's for its 600M-2B models."""
    warmup_steps: Annotated[int, Field(ge=0)] = 20
    """Steps of linear warm-up from 0; a few avoid Adam's noisy first updates. The paper used none."""
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Rate after warm-up. `wsd` (warm-up, stable, decay) holds the peak and falls only at the end, so that a longer run
    can go on from the stable part. The paper's rate was in effect constant, which wastes the end."""
    min_rate: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The share of the peak that cosine, linear and wsd fall to."""
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """The last part of all steps in which `wsd` decays; a fifth matched a full cosine (Hägele et al., 2024)."""
    decay_shape: Literal["sqrt", "linear"] = "sqrt"
    """How `wsd` falls: `sqrt` is 1 - √(part done), which came out ahead of linear in the same paper."""
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
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout of the whole model, whatever its folder says. Above 0 the number of processes changes what is drawn."""
    activation_checkpointing: bool = False
    """Recompute layer activations in the backward pass: less memory, about a third more time."""
    reduce_once: bool = False
    """Under ZeRO 2 and 3, reduce gradients once a step instead of in every pass: fewer collectives, but whole gradients
    are held until then. ZeRO 0 and 1 always do so."""
    compile: bool = False
    """Fuse the layers' token-wise parts with torch.compile, up to a minute at the start. On CUDA only: on a CPU it was
    measured to save 1-4 % of a step, and is left out."""

    def essentials(self) -> dict[str, Any]:
        """What the result depends on, as JSON values."""
        return self.model_dump(mode="json", exclude=set(self.HARMLESS))

    @model_validator(mode="after")
    def _bf16_is_sharded(self) -> PhaseConfig:
        # at stage 0 DeepSpeed swaps in another bf16 optimizer, whose losses differ from those of stages 1-3
        if self.precision == "bf16" and self.zero_stage == 0:
            raise ValueError(
                "zero_stage = 0: has no exact bf16 optimiser. Fix: set zero_stage to 1, or precision to 'fp32'"
            )
        return self

    @model_validator(mode="after")
    def _compiled_weights_are_whole(self) -> PhaseConfig:
        # stage 3 gathers weights in hooks of the very modules that would be compiled
        if self.compile and self.zero_stage == 3:
            raise ValueError("compile = true: does not work with zero_stage = 3. Fix: set compile to false")
        return self


def total_steps(config: PhaseConfig, *, samples: int, batch: int) -> int:
    """Optimiser steps of a phase over `samples` samples in global batches of `batch`, at least 1."""
    steps = max(1, math.ceil(config.epochs * samples / batch))
    return min(steps, config.max_steps) if config.max_steps else steps


def rate_factor(config: PhaseConfig, *, step: float, steps: int) -> float:
    """The learning rate after `step` of `steps` steps, as a share of the peak; a fraction where the batch size changed.

    Warm-up is linear. `wsd` decays over the last `decay_share` of all steps, never before warm-up ends: Hu et al.,
    "MiniCPM" (arXiv 2404.06395); the 1 - sqrt shape from Hägele et al. (arXiv 2405.18392).
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    first = config.warmup_steps
    if config.schedule == "wsd":
        first = max(first, steps - max(1, round(config.decay_share * steps)))
    done = min(1.0, max(0.0, (step - first) / max(1, steps - first)))
    if config.schedule == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "wsd" and config.decay_shape == "sqrt":
        shape = 1 - math.sqrt(done)
    else:
        shape = 1 - done
    return config.min_rate + (1 - config.min_rate) * shape


def check_fills(batch: int, ranks: int, *, name: str) -> None:
    """Raise `UserError` where a global batch is too small to give every rank a sample."""
    if batch < ranks:
        raise UserError(
            f"{name} = {batch}",
            f"must be at least 1 for each of the {ranks} processes",
            f"use {ranks} or more, or --nproc {batch}",
        )
