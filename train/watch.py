"""Retrieval on a sample of the evaluation sets while a finetuning goes on: a curve to look at, nothing is chosen by it.

Invariant: watching changes nothing of the training: no random number is drawn, no gradient kept, and every rank takes
as many forward passes as the others (ZeRO 3 gathers weights in each), whatever their number of texts. The sample is a
function of the sets and the seed, so that curves of two runs, or of one run on 2 and on 8 ranks, show the same queries.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.evaluation_sets import load_set
from train.agree import exchange
from train.dealing import deal
from train.gather import gather_embeddings, world
from train.pace import SLACK
from train.packing import pack, token_chunks

if TYPE_CHECKING:
    import torch

    from train.encoder import EncoderConfig
    from train.engine import Engine
    from train.meter import Meter
    from train.survival import Survival
    from train.telemetry import Telemetry

K = 10


@dataclass(frozen=True)
class Watched:
    """A sample of one evaluation set.

    Attributes:
        name: of the set. queries, documents: their texts. relevant: for each query the places of its documents.
    """

    name: str
    queries: list[str]
    documents: list[str]
    relevant: list[list[int]]


def draw_watched(folders: Sequence[Path], *, queries: int, documents: int, seed: int) -> list[Watched]:
    """Samples of the sets: together at most so many queries and documents, in equal parts.

    A sampled query brings its relevant documents, even where that makes more than `documents`; others of the set fill
    up. Recall among few documents is higher than among all: the curve tells when and where it rises, the evaluation
    stage what it is.
    """
    import numpy as np

    found = []
    for folder in folders:
        whole = load_set(folder)
        judged = whole.relevant["all"]
        rng = np.random.default_rng([seed, zlib.crc32(whole.name.encode()), zlib.crc32(b"watch")])
        asked = [q for q in rng.permutation(len(whole.query_ids)).tolist() if whole.query_ids[q] in judged]
        asked = sorted(asked[: max(1, queries // len(folders))])
        place = {identity: i for i, identity in enumerate(whole.document_ids)}
        answers = [sorted(place[d] for d in judged[whole.query_ids[q]]) for q in asked]
        kept = {d for row in answers for d in row}
        for d in rng.permutation(len(whole.documents)).tolist():
            if len(kept) >= documents // len(folders):
                break
            kept.add(d)
        order = {d: i for i, d in enumerate(sorted(kept))}
        found.append(
            Watched(
                whole.name,
                [whole.queries[q] for q in asked],
                [whole.documents[d] for d in order],
                [[order[d] for d in row] for row in answers],
            )
        )
    return found


class Watch:
    """Measures the model in training on the samples. All ranks make one and call `measure` at the same steps.

    Args:
        tokenizer, encoder: as in training. samples: from `draw_watched`.
        budget_tokens: tokens of one forward pass.
    """

    def __init__(
        self, samples: Sequence[Watched], *, tokenizer: Any, encoder: EncoderConfig, budget_tokens: int
    ) -> None:
        from train.encoder import tokenise

        self._samples = samples
        self._ids: list[list[int]] = []
        self._skip: list[int] = []
        for sample in samples:
            for texts, role in ((sample.queries, "query"), (sample.documents, "passage")):
                tokens = tokenise(tokenizer, texts, encoder, role)  # type: ignore[arg-type]
                self._ids += tokens.ids
                self._skip += tokens.skip
        rank, ranks = world()
        lengths = [len(ids) for ids in self._ids]
        self._hands = deal(lengths, ranks)
        chunks = [token_chunks([lengths[i] for i in hand], budget_tokens) for hand in self._hands]
        self._passes = max(map(len, chunks))
        self._own, self._chunks = self._hands[rank], chunks[rank]

    def measure(self, engine: Engine) -> dict[str, float]:
        """`eval/recall@10` (mean over the sets) and `eval/SET/recall@10` as the weights are now. A collective.

        Empty where an embedding is not finite: what diverges is [guard]'s to judge.
        """
        import torch

        engine.module.eval()
        try:
            with torch.no_grad():
                vectors = gather_embeddings(self._encode(engine), self._hands).float().cpu()
        finally:
            engine.module.train()
        if not bool(torch.isfinite(vectors).all()):
            return {}
        found: dict[str, float] = {}
        start = 0
        for sample in self._samples:
            middle, end = start + len(sample.queries), start + len(sample.queries) + len(sample.documents)
            found[f"eval/{sample.name}/recall@{K}"] = recall(vectors[start:middle], vectors[middle:end], sample)
            start = end
        return {f"eval/recall@{K}": sum(found.values()) / len(found), **found}

    def _encode(self, engine: Engine) -> torch.Tensor:
        """[n, D] of this rank's hand."""
        import torch

        parts, order = [], []
        for number in range(self._passes):
            rows = self._chunks[number] if number < len(self._chunks) else []
            ids = [self._ids[self._own[r]] for r in rows] or [self._ids[0][:1]]
            skip = [self._skip[self._own[r]] for r in rows] or [0]
            vectors = engine(pack(ids, skip=skip, device=engine.device))
            parts.append(vectors[: len(rows)])
            order += rows
        stacked = torch.cat(parts)
        return torch.empty_like(stacked).index_copy(0, torch.tensor(order, device=stacked.device), stacked)


def recall(queries: torch.Tensor, documents: torch.Tensor, sample: Watched) -> float:
    """Mean over the queries of the part of their relevant documents among the nearest 10; ties by the lower place."""
    import torch

    ranked = torch.sort(queries @ documents.T, dim=1, descending=True, stable=True).indices[:, :K].tolist()
    parts = [
        len(set(near) & set(answers)) / len(answers) for near, answers in zip(ranked, sample.relevant, strict=True)
    ]
    return sum(parts) / len(parts)


class Watching:
    """Takes a measurement where one is due, in the time that the loop can spare.

    Args:
        every: steps between two measurements. measure: the names and values now; a collective.
        meter: counts the seconds as `evaluation`, outside of the steps. deadline: see train/guard.py.
    """

    def __init__(
        self,
        measure: Callable[[], dict[str, float]],
        *,
        every: int,
        meter: Meter,
        telemetry: Telemetry,
        survival: Survival,
    ) -> None:
        self._measure, self._every = measure, every
        self._meter, self._telemetry, self._survival = meter, telemetry, survival
        self._longest_s = 0.0

    def after(self, step: int, *, ended: bool = False, needed_s: Callable[[], float] = float) -> None:
        """Measure after this step, if it is due or the last one. A collective.

        Nothing is measured where a step, a save and the measurement might not all fit before the deadline.

        Args:
            needed_s: seconds from now until one more step would be saved.
        """
        if step % self._every and not ended:
            return
        deadline = self._survival.stop.deadline
        late = deadline is not None and time.time() + needed_s() + SLACK * self._longest_s > deadline
        if any(exchange(late)):
            return
        self._survival.at("measuring retrieval", step)
        before = time.perf_counter()
        found = self._measure()
        took = time.perf_counter() - before
        self._longest_s = max(self._longest_s, took)
        self._meter.pause("evaluation", took)
        self._telemetry.log({"step": step, **found, "eval_s": round(took, 3)})
