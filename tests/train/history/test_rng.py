"""Generators go on where they were, on every rank."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from train.history.rng import generator_states, set_generators


def draws() -> list[Any]:
    return [torch.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal()]


def test_the_next_numbers_are_the_same_after_a_restore() -> None:
    draws()  # an odd number of normals: a cached one is part of numpy's state
    states = generator_states()
    expected = [draws() for _ in range(3)]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)
    set_generators(states, seed=0, rank=0, step=0)
    assert [draws() for _ in range(3)] == expected


def test_a_rank_that_is_new_draws_by_seed_rank_and_step() -> None:
    def drawn(**of: int) -> list[Any]:
        set_generators({}, **of)
        return draws()

    first = drawn(seed=1, rank=2, step=3)
    assert drawn(seed=1, rank=2, step=3) == first
    assert all(
        drawn(**other) != first
        for other in (
            {"seed": 2, "rank": 2, "step": 3},
            {"seed": 1, "rank": 1, "step": 3},
            {"seed": 1, "rank": 2, "step": 4},
        )
    )
