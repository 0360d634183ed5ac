"""Next-token cross-entropy against log-softmax over the whole matrix of logits."""

from __future__ import annotations

import pytest
import torch

from train.objectives.causal_lm import causal_lm_sum


@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_chunked_cross_entropy_and_its_gradient_equal_the_whole(chunk: int, weight: float) -> None:
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(10, 8, requires_grad=True)
    targets = torch.tensor([1, 2, -100, 4, 5, 6, 7, -100, 9, 10])
    loss = causal_lm_sum(hidden, head, targets, z_loss=weight, chunk_tokens=chunk)
    loss.backward()
    mine = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    logits = (hidden @ head.weight.T).double()
    wanted = torch.zeros((), dtype=torch.float64)
    for row, target in zip(logits, targets.tolist(), strict=True):
        if target >= 0:
            z = row.exp().sum()
            wanted = wanted - torch.log(row[target].exp() / z) + weight * torch.log(z) ** 2
    wanted.backward()
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=0)
    torch.testing.assert_close(mine, (hidden.grad, head.weight.grad))


@pytest.mark.parametrize("weight", [0.0, 0.01])
def test_a_pass_without_targets_is_zero_with_zero_gradients(weight: float) -> None:
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(4, 8, requires_grad=True)
    loss = causal_lm_sum(hidden, head, torch.full((4,), -100), z_loss=weight, chunk_tokens=3)
    loss.backward()
    assert float(loss.detach()) == 0
    assert not hidden.grad.any() and not head.weight.grad.any()
