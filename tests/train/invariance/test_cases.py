"""Promise 1: the same loss and the same gradient of every parameter, however the work is cut and dealt.

Real processes, the real engine and the real step, against float64 definitions of one process (reference.py). The
settings are a sample that covers every pair of them (cases.py).
"""

from __future__ import annotations

from typing import Any

import pytest
from invariance.cases import WORLDS, Case, all_cases
from invariance.collectives import gradient_reductions
from invariance.plan import bucket_cases, lopsided_cases
from invariance.suite import NO_INFLUENCE, TOLERANCE, Suite, compare

pytestmark = pytest.mark.slow


def assert_case(suite: Suite, case: Case, *, name: str | None = None, device: str = "cpu") -> None:
    errors = suite.errors(case, name=name, device=device)
    assert errors.loss <= TOLERANCE
    assert {n: e for n, e in errors.gradients.items() if e > TOLERANCE} == {}


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_loss_and_every_gradient_equal_the_definition(suite: Suite, case: Case) -> None:
    assert_case(suite, case)


@pytest.mark.parametrize("world", WORLDS)
def test_the_same_over_nccl(suite: Suite, world: int) -> None:
    import torch

    if torch.cuda.device_count() < world:
        pytest.skip(f"{torch.cuda.device_count()} GPUs, {world} are needed")
    for case in all_cases():
        if case.world == world:
            assert_case(suite, case, device="cuda")


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_what_ran_is_what_the_settings_say(suite: Suite, case: Case) -> None:
    facts, settings = suite.facts(case.world)[f"case-{case.number}"], case.settings
    assert facts["layout"] == settings["layout"], "a model that cannot be packed would be padded"
    chunks, kept = facts["chunks"], facts["kept"]
    if settings["chunks"] == "one":
        assert (chunks, kept) == (1, 1)
    else:
        assert chunks >= 4
        wanted = {"all of several": chunks, "2 of several": 2, "1 of several": 1}[settings["chunks"]]
        # a rank with fewer chunks than others keeps as many, and repeats fewer
        assert kept == wanted
    recomputed = chunks if settings["checkpointing"] == "on" else 0
    assert facts["layer_runs"] == chunks + (chunks - kept) + recomputed


@pytest.mark.parametrize("case", lopsided_cases(), ids=lambda case: case.name)
def test_ranks_with_one_text_keep_step_with_empty_chunks(suite: Suite, case: Case) -> None:
    name = f"lopsided-{case.number}"
    assert suite.facts(3)[name]["chunks"] > suite.facts(3)[f"case-{case.number}"]["chunks"]
    assert_case(suite, case, name=name)


def test_damaged_weights_of_one_rank_show_in_the_loss_of_all(suite: Suite) -> None:
    assert suite.facts(3)["nan"]["shares"] == ["nan"] * 3


@pytest.mark.parametrize("mistake", ["scale", "detached"])
def test_the_comparison_notices_a_wrong_exchange_of_gradients(suite: Suite, mistake: str) -> None:
    """Patched inside the ranks: gradients of other ranks' losses averaged instead of summed, or left out."""
    facts = suite.facts(2)
    names = [name for name in facts if name.startswith(mistake)]
    assert len(names) == 4, "one of each ZeRO stage"
    for name in names:
        case = all_cases()[int(name.split("-")[1]) - 1]
        errors = suite.errors(case, name=name)
        assert errors.loss <= TOLERANCE, "the loss alone would not tell"
        with pytest.raises(AssertionError):
            assert_case(suite, case, name=name)
        assert errors.worst > 100 * TOLERANCE
        if mistake == "scale":
            assert min(e for n, e in errors.gradients.items() if not n.endswith("key.bias")) == pytest.approx(
                0.5, rel=1e-4
            )


def test_the_measure_of_errors() -> None:
    import torch

    wanted: dict[str, Any] = {
        "loss": torch.tensor(2.0, dtype=torch.float64),
        "a": torch.tensor([3.0, 4.0], dtype=torch.float64),
        "b": torch.zeros(2, dtype=torch.float64),
    }
    found = compare(2.0002, {"a": torch.tensor([3.0, 4.005]), "b": torch.tensor([0.0, 0.05])}, wanted)
    assert found.loss == pytest.approx(1e-4)
    assert found.gradients["a"] == pytest.approx(1e-3, rel=1e-4)
    assert found.gradients["b"] == pytest.approx(0.01, rel=1e-4), "against the whole gradient, where its own is nothing"
    assert NO_INFLUENCE < TOLERANCE**2
    with pytest.raises(AssertionError, match="other parameters"):
        compare(2.0, {"a": torch.zeros(2)}, wanted)


def test_zero_0_and_1_reduce_gradients_once(suite: Suite) -> None:
    cases = [c for c in all_cases() if c.settings["zero"] in ("0", "1") and c.settings["chunks"] != "one"]
    assert {c.settings["zero"] for c in cases} == {"0", "1"}
    assert {c.settings["chunks"] for c in cases} >= {"1 of several", "2 of several", "all of several"}
    for case in cases:
        assert gradient_reductions(suite.facts(case.world)[f"case-{case.number}"]["collectives"]) == 1, case.name


def test_reduce_once_does_so_under_zero_2_and_3_which_else_reduce_in_every_pass(suite: Suite) -> None:
    seen = set()
    for case in all_cases():
        stage, once = case.settings["zero"][0], case.settings["zero"].endswith("once")
        if stage in "23":
            facts = suite.facts(case.world)[f"case-{case.number}"]
            # kept graphs are carried back together
            passes = 1 if once else 1 + facts["chunks"] - facts["kept"]
            assert gradient_reductions(facts["collectives"]) == passes, case.name
            seen.add((stage, once, passes > 1))
    assert {("2", False, True), ("3", False, True), ("2", True, False), ("3", True, False)} <= seen


def test_embeddings_are_exchanged_in_three_collectives(suite: Suite) -> None:
    for case in all_cases():
        told = suite.facts(case.world)[f"case-{case.number}"]["collectives"]
        # agree on the number of chunks, gather the embeddings, sum their gradients
        wanted = {"allgather_": 1, "allreduce_": 2} if case.world > 1 else None
        assert told.get("elsewhere") == wanted, case.name


def test_a_model_larger_than_a_bucket_is_reduced_once_a_bucket(suite: Suite) -> None:
    """Buckets are cut by size alone: parameter groups share them, and chunks do not add to them."""
    counts: dict[str, list[int]] = {}
    for name, case in bucket_cases().items():
        facts = suite.facts(2)[name]
        assert facts["chunks"] >= (1 if case.settings["chunks"] == "one" else 4)
        counts.setdefault(case.settings["zero"], []).append(gradient_reductions(facts["collectives"]))
        assert_case(suite, case, name=name)
    for zero, found in counts.items():
        assert len(found) == 3
        assert len(set(found)) == 1, zero
        assert found[0] > 2
