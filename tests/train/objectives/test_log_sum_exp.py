"""Blockwise log-sum-exp: values, gradients, and that no score matrix is ever made."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from definitions import batch, row
from torch.utils._python_dispatch import TorchDispatchMode

from train.objectives.exact import exact_fp32
from train.objectives.info_nce import info_nce
from train.objectives.log_sum_exp import log_sum_exp as log_sum_exp_of
from train.objectives.masks import Hidden, shared


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=dtype)


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(numbers(*shape, seed=seed), dim=1)


def log_sum_exp(rows: torch.Tensor, columns: torch.Tensor, **options: Any) -> torch.Tensor:
    """Each vector is one row, but the vectors lie backwards in memory."""
    backwards = torch.arange(len(rows)).flip(0)
    return log_sum_exp_of(rows.flip(0), columns, rows=backwards, **options)


def hidden_and_mask(rows: int, columns: int) -> tuple[Hidden, torch.Tensor]:
    """Random relations, and the places that they hide, found by comparing sets of numbers."""
    draw = torch.Generator().manual_seed(7)
    left = torch.randint(-1, 9, (rows, 3), generator=draw)
    right = torch.randint(-1, 9, (columns, 1), generator=draw)
    many = torch.randint(-1, 30, (rows, 2), generator=draw), torch.randint(-1, 30, (columns, 4), generator=draw)
    left[0] = torch.tensor([3, 4, 5])
    own = torch.randint(0, columns, (rows,), generator=draw)
    mask = torch.zeros(rows, columns, dtype=torch.bool)
    for r in range(rows):
        for c in range(columns):
            common = set(left[r].tolist()) & set(right[c].tolist()) | set(many[0][r].tolist()) & set(
                many[1][c].tolist()
            )
            mask[r, c] = bool(common - {-1}) or int(own[r]) == c
    return Hidden(own, [(left, right), many]), mask


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 2)])
def test_shared_finds_each_pair_with_a_common_number(k: int, m: int) -> None:
    draw = torch.Generator().manual_seed(k)
    left, right = torch.randint(-1, 12, (17, k), generator=draw), torch.randint(-1, 12, (23, m), generator=draw)
    i, j = shared(left, right)
    wanted = {(a, b) for a in range(17) for b in range(23) if (set(left[a].tolist()) & set(right[b].tolist())) - {-1}}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == wanted


@pytest.mark.parametrize("rows", [0, 5])
@pytest.mark.parametrize("columns", [0, 5])
def test_shared_of_nothing_is_nothing(rows: int, columns: int) -> None:
    i, j = shared(torch.full((rows, 2), -1), torch.full((columns, 1), -1))
    assert len(i) == len(j) == 0


@pytest.mark.parametrize("block", [1, 4, 5, 64, None])
@pytest.mark.parametrize("ceiling", [False, True])
def test_value_and_gradients_are_those_of_the_whole_matrix(block: int | None, ceiling: bool) -> None:
    rows, columns = unit(13, 5).requires_grad_(), unit(17, 5, seed=1).requires_grad_()
    hidden, mask = hidden_and_mask(13, 17)
    limit = torch.linspace(-0.2, 0.9, 13, dtype=torch.float64) if ceiling else None
    products = rows @ columns.T
    if limit is not None:
        mask = mask | (products > limit[:, None])
    wanted = (products * 9).masked_fill(mask, float("-inf")).logsumexp(1)
    finite = wanted.isfinite()
    assert int(finite.sum()) > 8
    weights = torch.linspace(0.5, 1.5, 13, dtype=torch.float64)
    got = log_sum_exp(rows, columns, scale=9, hidden=hidden, ceiling=limit, block=block)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    reference = torch.autograd.grad((weights * wanted)[finite].sum(), (rows, columns))
    mine = torch.autograd.grad((weights * got)[finite].sum(), (rows, columns))
    torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


def test_finite_differences() -> None:
    rows, columns = unit(6, 4).requires_grad_(), unit(7, 4, seed=1).requires_grad_()
    hidden = Hidden(torch.arange(6), [])
    assert torch.autograd.gradcheck(
        lambda a, b: log_sum_exp(a, b, scale=3, hidden=hidden, block=4), (rows, columns), atol=1e-7
    )


def test_only_the_wanted_gradient_is_made() -> None:
    rows, columns = unit(6, 4).requires_grad_(), unit(7, 4, seed=1)
    log_sum_exp(rows, columns, scale=3, block=4).sum().backward()
    frozen = unit(6, 4)
    learned = unit(7, 4, seed=1).requires_grad_()
    log_sum_exp(frozen, learned, scale=3, block=4).sum().backward()
    both = unit(6, 4).requires_grad_(), unit(7, 4, seed=1).requires_grad_()
    (both[0] @ both[1].T * 3).logsumexp(1).sum().backward()
    torch.testing.assert_close((rows.grad, learned.grad), (both[0].grad, both[1].grad))


def test_a_vector_may_stand_in_several_rows() -> None:
    vectors, columns = unit(3, 4).requires_grad_(), unit(6, 4, seed=1).requires_grad_()
    rows = torch.tensor([2, 0, 2, 2, 0])
    weights = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    got = (weights * log_sum_exp_of(vectors, columns, rows=rows, scale=4, block=2)).sum()
    wanted = (weights * (4 * vectors[rows] @ columns.T).logsumexp(1)).sum()
    mine, reference = (torch.autograd.grad(loss, (vectors, columns)) for loss in (got, wanted))
    torch.testing.assert_close(mine, reference)
    assert not mine[0][1].any()


def test_queries_against_themselves_get_both_gradients() -> None:
    vectors = unit(5, 4).requires_grad_()
    got = log_sum_exp_of(vectors, vectors, rows=torch.arange(5), scale=4, block=2).sum()
    wanted = (4 * vectors @ vectors.T).logsumexp(1).sum()
    torch.testing.assert_close(*(torch.autograd.grad(loss, vectors) for loss in (got, wanted)))


def test_a_row_without_columns_is_minus_infinity_and_pushes_nothing() -> None:
    rows, columns = unit(3, 4).requires_grad_(), unit(5, 4, seed=1).requires_grad_()
    everything = torch.tensor([[8], [9], [8]]), torch.full((5, 1), 8)
    got = log_sum_exp(rows, columns, scale=50, hidden=Hidden(torch.zeros(3, dtype=torch.long), [everything]), block=2)
    assert got.isinf().tolist() == [True, False, True] and float(got[0].detach()) < 0
    torch.logaddexp(got, torch.zeros_like(got)).sum().backward()
    assert rows.grad.isfinite().all() and columns.grad.isfinite().all()
    assert rows.grad.any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("scale", [1.0, 100.0, 2000.0])
def test_fp32_keeps_its_digits_at_any_temperature(scale: float) -> None:
    rows, columns = unit(300, 16), unit(400, 16, seed=1)
    wanted = (rows.float().double() @ columns.float().double().T * scale).logsumexp(1)
    got = log_sum_exp(rows.float(), columns.float(), scale=scale, block=64)
    # cosines have an error of about 1e-7, which the scale multiplies; nothing is added to it
    torch.testing.assert_close(got, wanted, rtol=0, atol=3e-7 * scale)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_no_matrix_of_rows_by_columns_is_made_in_either_pass() -> None:
    rows, columns = unit(900, 4).float().requires_grad_(), unit(1100, 4, seed=1).float().requires_grad_()
    ids = torch.arange(1100) // 2
    hidden = Hidden(torch.arange(900), [(ids[:900, None], ids[:, None])])
    with LargestTensor() as seen:
        log_sum_exp(rows, columns, scale=20, hidden=hidden, ceiling=torch.ones(900), block=70).sum().backward()
    assert 70 * 70 <= seen.numbers <= max(1100 * 4, 70 * 70)


def test_nothing_lives_on_after_the_loss() -> None:
    rows, columns = unit(8, 4).requires_grad_(), unit(9, 4, seed=1).requires_grad_()
    hidden = Hidden(torch.arange(8), [])
    gone = weakref.ref(hidden)
    gc.disable()
    try:
        log_sum_exp(rows, columns, scale=3, hidden=hidden).sum().backward()
        del hidden
        assert gone() is None  # a reference cycle would hold a batch's embeddings until Python looks for cycles
    finally:
        gc.enable()


def test_the_objectives_make_no_matrix_either() -> None:
    rows = [row(f"q{n}", [f"p{n}"], [f"n{n}"], documents={f"p{n}": f"d{n // 2}"}) for n in range(500)]
    world = batch(rows, dimension=3)
    with LargestTensor() as seen:
        info_nce(
            *world.leaves(torch.float32),
            world.relations,
            temperature=0.05,
            symmetric=True,
            query_negatives=True,
            passage_negatives=True,
            false_negative_margin=0.1,
            block=60,
        ).backward()
    assert 60 * 60 <= seen.numbers <= max(1000 * 3, 60 * 60)


def test_autocast_does_not_reach_the_scores() -> None:
    rows, columns = unit(30, 8).float().requires_grad_(), unit(30, 8, seed=1).float().requires_grad_()
    plain = log_sum_exp(rows, columns, scale=50, block=7)
    plain_gradient = torch.autograd.grad(plain.sum(), (rows, columns))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = log_sum_exp(rows, columns, scale=50, block=7)
        gradient = torch.autograd.grad(cast.sum(), (rows, columns))
    assert torch.equal(plain, cast)
    torch.testing.assert_close(gradient, plain_gradient, rtol=0, atol=0)


class OnCuda:
    device = torch.device("cuda")


@pytest.mark.parametrize("api", ["older", "newer"])
def test_tf32_is_off_inside_and_back_afterwards(api: str) -> None:
    matmul = torch.backends.cuda.matmul
    try:
        if api == "older":
            torch.set_float32_matmul_precision("high")
        else:
            matmul.fp32_precision = "tf32"
        with exact_fp32(OnCuda()):  # type: ignore[arg-type]
            assert not matmul.allow_tf32 and matmul.fp32_precision == "ieee"
        assert matmul.fp32_precision == "tf32"
        if api == "older":
            assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
