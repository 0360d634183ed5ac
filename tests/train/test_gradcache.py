"""One contrastive step in one process: kept and repeated chunks give the same gradient, dropout included.

Several ranks, ZeRO and the real engine are in tests/train/invariance/.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from train import gradcache
from train.draws import Draw
from train.gradcache import contrastive_step
from train.graph_memory import GraphMemory
from train.pair_stream import Hand

CPU = torch.device("cpu")
LENGTHS = [7, 3, 12, 5, 5, 9, 2, 8, 4, 6, 30]
BUDGET = 16


class Toy(torch.nn.Module):
    """Embeds, drops, maps, pools: everything that a chunk of tokens needs."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = torch.nn.Embedding(50, 8)
        self.layer = torch.nn.Linear(8, 6)
        self.dropout = torch.nn.Dropout(dropout)
        self.passes: list[tuple[int, bool]] = []

    def forward(self, packed: Any) -> torch.Tensor:
        self.passes.append((len(packed.lengths), torch.is_grad_enabled()))
        states = self.dropout(self.layer(self.dropout(self.embedding(packed.input_ids[0]))).tanh())
        return F.normalize(torch.stack([s.mean(0) for s in states.split(packed.lengths)]), dim=1)


class PlainEngine:
    """What `contrastive_step` asks of an engine, without DeepSpeed."""

    device = CPU

    def __init__(self, module: Toy) -> None:
        self.module, self.last = module, []

    def __call__(self, packed: Any) -> torch.Tensor:
        return self.module(packed)

    @contextmanager
    def accumulation(self) -> Iterator[None]:
        yield

    def backward(self, loss: torch.Tensor, *, last: bool) -> None:
        self.last.append(last)
        loss.backward()


def hand() -> Hand:
    torch.manual_seed(5)
    ids = [torch.randint(0, 50, (n,)).tolist() for n in LENGTHS]
    return Hand(
        relations=None, places=[list(range(len(ids)))], ids=ids, skip=[0] * len(ids), queries=4, truncated=0,
        sources=["test"], draw=Draw(1, 0, 4, range(4), []), samples=[],
    )  # fmt: skip


def coupled(embeddings: torch.Tensor) -> torch.Tensor:
    """A loss in which every embedding meets every other."""
    return torch.logsumexp(3 * (embeddings @ embeddings.T - torch.eye(len(embeddings))), dim=1).mean()


def step(keep: Any, *, dropout: float = 0.0, budget: int = BUDGET, layout: Any = "packed") -> tuple[Any, PlainEngine]:
    engine = PlainEngine(Toy(dropout))
    torch.manual_seed(7)
    memory = GraphMemory(keep, device=CPU)
    facts = contrastive_step(engine, hand(), coupled, memory, budget_tokens=budget, layout=layout)  # type: ignore[arg-type]
    return facts, engine


def gradients(engine: PlainEngine) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in engine.module.parameters()])


@pytest.mark.parametrize("keep", [1, 2, 4, "all", "auto"])
@pytest.mark.parametrize("budget", [4, 16, 1000])
def test_the_gradient_is_that_of_one_backward_pass(keep: Any, budget: int) -> None:
    facts, engine = step(keep, budget=budget)
    whole = Toy(0.0)
    sequences = [whole.embedding(torch.tensor(ids)) for ids in hand().ids]
    loss = coupled(F.normalize(torch.stack([whole.layer(s).tanh().mean(0) for s in sequences]), dim=1))
    loss.backward()
    wanted = torch.cat([p.grad.flatten() for p in whole.parameters()])
    assert facts.share == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float((gradients(engine) - wanted).norm() / wanted.norm()) < 1e-6


@pytest.mark.parametrize("keep", [1, 2])
def test_repeated_chunks_draw_the_same_dropout(keep: int) -> None:
    plain, plain_engine = step("all", dropout=0.4)
    after_plain = torch.get_rng_state()
    cached, cached_engine = step(keep, dropout=0.4)
    assert plain.chunks == cached.chunks > 3
    assert cached.share == plain.share
    torch.testing.assert_close(gradients(cached_engine), gradients(plain_engine), rtol=1e-5, atol=1e-7)
    assert torch.equal(torch.get_rng_state(), after_plain), "the next step draws what it would have drawn"


def test_without_the_same_dropout_the_gradient_would_be_another(monkeypatch: pytest.MonkeyPatch) -> None:
    _, plain = step("all", dropout=0.4)
    monkeypatch.setattr(gradcache, "_random_numbers", lambda *_: nullcontext())
    _, cached = step(1, dropout=0.4)
    assert float((gradients(cached) - gradients(plain)).norm() / gradients(plain).norm()) > 0.01


def test_the_last_pass_is_marked_and_the_last_chunk_is_encoded_once() -> None:
    facts, engine = step(2)
    assert (facts.chunks, facts.kept) == (len(engine.module.passes) - len(engine.last) + 1, 2)
    assert engine.last == [False] * (facts.chunks - 2) + [True]
    repeated = [graph for _, graph in engine.module.passes[: facts.chunks - 2]]
    assert not any(repeated), "chunks that are encoded again keep no graph the first time"
    assert sum(n for n, _ in engine.module.passes[: facts.chunks]) == len(LENGTHS)


def test_work_counts_padding_and_second_passes() -> None:
    facts, _ = step("all")
    assert facts.work.tokens == facts.work.computed_tokens == sum(LENGTHS)
    assert facts.work.again_tokens == 0
    assert facts.work.sequences == len(LENGTHS)
    assert facts.work.pairs == 4
    # longest first, at most 16 tokens together: [30] [12] [9] [8, 7] [6, 5, 5] [4, 3, 2]
    facts, _ = step(1, layout="padded")
    assert facts.chunks == 6
    assert facts.work.computed_tokens == 30 + 12 + 9 + 2 * 8 + 3 * 6 + 3 * 4
    assert facts.work.again_tokens == 30 + 12 + 9 + 2 * 8 + 3 * 6


def test_auto_learns_from_the_first_step() -> None:
    engine = PlainEngine(Toy(0.0))
    memory = GraphMemory("auto", device=CPU)
    kept = [contrastive_step(engine, hand(), coupled, memory, budget_tokens=BUDGET).kept for _ in range(2)]  # type: ignore[arg-type]
    assert kept == [1, 6], "a tiny model fits whole once its need is known"
    assert memory.bytes_per_token is not None
    # embedding, dropout and linear map keep at least the [tokens, 8] input and the [tokens, 6] result, in fp32
    assert memory.bytes_per_token >= 4 * (8 + 6)


def test_embeddings_that_are_no_numbers_give_a_loss_that_is_none() -> None:
    engine = PlainEngine(Toy(0.0))
    with torch.no_grad():
        engine.module.layer.weight[0, 0] = float("nan")

    def hides(embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.nan_to_num().sum()

    facts = contrastive_step(engine, hand(), hides, GraphMemory("all", device=CPU), budget_tokens=BUDGET)  # type: ignore[arg-type]
    assert math.isnan(facts.share)
