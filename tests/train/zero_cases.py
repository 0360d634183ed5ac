"""What zero_job.py runs and what it must come to: the cases, the data, and the same training in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

HALF = range(1, 4)
STEPS = range(4, 7)
BATCH = 9
VOCABULARY, TOKENS = 13, 4

CASES: dict[str, dict[str, Any]] = {
    "0": {"zero_stage": 0},
    "1": {"zero_stage": 1},
    "2": {"zero_stage": 2, "reduce_once": True},
    "3": {"zero_stage": 3},
    # every weight is given up between uses, and there are several sub-groups in each parameter group
    "3-split": {"zero_stage": 3, "zero": {"stage3_param_persistence_threshold": 0, "sub_group_size": 16}},
    "2-offload": {"zero_stage": 2, "offload": True},
    "3-offload": {"zero_stage": 3, "offload": True, "zero": {"sub_group_size": 16}},
    "1-one-group": {"zero_stage": 1, "groups": 1},
    "3-one-group": {"zero_stage": 3, "groups": 1, "reduce_once": True, "zero": {"sub_group_size": 16}},
    "1-bf16": {"zero_stage": 1, "precision": "bf16"},
    "2-bf16": {"zero_stage": 2, "precision": "bf16", "offload": True},
    "3-bf16": {"zero_stage": 3, "precision": "bf16", "zero": {"stage3_param_persistence_threshold": 20}},
}
"""Settings that differ from PhaseConfig's; `zero` goes into DeepSpeed's `zero_optimization`."""

WORLDS = (4, 2, 1, 3)
"""Numbers of ranks in the order of their starts; each start goes on from the states of the earlier ones, too."""

RUN = {
    4: ("0", "2", "3-split", "1-bf16"),
    2: tuple(CASES),
    1: ("0", "1", "3-offload", "3-bf16"),
    3: ("1", "3", "2-offload"),
}
"""The cases of each number of ranks."""

CROSSINGS: dict[tuple[int, int], tuple[tuple[str, str], ...]] = {
    (4, 2): (("0", "3-split"), ("2", "1"), ("3-split", "2-offload"), ("1-bf16", "3-bf16")),
    (4, 1): (("3-split", "0"), ("2", "3")),
    (2, 1): (("3", "1"), ("1", "2"), ("3-one-group", "1-one-group"), ("3-bf16", "2-bf16")),
    (2, 3): (("0", "3-split"), ("3-offload", "1"), ("2-bf16", "1-bf16"), ("1-one-group", "3-one-group")),
    (1, 3): (("3-offload", "2"), ("0", "3"), ("1", "0")),
}
"""(saved by so many ranks, restored on so many) → (saved by this case, restored into that)."""

PLANTED = (
    ("1", "no second moment"),
    ("3-split", "no second moment"),
    ("2", "one update more"),
    ("3", "one update more"),
    ("0", "shifted by one"),
    ("3-split", "one count for all"),
    ("1", "stale working weights"),
    ("3", "stale working weights"),
    ("1-bf16", "stale working weights"),
)
"""Mistakes that a restore could make, on two ranks; each must show in the comparison that the sound ones pass."""


class Toy(torch.nn.Module):
    """Matrices that decay; embedding, norm and biases that do not."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(VOCABULARY, 6) if groups == 2 else None
        self.up = torch.nn.Linear(6, 7, bias=groups == 2)
        self.norm = torch.nn.LayerNorm(7) if groups == 2 else torch.nn.Identity()
        self.down = torch.nn.Linear(7, 5, bias=groups == 2)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        dtype = self.up.weight.dtype
        hidden = torch.nn.functional.one_hot(ids % 6, 6).to(dtype) if self.embed is None else self.embed(ids)
        mean = hidden.mean(1)
        return self.down(torch.tanh(self.norm(self.up(mean))))


def make_module(*, groups: int, seed: int) -> Toy:
    """A module whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return Toy(groups)


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids [BATCH, TOKENS] and targets [BATCH, 5] of a step."""
    numbers = torch.Generator().manual_seed(1000 + step)
    return torch.randint(VOCABULARY, (BATCH, TOKENS), generator=numbers), torch.randn(BATCH, 5, generator=numbers)


def loss_of(model: Callable[..., torch.Tensor], ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """This part's share of the mean squared error of the batch."""
    found = model(ids)
    found = found if found.dtype == torch.float64 else found.float()
    return (found - targets.to(found.dtype)).square().sum() / (BATCH * 5)


def rate_of(step: int) -> float:
    """The learning rate of a step."""
    return 1e-2 / step


def reference(*, groups: int, steps: Iterable[int]) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """The state and [loss, norm] after those steps in float64, one process, with Adam written from its paper."""
    module = make_module(groups=groups, seed=0).double()
    plain = {id(m.weight) for m in module.modules() if isinstance(m, torch.nn.Embedding)}
    names = dict(module.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in names.items()}
    second = {name: torch.zeros_like(p) for name, p in names.items()}
    facts = []
    for count, step in enumerate(steps, start=1):
        module.zero_grad()
        loss = loss_of(module, *batch(step))
        loss.backward()
        gradients = {name: p.grad for name, p in names.items() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        facts.append([float(loss.detach()), float(norm)])
        scale = min(1.0, 0.05 / (float(norm) + 1e-6))
        with torch.no_grad():
            for name, p in names.items():
                g = gradients[name] * scale
                if p.ndim >= 2 and id(p) not in plain:
                    p.mul_(1 - rate_of(step) * 0.1)
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                mean, spread = first[name] / (1 - 0.9**count), second[name] / (1 - 0.999**count)
                p.sub_(rate_of(step) * mean / (spread.sqrt() + 1e-8))
    kinds = {"weight": names, "exp_avg": first, "exp_avg_sq": second}
    state = {f"{name}/{kind}": found[name].detach().flatten() for kind, found in kinds.items() for name in names}
    return state, facts
