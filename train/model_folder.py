"""Weights out of a ZeRO engine, as ordinary Hugging Face folders in safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from train.encoder import PROJECTION

if TYPE_CHECKING:
    import torch

    from train.engine import Engine


def gathered_state(engine: Engine, submodule: torch.nn.Module) -> dict[str, torch.Tensor] | None:
    """The full fp32 weights of a part of the engine's module, on the host of rank 0 (None on other ranks).

    A collective under every stage: stage 3 gathers one parameter at a time, so that the peak is one tensor more than
    the result; lower stages read the fp32 master copy, not the bf16 working one.
    """
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_fp32_param

    state: dict[str, torch.Tensor] = {}
    for name, parameter in submodule.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        full = parameter.detach() if full is None else full
        if dist.get_rank() == 0:
            state[name] = full.detach().float().cpu().clone()
    if dist.get_rank() != 0:
        return None
    state.update({name: b.detach().cpu().clone() for name, b in submodule.named_buffers() if name not in state})
    return state


def save_model(engine: Engine, model: Any, folder: Path) -> None:
    """Write a Hugging Face model that lives inside the engine's module to `folder` (all ranks call, rank 0 writes)."""
    state = gathered_state(engine, model)
    if state is None:
        return
    persistent = set(model.state_dict().keys())
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # the folder must load where `packed` is unknown
    model.save_pretrained(
        folder, state_dict={k: v for k, v in state.items() if k in persistent}, safe_serialization=True
    )
    model.set_attn_implementation(attention)  # training goes on after a checkpoint


def save_encoder(engine: Engine, encoder: Any, folder: Path) -> None:
    """Write an encoder module (train/encoder.py): the backbone's folder, and `projection.safetensors` where it has one.

    A collective: all ranks call, rank 0 writes. The tokenizer and `encoder.json` are the caller's.
    """
    from safetensors.torch import save_file

    save_model(engine, encoder.backbone, folder)
    if encoder.projection is not None:
        state = gathered_state(engine, encoder.projection)
        if state is not None:
            save_file({name: x.contiguous() for name, x in state.items()}, folder / PROJECTION)
