"""Steps, schedule and the refusals that both phases share."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.errors import UserError
from train.phase import PhaseConfig, check_fills, rate_factor, total_steps


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


def _wsd(steps: int, **config: Any) -> list[float]:
    settings = PhaseConfig(schedule="wsd", **config)
    return [rate_factor(settings, step=s, steps=steps) for s in range(steps)]


def test_wsd_holds_the_peak_until_the_decay() -> None:
    factors = _wsd(100, warmup_steps=10, decay_share=0.2, min_rate=0.0)
    assert factors[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert factors[10:81] == [1.0] * 71
    assert factors[85] == pytest.approx(1 - (5 / 20) ** 0.5)
    assert factors[99] == pytest.approx(1 - (19 / 20) ** 0.5)
    linear = _wsd(100, warmup_steps=10, decay_share=0.2, min_rate=0.5, decay_shape="linear")
    assert linear[90] == pytest.approx(0.5 + 0.5 * 0.5)


def test_wsd_can_be_lengthened_without_changing_what_was_done() -> None:
    short, long = _wsd(100, warmup_steps=10), _wsd(300, warmup_steps=10)
    assert short[:80] == long[:80]


def test_wsd_warms_up_to_the_end_of_the_warm_up_in_a_short_run() -> None:
    assert _wsd(6, warmup_steps=5, decay_share=1.0) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_every_decay_ends_at_min_rate(schedule: Any) -> None:
    config = PhaseConfig(schedule=schedule, warmup_steps=0, min_rate=0.25)
    assert rate_factor(config, step=50, steps=50) == pytest.approx(0.25)
    assert all(0.25 <= rate_factor(config, step=s, steps=50) <= 1 for s in range(60))


def test_a_mistyped_schedule_lists_the_valid_ones() -> None:
    with pytest.raises(ValidationError, match=r"'cosine', 'linear', 'constant' or 'wsd'"):
        PhaseConfig(schedule="cosin")  # type: ignore[arg-type]


def test_compile_is_refused_at_stage_three() -> None:
    with pytest.raises(ValidationError, match="zero_stage = 3"):
        PhaseConfig(compile=True, zero_stage=3)


def test_a_batch_must_reach_every_rank() -> None:
    check_fills(4, 4, name="x")
    with pytest.raises(UserError, match=r"pretrain.batch_rows = 3.*at least 1 for each of the 4") as caught:
        check_fills(3, 4, name="pretrain.batch_rows")
    assert "--nproc 3" in str(caught.value)
