"""Embeddings come to the canonical order from uneven hands, and gradients go back; ranks are played one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from train import gather

HANDS = [[1, 4, 5, 6], [0], [2, 3, 7]]
"""Who holds which of eight places: uneven, and in no order over the ranks."""


def play(monkeypatch: pytest.MonkeyPatch, rank: int, **collectives: Callable[..., None]) -> None:
    """Make this process believe that it is one of three ranks."""
    monkeypatch.setattr(gather, "world", lambda: (rank, len(HANDS)))
    for name, replacement in collectives.items():
        monkeypatch.setattr(torch.distributed, name, replacement)


def test_one_process_only_reorders() -> None:
    own = torch.randn(3, 2)
    assert torch.equal(gather.gather_embeddings(own, [[2, 0, 1]]), own[[1, 2, 0]])
    gradients = torch.randn(3, 2)
    assert torch.equal(gather.sum_gradients(gradients.clone(), [[2, 0, 1]]), gradients[[2, 0, 1]])


def test_uneven_hands_come_to_the_canonical_order(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = torch.randn(8, 5)
    sent: list[Any] = []
    for rank, hand in enumerate(HANDS):

        def all_gather(parts: list[torch.Tensor], mine: torch.Tensor, rank: int = rank) -> None:
            sent.append(mine.shape)
            for part, theirs in zip(parts, HANDS, strict=True):
                part.fill_(float("nan"))  # what pads a hand must not be seen
                part[: len(theirs)] = everything[theirs]
            assert torch.equal(mine[: len(HANDS[rank])], everything[HANDS[rank]])

        play(monkeypatch, rank, all_gather=all_gather)
        assert torch.equal(gather.gather_embeddings(everything[hand], HANDS), everything)
    assert set(sent) == {(4, 5)}, "collectives want equal shapes"


def test_every_rank_gets_the_summed_gradient_of_its_own_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = [torch.randn(8, 5) for _ in HANDS]
    for rank, hand in enumerate(HANDS):
        play(monkeypatch, rank, all_reduce=lambda tensor: tensor.copy_(sum(shares)))
        assert torch.equal(gather.sum_gradients(shares[rank].clone(), HANDS), sum(shares)[hand])
