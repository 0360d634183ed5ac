"""InfoNCE against its definition, mask by mask, and the invariance to shares and blocks."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import definitions
import pytest
import torch
from definitions import Batch, batch, row, tangled

from data_prep.errors import UserError
from train.objectives.info_nce import info_nce
from train.relations import Chosen

OPTIONS: list[dict[str, Any]] = [
    {},
    {"symmetric": True},
    {"query_negatives": True},
    {"passage_negatives": True},
    {"false_negative_margin": 0.1},
    {"false_negative_margin": -0.2, "symmetric": True},
    {"symmetric": True, "query_negatives": True, "passage_negatives": True, "false_negative_margin": 0.05},
]


def grads(loss: torch.Tensor, *leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("block", [3, None])
def test_loss_and_gradients_are_the_definition(options: dict[str, Any], seed: int, block: int | None) -> None:
    world = tangled(seed=seed)
    leaves = world.leaves()
    wanted = definitions.info_nce(world, *leaves, temperature=0.2, **options)
    got = info_nce(*leaves, world.relations, temperature=0.2, block=block, **options)
    # a third, the weight of one of three positives, has the digits of fp32
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=1e-7)
    torch.testing.assert_close(grads(got, *leaves), grads(wanted, *leaves), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 5, 40])
def test_shares_sum_to_the_whole(options: dict[str, Any], parts: int) -> None:
    world = tangled(seed=2)
    leaves = world.leaves()
    whole = info_nce(*leaves, world.relations, temperature=0.1, **options)
    shares = [info_nce(*leaves, world.relations, temperature=0.1, share=(n, parts), **options) for n in range(parts)]
    assert float(torch.stack(shares).sum().detach()) == pytest.approx(float(whole.detach()), rel=1e-12)
    each = [grads(s, *leaves) for s in shares]
    summed = tuple(torch.stack(parts_of_one).sum(0) for parts_of_one in zip(*each, strict=True))
    torch.testing.assert_close(summed, grads(whole, *leaves), rtol=1e-10, atol=1e-12)


def test_an_empty_share_is_zero_and_has_gradients() -> None:
    world = batch([row("a", ["x"]), row("b", ["y"])])
    leaves = world.leaves()
    loss = info_nce(*leaves, world.relations, temperature=0.1, symmetric=True, share=(0, 3))
    assert float(loss.detach()) == 0
    assert not any(g.any() for g in grads(loss, *leaves))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_fp32_agrees_with_fp64_at_a_paper_temperature(options: dict[str, Any]) -> None:
    world = tangled(60, seed=3, dimension=24)
    q, p = world.leaves()
    wanted = info_nce(q, p, world.relations, temperature=0.02, **options)
    small = [world.queries.float().requires_grad_(), world.passages.float().requires_grad_()]
    got = info_nce(*small, world.relations, temperature=0.02, block=16, **options)
    assert got.dtype == torch.float32
    assert float(got.detach()) == pytest.approx(float(wanted.detach()), rel=2e-6)
    for mine, reference in zip(grads(got, *small), grads(wanted, q, p), strict=True):
        assert float((mine - reference).norm() / reference.norm()) < 1e-5


ALONE = [row("q0", ["a"]), row("q1", ["b"]), row("q2", ["c"], ["n"])]


def place(**where: str) -> dict[str, str]:
    return where


# name, rows, and the negatives that remain to the first anchor (q0, a): passages of q0, then queries of a (symmetric)
CASES: list[tuple[str, list[Chosen], list[int], list[int]]] = [
    ("nothing in common", ALONE, [1, 2, 3], [1, 2]),
    ("a positive twice", [ALONE[0], row("q1", ["a"]), ALONE[2]], [2, 3], [2]),
    ("a second positive", [row("q0", ["a", "b"]), row("q1", ["c"])], [2], [1]),
    ("a positive that was not drawn", [row("q0", ["a"], known=["n"]), *ALONE[1:]], [1, 2], [1, 2]),
    ("a passage that is the query", [ALONE[0], row("q1", ["q0"]), ALONE[2]], [2, 3], [1, 2]),
    ("a query that is the positive", [ALONE[0], row("a", ["b"]), ALONE[2]], [1, 2, 3], [2]),
    ("the same query twice", [ALONE[0], row("q0", ["b"]), ALONE[2]], [1, 2, 3], [2]),
    (
        "a passage of the positive's document",
        [row("q0", ["a"], documents=place(a="D")), row("q1", ["b"], documents=place(b="D")), ALONE[2]],
        [2, 3],
        [2],
    ),
    (
        "a stored negative of the query's own document",
        [row("q0", ["a"], ["n"], documents=place(q0="D", n="D")), row("q1", ["b"])],
        [2],
        [1],
    ),
    ("unknown documents", [row("q0", ["a"], documents=place(a="D")), *ALONE[1:]], [1, 2, 3], [1, 2]),
]


@pytest.mark.parametrize(("rows", "columns", "queries"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_each_mask_leaves_exactly_these_negatives(rows: list[Chosen], columns: list[int], queries: list[int]) -> None:
    world = batch(rows)
    q, p = world.queries, world.passages
    anchors = len(world.relations.anchor_query)
    weight = float(world.relations.anchor_weight[0]) / len(rows)
    forward = info_nce(q, p, world.relations, temperature=0.3, share=(0, anchors))
    both = info_nce(q, p, world.relations, temperature=0.3, share=(0, anchors), symmetric=True)
    there = definitions.softmax_loss(q[0] @ p[0], [q[0] @ p[c] for c in columns], 0.3)
    back = definitions.softmax_loss(q[0] @ p[0], [p[0] @ q[k] for k in queries], 0.3)
    assert float(forward) == pytest.approx(weight * float(there), rel=1e-10)
    assert float(both) == pytest.approx(weight * float(there + back) / 2, rel=1e-10)


def at_angles(*degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees], dtype=torch.float64)


def test_a_negative_closer_than_the_positive_by_the_margin_is_hidden_without_gradient() -> None:
    rows = [row("q0", ["a"], ["near", "just", "far"]), row("q1", ["b"])]
    # q0 at 0°: cosines .866 (a), .985 (near: +.119), .940 (just: +.074), .5 (far), -1 (b)
    world = Batch(rows, at_angles(0, 90), at_angles(30, 10, 20, 60, 180))
    q, p = world.leaves()
    loss = info_nce(q, p, world.relations, temperature=0.1, false_negative_margin=0.1, share=(0, 2))
    wanted = definitions.softmax_loss(q[0] @ p[0], [q[0] @ p[c] for c in (2, 3, 4)], 0.1) / 2
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-10)
    mine, reference = grads(loss, q, p), grads(wanted, q, p)
    torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)
    assert not mine[1][1].any()


def test_queries_that_share_a_positive_or_a_document_are_no_negatives_of_each_other() -> None:
    rows = [
        row("q0", ["a"], documents=place(a="D")),
        row("q1", ["b"], known=["a"]),
        row("q2", ["c"], documents=place(c="D")),
        row("q3", ["d"]),
    ]
    world = batch(rows)
    q, p = world.queries, world.passages
    got = info_nce(q, p, world.relations, temperature=0.3, query_negatives=True, share=(0, 4))
    # passage c is of the same document as a, too
    wanted = definitions.softmax_loss(q[0] @ p[0], [q[0] @ p[1], q[0] @ p[3], q[0] @ q[3]], 0.3)
    assert float(got) == pytest.approx(float(wanted) / 4, rel=1e-10)


def test_every_query_weighs_the_same_however_many_positives_it_has() -> None:
    many = batch([row("q0", ["a", "a2", "a3"]), row("q1", ["b"])])
    q, p = many.queries, many.passages
    shares = [float(info_nce(q, p, many.relations, temperature=0.3, share=(n, 4))) for n in range(4)]
    first = [float(definitions.softmax_loss(q[0] @ p[a], [q[0] @ p[3]], 0.3)) for a in range(3)]
    assert shares[:3] == pytest.approx([x / 3 / 2 for x in first], rel=1e-7)
    assert shares[3] == pytest.approx(float(definitions.softmax_loss(q[1] @ p[3], list(p[:3] @ q[1]), 0.3)) / 2)


def test_a_single_row_has_nothing_to_learn_from() -> None:
    world = batch([row("q0", ["a"])])
    leaves = world.leaves()
    loss = info_nce(
        *leaves, world.relations, temperature=0.05, symmetric=True, query_negatives=True, passage_negatives=True
    )
    assert float(loss.detach()) == 0
    assert not any(g.any() for g in grads(loss, *leaves))


def test_half_precision_embeddings_are_widened() -> None:
    world = tangled(seed=4)
    q, p = world.queries.bfloat16(), world.passages.bfloat16()
    got = info_nce(q, p, world.relations, temperature=0.05)
    wanted = info_nce(q.double(), p.double(), world.relations, temperature=0.05)
    assert got.dtype == torch.float32
    assert float(got) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_wrong_temperature_says_so(temperature: float) -> None:
    world = tangled()
    with pytest.raises(UserError, match=r"temperature = .*must be greater than 0.*Fix: "):
        info_nce(world.queries, world.passages, world.relations, temperature=temperature)


def test_a_batch_without_positives_says_so() -> None:
    world = batch([row("q0", [], ["a"]), row("q1", [], ["b"])])
    with pytest.raises(UserError, match=r"2 queries without a positive.*Fix: "):
        info_nce(world.queries, world.passages, world.relations, temperature=0.05)


def test_importing_the_objectives_does_not_import_torch() -> None:
    names = ["causal_lm", "cosent", "info_nce", "margin", "matryoshka", "triplet"]
    code = "".join(f"import train.objectives.{n}\n" for n in names) + "import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
