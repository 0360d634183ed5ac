"""A refused update leaves no trace, in AdamW itself; under DeepSpeed see test_zero_state.py."""

from __future__ import annotations

from typing import Any

import torch

from train.admission import AskingAdamW


def _updates(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter, numbers: list[float]) -> list[Any]:
    for number in numbers:
        weight.grad = torch.full_like(weight, number)
        optimizer.step()
    state = optimizer.state[weight]
    return [weight.tolist(), state["step"].item(), state["exp_avg"].tolist(), state["exp_avg_sq"].tolist()]


def test_what_is_not_allowed_changes_nothing() -> None:
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.1, "fused": True}
    sound, asking = (torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    expected = _updates(torch.optim.AdamW([sound], **options), sound, [0.5, -0.2])
    optimizer = AskingAdamW([asking], **options)
    optimizer.allowed = lambda: False
    asking.grad = torch.full_like(asking, float("nan"))
    optimizer.step()
    assert torch.equal(asking, torch.linspace(-1, 1, 5)) and not optimizer.state
    optimizer.allowed = lambda: True
    _updates(optimizer, asking, [0.5])
    optimizer.allowed = lambda: False
    _updates(optimizer, asking, [7.0, float("nan")])
    optimizer.allowed = lambda: True
    assert _updates(optimizer, asking, [-0.2]) == expected
