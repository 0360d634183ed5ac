"""Score arithmetic in full fp32, whatever the training loop has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@contextmanager
def exact_fp32(like: torch.Tensor) -> Iterator[None]:
    """No autocast and, on CUDA, no TF32 inside the block; what was set before is put back.

    A cosine in bf16 or TF32 is wrong in its third digit; divided by a temperature of 0.02 that is 5 % of a softmax
    weight, and a false-negative threshold would hide other columns on other hardware.
    """
    import torch

    with torch.autocast(like.device.type, enabled=False):
        if like.device.type != "cuda":
            yield
            return
        matmul = torch.backends.cuda.matmul
        try:
            before = torch.get_float32_matmul_precision()
        except RuntimeError:
            # torch refuses the older switch where the newer one was used; products then obey the newer one
            newer = matmul.fp32_precision
            matmul.fp32_precision = "ieee"
            try:
                yield
            finally:
                matmul.fp32_precision = newer
            return
        if before == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
