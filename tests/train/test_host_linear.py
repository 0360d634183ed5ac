"""The other library's products are the same products."""

from __future__ import annotations

import pytest
import torch

from train import host_linear

needs_onednn = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch is built without oneDNN"
)


@pytest.fixture
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_linear, "onednn_is_better", lambda: True)
    monkeypatch.setattr(host_linear, "WORTH", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 37, 24), (5, 24), (1, 1, 24), (3, 1, 2, 24)])
def test_values_and_gradients_equal_float64(forced: None, bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias), torch.nn.GELU(), torch.nn.Linear(40, 8, bias=bias))
    exact = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias), torch.nn.GELU(), torch.nn.Linear(40, 8, bias=bias))
    exact.load_state_dict(model.state_dict())
    exact = exact.double()
    assert host_linear.use_host_linear(model) == 2
    x = torch.randn(*shape, requires_grad=True)
    y = x.detach().double().requires_grad_(True)
    got, wanted = model(x), exact(y)
    got.square().sum().backward()
    wanted.square().sum().backward()
    pairs = [(got, wanted), (x.grad, y.grad)]
    pairs += [(a.grad, b.grad) for a, b in zip(model.parameters(), exact.parameters(), strict=True)]
    for ours, reference in pairs:
        assert torch.linalg.norm(ours.double() - reference) <= 2e-6 * torch.linalg.norm(reference)


@needs_onednn
def test_other_types_and_empty_input_take_the_plain_way(forced: None) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    host_linear.use_host_linear(model)
    assert model(torch.empty(0, 4)).shape == (0, 3)
    assert model.double()(torch.randn(2, 4, dtype=torch.float64)).dtype == torch.float64
    assert list(model.state_dict()) == ["0.weight", "0.bias"]


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_linear, "onednn_is_better", lambda: False)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    assert host_linear.use_host_linear(model) == 0
    assert type(model[0]) is torch.nn.Linear
