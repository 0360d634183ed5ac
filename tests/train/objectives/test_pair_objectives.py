"""Margin, triplet, CoSENT and Matryoshka against their definitions."""

from __future__ import annotations

from functools import partial
from typing import Any

import definitions
import pytest
import torch
from definitions import batch, row, tangled

from data_prep.errors import UserError
from train.objectives import OBJECTIVES
from train.objectives.cosent import cosent
from train.objectives.info_nce import info_nce
from train.objectives.margin import margin_contrastive
from train.objectives.matryoshka import matryoshka
from train.objectives.triplet import triplet

LOSSES: dict[str, tuple[Any, Any]] = {
    "margin": (partial(margin_contrastive, margin=0.7), partial(definitions.margin, margin=0.7)),
    "triplet": (partial(triplet, margin=0.4), partial(definitions.triplet, margin=0.4)),
    "cosent": (partial(cosent, temperature=0.1), partial(definitions.cosent, temperature=0.1)),
    "info_nce": (partial(info_nce, temperature=0.1), partial(definitions.info_nce, temperature=0.1)),
}


def test_each_name_has_a_loss_here() -> None:
    assert set(OBJECTIVES) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_loss_and_gradients_are_the_definition(name: str, seed: int) -> None:
    mine, definition = LOSSES[name]
    world = tangled(seed=seed)
    leaves = world.leaves()
    got, wanted = mine(*leaves, world.relations), definition(world, *leaves)
    assert float(wanted.detach()) > 0
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-7)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 60])
@pytest.mark.parametrize("dims", [[], [2, 4]])
def test_shares_sum_to_the_whole(name: str, parts: int, dims: list[int]) -> None:
    loss = partial(matryoshka, LOSSES[name][0], dims)
    world = tangled(seed=5)
    leaves = world.leaves()
    whole = loss(*leaves, world.relations)
    shares = [loss(*leaves, world.relations, share=(n, parts)) for n in range(parts)]
    assert float(torch.stack(shares).sum().detach()) == pytest.approx(float(whole.detach()), rel=1e-10)
    summed = torch.autograd.grad(torch.stack(shares).sum(), leaves)
    torch.testing.assert_close(summed, torch.autograd.grad(whole, leaves), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_fp32_agrees_with_fp64(name: str) -> None:
    loss = LOSSES[name][0]
    world = tangled(40, seed=6, dimension=16)
    wanted = float(loss(world.queries, world.passages, world.relations))
    got = loss(world.queries.float(), world.passages.float(), world.relations)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(wanted, rel=2e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dims", [[3, 2], [6, 3]])
def test_matryoshka_is_the_mean_over_the_whole_and_its_prefixes(name: str, dims: list[int]) -> None:
    mine, definition = LOSSES[name]
    world = tangled(seed=1)
    leaves = world.leaves()
    terms = []
    for d in {*dims} - {6}:
        prefixes = [torch.stack([v[:d] / (v[:d] @ v[:d]).sqrt() for v in vectors]) for vectors in leaves]
        terms.append(definition(world, *prefixes))
    terms.append(definition(world, *leaves))  # the whole is unit already
    got, wanted = matryoshka(mine, dims, *leaves, world.relations), sum(terms) / len(terms)
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-7)
    torch.testing.assert_close(
        torch.autograd.grad(got, leaves), torch.autograd.grad(wanted, leaves), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("dims", [[7], [0, 3], [3, 3]])
def test_wrong_prefixes_name_the_models_dimension(dims: list[int]) -> None:
    world = tangled()
    with pytest.raises(UserError, match=r"matryoshka dims = .* from 1 to 6, the dimension of this model.*Fix: "):
        matryoshka(LOSSES["info_nce"][0], dims, world.queries, world.passages, world.relations)


def test_triplet_leaves_out_queries_without_negatives() -> None:
    rows = [row("q0", ["a", "a2"], ["n", "n2"]), row("q1", ["b"])]
    world = batch(rows)
    q, p = world.queries, world.passages
    hinges = [max(0.0, float(q[0] @ p[n] - q[0] @ p[a]) + 0.5) for a in (0, 1) for n in (2, 3)]
    got = triplet(q, p, world.relations, margin=0.5)
    assert float(got) == pytest.approx(sum(hinges) / 4, rel=1e-7)


def test_cosent_couples_nothing_where_scores_are_equal_or_unknown() -> None:
    world = batch([row("q0", ["a"], scores={"a": 0.5}), row("q1", ["b"], ["n"], scores={"b": 0.5})])
    leaves = world.leaves()
    loss = cosent(*leaves, world.relations, temperature=0.05)
    assert float(loss.detach()) == 0
    assert not any(g.any() for g in torch.autograd.grad(loss, leaves))


def test_cosent_does_not_overflow_at_a_low_temperature() -> None:
    world = tangled(seed=7)
    q, p = world.leaves()
    got = cosent(q, p, world.relations, temperature=0.0005)
    worst = max(
        float((q[i] @ p[low] - q[k] @ p[high]).detach())
        for low, i, _, _, _, low_score in world.passage_facts()
        for high, k, _, _, _, high_score in world.passage_facts()
        if low_score is not None and high_score is not None and low_score < high_score
    )
    assert float(got.detach()) == pytest.approx(worst / 0.0005, rel=1e-3)
    assert all(g.isfinite().all() for g in torch.autograd.grad(got, (q, p)))


NO_NEGATIVES = [row("q0", ["a"]), row("q1", ["b"])]


@pytest.mark.parametrize(
    ("loss", "rows", "message"),
    [
        (partial(triplet, margin=0.5), NO_NEGATIVES, r"without a stored negative.*Fix: mine"),
        (partial(cosent, temperature=0.05), NO_NEGATIVES, r"without a teacher score.*Fix: mine"),
        (partial(triplet, margin=0.0), NO_NEGATIVES, r"margin = 0\.0: must be greater than 0"),
        (partial(margin_contrastive, margin=-1.0), NO_NEGATIVES, r"margin = -1\.0: must be greater than 0"),
        (partial(cosent, temperature=0.0), NO_NEGATIVES, r"temperature = 0\.0: must be greater than 0"),
        (partial(margin_contrastive, margin=0.5), [row("q0", [], ["n"])], r"1 queries without a positive"),
    ],
)
def test_mistakes_say_value_rule_and_fix(loss: Any, rows: list[Any], message: str) -> None:
    world = batch(rows)
    with pytest.raises(UserError, match=message):
        loss(world.queries, world.passages, world.relations)
