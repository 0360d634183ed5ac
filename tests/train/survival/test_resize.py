"""Resize it: going on with other ranks, another ZeRO stage or another batch size uses the same samples, once each.

The numbers of other ranks differ in the last bits only, since sums of floats depend on their order: the limit is 1e-5
relative, against one process under ZeRO 0 that nobody stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from survival.runs import BATCH, BATCH_FIELD, STEPS, Run, check_proof, left_over

from train.exit_codes import DONE, STOPPED
from train.history.verify import verify

pytestmark = pytest.mark.slow

LIMIT = 1e-5


def apart(one: list[dict[str, Any]], other: list[dict[str, Any]], name: str) -> float:
    """The largest relative difference of a number over all steps."""
    return max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(one, other, strict=True))


def weights_apart(one: Run, other: Run) -> float:
    """The largest |difference| / |weights| of a tensor of the final models."""
    ours, theirs = (load_file(r.starts[-1].out / "model" / "model.safetensors") for r in (one, other))
    assert ours.keys() == theirs.keys()
    return max(float((ours[k] - theirs[k]).norm() / theirs[k].norm()) for k in ours)


@pytest.mark.parametrize("phase", ["finetune", "pretrain"])
def test_any_ranks_and_any_stage(phase: str, run: Run, undisturbed: Any) -> None:
    run.phase = phase
    for ranks, stage, end in ((2, 1, 8), (4, 2, 14), (1, 3, 21)):
        run.settings["zero_stage"] = stage
        fault = {"at": "after update", "step": end, "ranks": [0], "do": "KILL-ALL"}
        assert run.start(ranks, fault).codes == [-9] * ranks, run.starts[-1].told()
    run.settings["zero_stage"] = 0
    run.start(3, expect=DONE)
    whole = undisturbed(phase, 1, zero_stage=0)
    assert [(s["ranks"], s["zero_stage"]) for s in run.records() if s["kind"] == "start"] == [
        (2, 1),
        (4, 2),
        (1, 3),
        (3, 0),
    ]
    assert [s["order"] for s in run.steps()] == [s["order"] for s in whole.steps()]
    assert [s["rate"] for s in run.steps()] == [s["rate"] for s in whole.steps()]
    assert apart(run.steps(), whole.steps(), "loss") < LIMIT
    assert apart(run.steps(), whole.steps(), "grad_norm") < 10 * LIMIT
    assert weights_apart(run, whole) < 10 * LIMIT
    assert left_over(run.checkpoints) == []
    check_proof(run)


def _used(steps: list[dict[str, Any]]) -> tuple[list[int], dict[str, int]]:
    """(every place that a step covers, in order; the position at each place where it is another)."""
    places = [place for s in steps for place in range(s["first"], s["end"])]
    return places, {place: position for s in steps for place, position in s["moved"].items()}


@pytest.mark.parametrize("phase", ["finetune", "pretrain"])
def test_another_batch_size_uses_the_same_sequence_once(phase: str, run: Run, undisturbed: Any) -> None:
    """8, then 16, then 4: the losses are others, of course; samples, their order and the rate at each sample are not."""
    run.phase = phase
    whole = undisturbed(phase).steps()
    for batch, end in ((BATCH, 10), (2 * BATCH, 15)):
        run.settings[BATCH_FIELD[phase]] = batch
        run.start(2, {"at": "data", "step": end, "ranks": [1], "do": "TERM"}, expect=STOPPED)
    run.settings[BATCH_FIELD[phase]] = BATCH // 2
    run.start(2, expect=DONE)
    steps = run.steps()
    assert sorted({s["end"] - s["first"] for s in steps}) == [4, 8, 16]
    assert _used(steps) == _used(whole)
    assert _used(steps)[0] == list(range(STEPS * BATCH))
    rates = {s["first"]: s["rate"] for s in whole}
    assert all(s["rate"] == rates[s["first"]] for s in steps if s["first"] in rates)
    assert all(s["rate"] <= max(rates.values()) for s in steps)
    check_proof(run)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_last_step_with_fewer_texts_than_ranks(stage: int, run: Run, tmp_path: Path) -> None:
    """2 pairs a step, then 8 on six ranks: the rest of 2 pairs has 4 texts, so two ranks hold none."""
    run.settings |= {"batch_pairs": 2, "max_steps": 14, "hard_negatives": 0, "zero_stage": stage}
    run.start(1, {"at": "data", "step": 1, "ranks": [0], "do": "TERM"}, expect=STOPPED)
    run.settings["batch_pairs"] = 8
    alone = run.copy(tmp_path / "alone")
    run.start(6, expect=DONE)
    alone.start(1, expect=DONE)
    assert [s["end"] - s["first"] for s in run.steps()] == [2, 8, 8, 8, 2]
    assert [s["order"] for s in run.steps()] == [s["order"] for s in alone.steps()]
    assert apart(run.steps(), alone.steps(), "loss") < LIMIT
    assert apart(run.steps(), alone.steps(), "grad_norm") < 10 * LIMIT
    proof = verify(run.history / "ledger.jsonl")
    assert proof.claim().startswith("Proven") and proof.samples == 28
