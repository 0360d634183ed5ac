"""One contrastive step of any batch size in bounded memory, with the exact gradient.

The loss couples all embeddings of the global batch, but the encoder does not: given the gradient of the loss with
respect to the embeddings, each chunk of sequences can be carried back on its own (GradCache, Gao et al., 2021). So:

1. every chunk is encoded; the last ones, as many as memory allows, keep their autograd graph, the others do not;
2. all embeddings are gathered, the loss is computed on them, and its gradient is summed over the ranks' shares;
3. the kept graphs are carried back; the other chunks are encoded again, under the same random numbers, and follow.

Invariant: chunk size, number of kept graphs and number of ranks change neither loss nor gradient. With every graph kept
this is the plain step, with one it is GradCache; the last chunk never pays the second forward pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from train.flops import Work
from train.gather import gather_embeddings, sum_gradients, world
from train.graph_memory import GraphMemory, SavedBytes
from train.packing import pack, token_chunks

if TYPE_CHECKING:
    import torch

    from train.attention_layout import Layout
    from train.engine import Engine
    from train.pair_stream import Hand

ShareOfLoss = Callable[["torch.Tensor"], "torch.Tensor"]
"""All embeddings [S, D] of a global batch → this rank's share of the loss; the shares of all ranks add up to it."""


@dataclass(frozen=True)
class StepFacts:
    """What a step did on this rank.

    Attributes:
        share: this rank's share of the loss; the sum over ranks is the loss of the global batch.
        work: of this rank. chunks, kept: forward passes with distinct texts, and how many kept their graph.
        gather_s: seconds in the two exchanges of embeddings (on CUDA: until they are queued).
    """

    share: float
    work: Work
    chunks: int
    kept: int
    gather_s: float


def contrastive_step(
    engine: Engine,
    hand: Hand,
    objective: ShareOfLoss,
    memory: GraphMemory,
    *,
    budget_tokens: int,
    layout: Layout = "packed",
) -> StepFacts:
    """Forward and backward of one global batch; the caller then applies `engine.step()`. A collective.

    Args:
        hand: this rank's sequences. budget_tokens: tokens of one forward pass; a longer sequence has one of its own.
        layout: of the engine's module, to count the padding.

    Embeddings of any rank that are not finite make every rank's share NaN: the step is then not to be taken.
    """
    import torch

    rank, ranks = world()
    lengths = [len(ids) for ids in hand.ids]
    chunks, kept = _agree(token_chunks(lengths, budget_tokens) or [[]], lengths, memory, engine.device)
    again, graphs = chunks[: len(chunks) - kept], chunks[len(chunks) - kept :]

    def encode(chunk: Sequence[int]) -> torch.Tensor:
        # an empty chunk keeps the passes of all ranks in step; what comes of it is dropped
        ids = [hand.ids[i] for i in chunk] or [(hand.ids or [[0]])[0][:1]]
        skip = [hand.skip[i] for i in chunk] or [0]
        vectors: torch.Tensor = engine(pack(ids, skip=skip, device=engine.device))
        return vectors if chunk else vectors[:0]

    random_states: list[Any] = []
    parts: list[torch.Tensor] = []
    with torch.no_grad():
        for chunk in again:
            random_states.append(_random_state(engine.device))
            parts.append(encode(chunk))
    alive: list[torch.Tensor] = []
    for number, chunk in enumerate(graphs):
        if memory.measuring and number == len(graphs) - 1:
            saved = SavedBytes(engine.module)
            with saved.counting():
                alive.append(encode(chunk))
            memory.learn(saved.total, sum(lengths[i] for i in chunk))
        else:
            alive.append(encode(chunk))
    parts += [vectors.detach() for vectors in alive]
    order = torch.tensor([i for chunk in chunks for i in chunk], dtype=torch.long, device=engine.device)
    stacked = torch.cat(parts)
    own = torch.empty_like(stacked).index_copy(0, order, stacked)

    started = time.perf_counter()
    everything = gather_embeddings(own, hand.places)
    gather_s = time.perf_counter() - started
    everything.requires_grad_(True)
    # no objective is asked about what is no number: some would hide it behind a mask or a maximum
    finite = bool(torch.isfinite(everything).all())
    share = objective(everything) if finite else (everything * math.nan).sum()
    share.backward()  # type: ignore[no-untyped-call]
    started = time.perf_counter()
    assert everything.grad is not None
    # the engine averages over ranks, and what is wanted is the sum of the shares
    gradients = sum_gradients(everything.grad, hand.places) * ranks
    gather_s += time.perf_counter() - started

    with engine.accumulation():
        surrogate = torch.stack([(v * gradients[c]).sum() for v, c in zip(alive, graphs, strict=True)]).sum()
        engine.backward(surrogate, last=not again)
        del alive, surrogate
        for number, (chunk, state) in enumerate(zip(again, random_states, strict=True)):
            with _random_numbers(state, engine.device):
                vectors = encode(chunk)
            engine.backward((vectors * gradients[chunk]).sum(), last=number == len(again) - 1)
    memory.settle()
    computed = {i: max(lengths[j] for j in c) if layout == "padded" else lengths[i] for c in chunks for i in c}
    work = Work.of(
        lengths,
        pairs=hand.queries if rank == 0 else 0,
        computed=computed.values(),
        again=[computed[i] for c in again for i in c],
    )
    return StepFacts(float(share.detach()), work, len(chunks), kept, gather_s)


def _agree(
    chunks: list[list[int]], lengths: Sequence[int], memory: GraphMemory, device: torch.device
) -> tuple[list[list[int]], int]:
    """The chunks of this rank and how many graphs are kept: equal numbers on every rank.

    ZeRO 2 and 3 exchange gradients and weights in every pass, so a rank with one pass less would leave the others
    waiting: it cuts a chunk in two, or adds an empty one.
    """
    import torch
    import torch.distributed as dist

    kept = memory.chunks([sum(lengths[i] for i in c) for c in chunks])
    if world()[1] == 1:
        return chunks, kept
    numbers = torch.tensor([len(chunks), -kept, len(chunks) - kept], device=device)
    dist.all_reduce(numbers, op=dist.ReduceOp.MAX)
    most, fewest, someone_repeats = int(numbers[0]), -int(numbers[1]), bool(numbers[2])
    while len(chunks) < most:
        widest = max(range(len(chunks)), key=lambda c: len(chunks[c]))
        half = len(chunks[widest]) // 2
        chunks[widest : widest + 1] = [chunks[widest][:half], chunks[widest][half:]]
    return chunks, fewest if someone_repeats else most


def _random_state(device: torch.device) -> Any:
    import torch

    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def _random_numbers(state: Any, device: torch.device) -> Iterator[None]:
    """Draw the random numbers (dropout) of the first pass again, and go on afterwards as if nothing had been drawn."""
    import torch

    host, cuda = state
    with torch.random.fork_rng([device] if cuda is not None else []):
        torch.set_rng_state(host)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        yield
