"""An AdamW that asks before it updates, so that a step can be refused after its gradients are known.

Invariant: an update that is refused leaves parameters, moments and step counts bit for bit as they were. DeepSpeed
calls the optimizer after it reduced and clipped the gradients, once for each flat part (ZeRO 1 to 3) or once for all
parameters (ZeRO 0); copying its untouched fp32 weights over the working ones afterwards changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class AskingAdamW(torch.optim.AdamW):
    """AdamW that does nothing while `allowed()` is false; it may be called several times in one optimiser step."""

    allowed: Callable[[], bool] = staticmethod(lambda: True)

    def step(self, closure: Any = None) -> Any:
        """Update this call's parameters, if it is allowed."""
        return super().step(closure) if self.allowed() else None
