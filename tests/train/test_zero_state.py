"""Saving by pieces and restoring under every ZeRO stage, on other ranks, after refused steps; see zero_job.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from zero_cases import CASES, CROSSINGS, HALF, PLANTED, RUN, STEPS, WORLDS, reference

State = dict[str, torch.Tensor]
RUNS = [(world, name) for world in WORLDS for name in RUN[world]]
CROSSED = [(worlds, names) for worlds, pairs in CROSSINGS.items() for names in pairs]
ROUNDED = 1e-6  # relative difference of fp32 training on another number of ranks


@pytest.fixture(scope="session")
def runs(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with what each number of ranks wrote; all cases of a number share one start."""
    root = tmp_path_factory.mktemp("zero")
    for world in WORLDS:
        (root / str(world)).mkdir()
        script = Path(__file__).with_name("zero_job.py")
        forks.run(script, root / str(world), ranks=world, log=root / f"{world}.log", within_s=500)
    return root


def facts(runs: Path, world: int) -> dict[str, Any]:
    """What rank 0 measured."""
    found: dict[str, Any] = json.loads((runs / str(world) / "facts.json").read_text())
    return found


def state(runs: Path, world: int, name: str) -> State:
    """A whole state: "name/kind" → flat tensor."""
    return load_file(runs / str(world) / f"{name}.safetensors")


def unequal(a: State, b: State) -> list[str]:
    """What is not the same bit for bit."""
    return sorted(
        {key for key in a.keys() | b.keys() if key not in a or key not in b or not torch.equal(a[key], b[key])}
    )


def distance(a: State, b: State) -> float:
    """The largest relative difference (2-norm) of a tensor that both hold."""
    pairs = [(a[key].double(), b[key].double()) for key in a.keys() & b.keys() if key != "updates"]
    assert pairs
    return max(float((x - y).norm() / y.norm().clamp(min=1e-30)) for x, y in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), RUNS)
def test_training_is_that_of_the_definition(world: int, name: str, runs: Path) -> None:
    expected, losses = reference(groups=CASES[name].get("groups", 2), steps=range(HALF.start, STEPS.stop))
    found = facts(runs, world)[name]
    bf16 = "bf16" in name
    assert torch.tensor(found["first"] + found["straight"]).allclose(
        torch.tensor(losses), rtol=1e-2 if bf16 else ROUNDED
    )
    assert distance(state(runs, world, f"{name}.straight"), expected) < (2e-2 if bf16 else ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), RUNS)
def test_the_same_ranks_and_stage_go_on_bit_for_bit(world: int, name: str, runs: Path) -> None:
    found = facts(runs, world)[name]
    middle, end = (state(runs, world, f"{name}.{when}") for when in ("middle", "straight"))
    assert int(middle["updates"]) == len(HALF) and int(end["updates"]) == len(HALF) + len(STEPS)
    assert unequal(middle, end), "training moved"
    for how in ("rewound", "fresh"):
        assert unequal(middle, state(runs, world, f"{name}.{how}-middle")) == []
        assert found[how] == found["straight"], "losses and norms"
        assert unequal(end, state(runs, world, f"{name}.{how}")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), RUNS)
def test_refused_steps_leave_no_trace(world: int, name: str, runs: Path) -> None:
    assert facts(runs, world)[name]["refused"] == facts(runs, world)[name]["straight"]
    assert unequal(state(runs, world, f"{name}.straight"), state(runs, world, f"{name}.refused")) == []


@pytest.mark.slow
@pytest.mark.parametrize(("world", "name"), RUNS)
def test_pieces_are_views_and_a_restore_holds_one_at_a_time(world: int, name: str, runs: Path) -> None:
    assert facts(runs, world)[name]["views"]
    assert facts(runs, world)[name]["most_alive"] == 1


@pytest.mark.slow
@pytest.mark.parametrize(("worlds", "names"), CROSSED)
def test_other_ranks_and_stages_go_on_as_well(worlds: tuple[int, int], names: tuple[str, str], runs: Path) -> None:
    (saver, goes_on), (source, name) = worlds, names
    key = f"{source} of {saver} to {name}"
    assert unequal(state(runs, saver, f"{source}.middle"), state(runs, goes_on, f"{key}-middle")) == []
    bf16 = "bf16" in name
    found, expected = (torch.tensor(x) for x in (facts(runs, goes_on)[key], facts(runs, saver)[source]["straight"]))
    assert found.allclose(expected, rtol=1e-2 if bf16 else ROUNDED)
    end = distance(state(runs, goes_on, key), state(runs, saver, f"{source}.straight"))
    assert end < (2e-2 if bf16 else ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mistake"), PLANTED)
def test_a_planted_mistake_is_found(name: str, mistake: str, runs: Path) -> None:
    end, wrong = state(runs, 2, f"{name}.straight"), state(runs, 2, f"{name}.planted-{mistake}")
    losses = torch.tensor(facts(runs, 2)[name]["straight"])
    wrong_losses = torch.tensor(facts(runs, 2)[f"{name} {mistake}"])
    assert unequal(end, wrong)
    assert distance(end, wrong) > 100 * ROUNDED or not losses.allclose(wrong_losses, rtol=100 * ROUNDED)
