"""Linear maps on a CPU whose maker PyTorch's default library serves badly.

PyTorch's x86 builds send fp32 matrix products to MKL, which takes its AVX2 kernels on AMD processors. oneDNN, part of
the same PyTorch, takes AVX-512 there: on one core of a Zen 5 EPYC, torch 2.13, 512 x 256 x 704, 88 against 190
GFLOP/s, forward and backward alike, and results apart by rounding only.

Invariant: the choice looks at the machine and never at a clock, so equal machines compute equal bits in every run.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

WORTH = 1 << 23
"""rows x in x out from which a product repays oneDNN's making of a kernel, 0.6 ms for every new number of rows."""


@functools.cache
def onednn_is_better() -> bool:
    """Whether this is an x86 CPU with AVX-512, not made by Intel, under a PyTorch that has both libraries."""
    import torch

    try:
        vendor = next((w for w in Path("/proc/cpuinfo").read_text().splitlines() if w.startswith("vendor_id")), "")
    except OSError:  # no Linux: leave everything as it is
        return False
    return (
        "AuthenticAMD" in vendor
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


@functools.cache
def _linear() -> type[Any]:
    import torch

    product = torch.ops.mkldnn._linear_pointwise

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            # the parameter itself is saved: under ZeRO-3 its storage is gathered anew before the backward pass
            ctx.save_for_backward(x, weight)
            ctx.biased = bias is not None
            made: torch.Tensor = product(x, weight, bias, "none", [], "")
            return made

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            x, weight = ctx.saved_tensors
            flat, rows = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
            needs_x, needs_weight, _ = ctx.needs_input_grad
            for_x = product(flat, weight.t(), None, "none", [], "").view(x.shape) if needs_x else None
            for_weight = product(flat.t(), rows.t(), None, "none", [], "") if needs_weight else None
            return for_x, for_weight, flat.sum(0) if ctx.biased else None

    class HostLinear(torch.nn.Linear):
        """`torch.nn.Linear`, its products by oneDNN where everything is fp32 on the CPU."""

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            plain = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
            rows = input.numel() // self.in_features
            worth = rows * self.in_features * self.out_features >= WORTH
            if not plain or not worth or torch.is_autocast_enabled("cpu"):
                return super().forward(input)
            found: torch.Tensor = Product.apply(input, self.weight, self.bias)  # type: ignore[no-untyped-call]
            return found

    return HostLinear


def use_host_linear(model: Any) -> int:
    """Let a model's linear maps take the faster library of this CPU, in place. Returns how many do; 0 elsewhere.

    Parameters and their names stay as they are. Call it before an engine takes the model.
    """
    import torch

    if torch.cuda.is_available() or not onednn_is_better():
        return 0
    chosen = [m for m in model.modules() if type(m) is torch.nn.Linear]
    for module in chosen:
        module.__class__ = _linear()
    return len(chosen)
