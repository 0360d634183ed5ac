"""Numbers that are no numbers, and ranks that do not move: in the real loop, on real ranks."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from survival.runs import STEPS, Run, check_proof, left_over, newest, numbers

from train.exit_codes import DIVERGED, DONE, HUNG

pytestmark = pytest.mark.slow


def no_number(step: int, until: int | None = None, rank: int = 1) -> dict[str, Any]:
    """What the model gives on one rank is NaN in these steps."""
    return {"at": "forward", "step": step, "until": until or step, "ranks": [rank], "do": "NAN"}


def kinds(run: Run) -> list[str]:
    """The ledger's kinds of lines but the usual ones, in order."""
    return [r["kind"] for r in run.records() if r["kind"] not in ("header", "step", "checkpoint")]


@pytest.mark.parametrize("phase", ["finetune", "pretrain"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_step_of_nan_is_skipped_by_all(phase: str, stage: int, run: Run, undisturbed: Any) -> None:
    run.phase, run.settings = phase, {"zero_stage": stage}
    run.start(2, no_number(12), expect=DONE)
    steps = run.steps()
    assert [s["step"] for s in steps if "skipped" in s] == [12]
    assert "nan" in steps[11]["skipped"]
    assert len(steps) == STEPS
    assert all(math.isfinite(s["loss"]) for s in steps if "skipped" not in s)
    whole = undisturbed(phase, 2, zero_stage=stage).steps()
    assert numbers(steps[:11]) == numbers(whole[:11])
    proof = check_proof(run)
    assert [step for step, _ in proof.skipped] == [12]
    weights = load_file(run.starts[-1].out / "model" / "model.safetensors")
    assert all(bool(w.isfinite().all()) for w in weights.values())
    assert newest(run.checkpoints).name == f"step-{STEPS:08d}"


def state(checkpoint: Path) -> dict[str, list[float]]:
    """Weights and moments of all ranks' files, without the random generators; and the count of updates."""
    tensors = {
        f"{path.name}/{name}": tensor.tolist()
        for path in checkpoint.glob("state-*")
        for name, tensor in load_file(path).items()
        if not name.startswith("own:")
    }
    return tensors | {"updates": [json.loads((checkpoint / "manifest.json").read_text())["facts"]["updates"]]}


def test_several_in_a_row_go_back_and_set_the_samples_aside(run: Run) -> None:
    """Steps 12, 13 and 14 are bad: the weights of step 10 again, without the samples of 11 to 14."""
    plan = no_number(12, 14)
    whole = run.copy(run.home.with_name("whole"))
    whole.start(2, plan, expect=DONE)
    (rewind,) = [r for r in whole.records() if r["kind"] == "rewind"]
    assert (rewind["to_step"], rewind["step"], rewind["first"], rewind["end"]) == (10, 14, 80, 112)
    assert kinds(whole) == ["start", "rewind", "end"]
    assert all(math.isfinite(s["loss"]) for s in whole.steps()[14:])
    proof = check_proof(whole)
    assert any("set aside" in sentence for sentence in proof.sentences())

    # killed right after the rewind, at each of its two halves: before and after its own checkpoint
    for number, fault in enumerate(
        [{"at": "save: copy", "step": 14}, {"at": "save: latest", "step": 14}, {"at": "data", "step": 16}]
    ):
        again = run.copy(run.home.with_name(f"again-{number}"))
        result = again.start(2, plan, {**fault, "ranks": [0], "do": "KILL-ALL"})
        assert result.codes == [-9, -9], result.told()
        if fault["at"] == "save: latest":
            assert state(again.checkpoints / "step-00000014") == state(again.checkpoints / "step-00000010")
        again.start(2, plan, expect=DONE)
        assert numbers(again.steps()) == numbers(whole.steps()), fault
        assert again.weights() == whole.weights(), fault
        assert left_over(again.checkpoints) == []
        check_proof(again)


def test_always_nan_gives_up_with_one_line(run: Run) -> None:
    run.guard = {"bad_steps": 2, "rewinds": 2}
    result = run.start(2, no_number(7, 1000))
    assert result.code == DIVERGED, result.told()
    assert set(result.codes) == {DIVERGED}, result.told()
    said = result.told()
    assert "Traceback" not in said
    told = result.failure() or said
    assert "diverged" in told and "Fix" in told and "2 rewinds" in told, said
    assert kinds(run).count("rewind") == 2


def test_nan_from_the_first_step_on_gives_up(run: Run) -> None:
    """Before any checkpoint there is nothing to go back to."""
    result = run.start(2, no_number(1, 1000))
    assert result.code == DIVERGED, result.told()
    assert "before any checkpoint" in (result.failure() or result.told())
    assert "Traceback" not in result.told()


def test_a_rank_that_stands_still_is_named(run: Run, undisturbed: Any) -> None:
    beats = run.home / "beats"
    beats.mkdir(parents=True)
    heartbeat = {"folder": beats, "hang_after_s": 2.0, "start_within_s": 60.0}
    result = run.start(
        2, {"at": "data", "step": 13, "ranks": [1], "do": "STOP"}, heartbeat=heartbeat
    )  # fmt: skip
    assert result.codes[0] == HUNG, result.told()
    assert result.late == [1] and result.codes[1] == -signal.SIGKILL, "the launcher ends what is stopped"
    verdict = json.loads((beats / "verdict.json").read_text())
    assert "rank 1" in verdict["line"] and "step 13" in verdict["line"], verdict
    assert verdict["line"] in result.stderr[0]
    run.start(2, heartbeat=heartbeat | {"folder": run.home / "beats-2"}, expect=DONE)
    assert numbers(run.steps()) == numbers(undisturbed().steps())
    check_proof(run)
