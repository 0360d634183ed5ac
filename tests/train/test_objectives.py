"""The losses against definitions written out in float64."""

from __future__ import annotations

import pytest
import torch

from train.negatives import id_table, number_of
from train.objectives import causal_lm_sum, info_nce, margin_contrastive


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(
        torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))), dim=-1
    )


def ids(*texts: str) -> torch.Tensor:
    return torch.tensor([-1 if t == "" else number_of(t * 32) for t in texts])


def test_info_nce_masks_empty_slots_twins_and_known_positives() -> None:
    queries, passages = unit(3, 8), unit(3, 2, 8)
    # row 0 and 1 share a positive (a); row 2's negative is row 0's second known positive (c); row 1 has no negative
    passage_ids = torch.stack([ids("a", "b"), ids("a", ""), ids("d", "c")])
    known = id_table([["a" * 32, "c" * 32], ["a" * 32], ["d" * 32]])
    got = info_nce(
        queries, passages, passage_ids=passage_ids, known_ids=known, query_ids=ids("e", "f", "1"), temperature=0.1
    )
    q, p = queries.double(), passages.double().reshape(6, 8)
    allowed = {0: [0, 1, 4], 1: [2, 1, 4, 5], 2: [4, 0, 1, 2, 5]}
    losses = []
    for i, columns in allowed.items():
        scores = torch.stack([q[i] @ p[c] / 0.1 for c in columns])
        target = columns.index(2 * i)
        losses.append(torch.logsumexp(scores, 0) - scores[target])
    assert float(got) == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


def test_symmetric_term_ranks_queries_for_passages() -> None:
    queries, passages = unit(4, 8), unit(4, 1, 8)
    args = {
        "passage_ids": ids("a", "b", "c", "d")[:, None],
        "known_ids": ids("a", "b", "c", "d")[:, None],
        "query_ids": ids("1", "2", "3", "4"),
        "temperature": 0.2,
    }
    plain = info_nce(queries, passages, **args)
    both = info_nce(queries, passages, symmetric=True, **args)
    scores = (passages[:, 0] @ queries.T).double() / 0.2
    back = (torch.logsumexp(scores, 1) - scores.diagonal()).mean()
    assert float(both) == pytest.approx(float((plain + back) / 2), rel=1e-5)


def test_margin_loss_is_the_definition() -> None:
    queries, passages = unit(3, 8), unit(3, 2, 8)
    passage_ids = torch.stack([ids("a", "b"), ids("c", ""), ids("d", "e")])
    got = margin_contrastive(queries, passages, passage_ids=passage_ids, margin=0.8)
    distance = 1 - torch.einsum("id,ijd->ij", queries.double(), passages.double())
    terms = [0.5 * distance[i, 0] ** 2 for i in range(3)]
    terms += [0.5 * max(0.0, 0.8 - float(distance[i, 1])) ** 2 for i in (0, 2)]
    assert float(got) == pytest.approx(float(sum(terms)) / 5, rel=1e-5)


@pytest.mark.parametrize("chunk", [3, 100])
def test_chunked_cross_entropy_and_its_gradient_equal_the_whole(chunk: int) -> None:
    head = torch.nn.Linear(8, 50, bias=False)
    hidden = torch.randn(10, 8, requires_grad=True)
    targets = torch.tensor([1, 2, -100, 4, 5, 6, 7, -100, 9, 10])
    loss = causal_lm_sum(hidden, head, targets, chunk_tokens=chunk)
    loss.backward()
    mine = hidden.grad.clone(), head.weight.grad.clone()
    hidden.grad = head.weight.grad = None
    wanted = -torch.log_softmax(hidden @ head.weight.T, -1)[targets >= 0, targets[targets >= 0]].sum()
    wanted.backward()
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(mine, (hidden.grad, head.weight.grad))
