"""Steps, schedule and the refusals that both phases share."""

from __future__ import annotations

from itertools import pairwise

import pytest
from pydantic import ValidationError

from data_prep.errors import UserError
from train.phase import PhaseConfig, check_divides, rate_factor, total_steps


def test_steps_come_from_epochs_and_the_bound() -> None:
    assert total_steps(PhaseConfig(epochs=2.0), samples=100, batch=32) == 7
    assert total_steps(PhaseConfig(epochs=2.0, max_steps=3), samples=100, batch=32) == 3
    assert total_steps(PhaseConfig(epochs=0.01), samples=10, batch=32) == 1


def test_schedule_warms_up_and_decays_to_a_tenth() -> None:
    config = PhaseConfig(warmup_steps=10, schedule="cosine")
    factors = [rate_factor(config, step=s, steps=110) for s in range(111)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[60] == pytest.approx(0.55)
    assert factors[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factors[9:]))
    assert rate_factor(PhaseConfig(schedule="constant"), step=1000, steps=10) == 1.0


def test_a_batch_that_does_not_divide_names_the_nearest() -> None:
    assert check_divides(12, 4, name="x") == 3
    with pytest.raises(UserError, match=r"finetune\.batch_pairs = 10.*multiple of the 4.*use 8 or 12"):
        check_divides(10, 4, name="finetune.batch_pairs")


@pytest.mark.parametrize(
    "bad",
    [
        {"learning_rate": 0.0},
        {"epochs": -1.0},
        {"max_steps": 0},
        {"warmup_steps": -1},
        {"zero_stage": 4},
        {"precision": "fp16"},
        {"learning_rate": "1e-3"},
    ],
)
def test_impossible_values_are_refused(bad: dict) -> None:
    with pytest.raises(ValidationError):
        PhaseConfig(**bad)
