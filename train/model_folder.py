"""Weights out of a ZeRO engine, as ordinary Hugging Face folders in safetensors.

Invariant: rank 0 writes after the last collective, so a disk that refuses leaves no rank waiting for another.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import disk_errors
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


@contextmanager
def _told_by(folder: Path) -> Iterator[None]:
    """Make what the disk refuses a `UserError`: safetensors knows the system's error number only in its text."""
    from safetensors import SafetensorError

    with disk_errors(folder):
        try:
            yield
        except SafetensorError as error:
            number = re.search(r"os error (\d+)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), str(error)) from error


def _write_model(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    persistent = set(model.state_dict().keys())
    attention = model.config._attn_implementation
    model.set_attn_implementation("sdpa")  # the folder must load where `packed` is unknown
    model.save_pretrained(
        folder, state_dict={k: v for k, v in state.items() if k in persistent}, safe_serialization=True
    )
    model.set_attn_implementation(attention)  # training goes on after a checkpoint


def save_model(engine: Engine, model: Any, folder: Path) -> None:
    """Write a Hugging Face model that lives inside the engine's module to `folder` (all ranks call, rank 0 writes).

    Raises `UserError` on rank 0 where the disk is full or may not be written.
    """
    state = gathered_state(engine, model)
    if state is not None:
        with _told_by(folder):
            _write_model(model, state, folder)


def save_encoder(engine: Engine, encoder: Any, folder: Path) -> None:
    """Write an encoder module (train/encoder.py): the backbone's folder, and `projection.safetensors` where it has one.

    A collective: all ranks call, rank 0 writes. The tokenizer and `encoder.json` are the caller's. Raises like
    `save_model`.
    """
    from safetensors.torch import save_file

    state = gathered_state(engine, encoder.backbone)
    projection = None if encoder.projection is None else gathered_state(engine, encoder.projection)
    if state is None:
        return
    with _told_by(folder):
        _write_model(encoder.backbone, state, folder)
        if projection is not None:
            save_file({name: x.contiguous() for name, x in projection.items()}, folder / PROJECTION)
