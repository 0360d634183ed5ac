"""Small global batches, and every loss on them written from its definition: Python loops, float64, sets of texts.

Nothing here uses the tables of `Relations`; they are made from the same rows by train/relations.py.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from train.relations import Chosen, Relations, relations_of

Vectors = list[torch.Tensor]


def content_id(text: str) -> str:
    return text.encode().hex().rjust(32, "0")[::-1]


def row(
    query: str,
    positives: list[str],
    negatives: list[str] | None = None,
    *,
    known: list[str] | None = None,
    documents: dict[str, str] | None = None,
    scores: dict[str, float] | None = None,
) -> Chosen:
    """One row; a text is its own id. `known`: positives of the row that are not in the batch."""
    passages = positives + (negatives or [])
    place = documents or {}
    return Chosen(
        query=query,
        query_id=content_id(query),
        passages=passages,
        passage_ids=[content_id(p) for p in passages],
        positives=len(positives),
        known_ids=[content_id(t) for t in [*positives, *(known or []), query]],
        documents=[place.get(p) for p in passages],
        known_documents=sorted({place[t] for t in [query, *positives, *(known or [])] if t in place}),
        scores=[(scores or {}).get(p) for p in passages],
    )


@dataclass
class Batch:
    rows: list[Chosen]
    queries: torch.Tensor
    passages: torch.Tensor

    @property
    def relations(self) -> Relations:
        return relations_of(self.rows)

    def leaves(self, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
        return self.queries.to(dtype).requires_grad_(), self.passages.to(dtype).requires_grad_()

    def passage_facts(self) -> list[tuple[int, int, str, str | None, bool, float | None]]:
        """(column, row, id, document, came as a positive, score) of each passage."""
        facts = []
        for i, r in enumerate(self.rows):
            for j, (ident, document, score) in enumerate(zip(r.passage_ids, r.documents, r.scores, strict=True)):
                facts.append((len(facts), i, ident, document, j < r.positives, score))
        return facts


def batch(rows: list[Chosen], *, dimension: int = 6, seed: int = 0) -> Batch:
    """Random unit rows, far from uniform: cosines of rows of one batch are spread over (-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    count = sum(len(r.passages) for r in rows)
    vectors = torch.randn(len(rows) + count, dimension, generator=generator, dtype=torch.float64)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return Batch(rows, vectors[: len(rows)], vectors[len(rows) :])


def tangled(queries: int = 9, *, seed: int = 0, dimension: int = 6) -> Batch:
    """Uneven rows that share texts and documents: every mask has work to do."""
    draw = random.Random(seed)
    texts = [f"p{n}" for n in range(2 * queries)]
    documents = {t: f"d{n // 4}" for n, t in enumerate(texts) if n % 3}
    rows = []
    for i in range(queries):
        picked = draw.sample(texts, draw.randint(1, 3) + draw.randint(0, 3) + 1)
        positives = picked[: draw.randint(1, 3)] if len(picked) > 3 else picked[:1]
        negatives = [t for t in picked[len(positives) : -1] if t not in positives]
        scores = {t: round(draw.random(), 1) for t in picked if draw.random() < 0.7}
        # the query of every fourth row is a passage elsewhere, or the query of the row before
        query = f"q{i}" if i % 4 else (texts[i] if i % 8 else f"q{i + 1}")
        rows.append(row(query, positives, negatives, known=picked[-1:], documents=documents, scores=scores))
    return batch(rows, seed=seed, dimension=dimension)


def info_nce(
    world: Batch,
    queries: torch.Tensor,
    passages: torch.Tensor,
    *,
    temperature: float,
    symmetric: bool = False,
    query_negatives: bool = False,
    passage_negatives: bool = False,
    false_negative_margin: float | None = None,
) -> torch.Tensor:
    facts = world.passage_facts()
    total = torch.zeros((), dtype=torch.float64)
    for i, r in enumerate(world.rows):
        for a in [c for c, owner, _, _, positive, _ in facts if owner == i and positive]:
            cosine = queries[i] @ passages[a]

            def allowed(other: torch.Tensor, cosine: torch.Tensor = cosine) -> bool:
                return (
                    false_negative_margin is None
                    or float(other.detach()) <= float(cosine.detach()) + false_negative_margin
                )

            against = []
            for c, _, ident, document, _, _ in facts:
                if c == a or ident in r.known_ids or document in r.known_documents:
                    continue
                if allowed(queries[i] @ passages[c]):
                    against.append(queries[i] @ passages[c])
                if passage_negatives and allowed(passages[a] @ passages[c]):
                    against.append(passages[a] @ passages[c])
            if query_negatives:
                for k, other in enumerate(world.rows):
                    if k == i or set(other.known_ids) & set(r.known_ids):
                        continue
                    if not set(other.known_documents) & set(r.known_documents) and allowed(queries[i] @ queries[k]):
                        against.append(queries[i] @ queries[k])
            loss = softmax_loss(cosine, against, temperature)
            if symmetric:
                back = []
                for k, other in enumerate(world.rows):
                    if k == i or other.query_id in r.known_ids or facts[a][2] in other.known_ids:
                        continue
                    if facts[a][3] not in other.known_documents and allowed(passages[a] @ queries[k]):
                        back.append(passages[a] @ queries[k])
                loss = (loss + softmax_loss(cosine, back, temperature)) / 2
            total = total + loss / r.positives
    return total / len(world.rows)


def softmax_loss(positive: torch.Tensor, against: Vectors, temperature: float) -> torch.Tensor:
    whole = torch.exp(positive / temperature)
    for other in against:
        whole = whole + torch.exp(other / temperature)
    return -torch.log(torch.exp(positive / temperature) / whole)


def margin(world: Batch, queries: torch.Tensor, passages: torch.Tensor, *, margin: float) -> torch.Tensor:
    losses = []
    for c, i, _, _, positive, _ in world.passage_facts():
        distance = 1 - queries[i] @ passages[c]
        reach = distance if positive else torch.clamp(margin - distance, min=0)
        losses.append(reach**2 / 2)
    return torch.stack(losses).mean()


def triplet(world: Batch, queries: torch.Tensor, passages: torch.Tensor, *, margin: float) -> torch.Tensor:
    facts, means = world.passage_facts(), []
    for i in range(len(world.rows)):
        positives = [c for c, owner, _, _, positive, _ in facts if owner == i and positive]
        negatives = [c for c, owner, _, _, positive, _ in facts if owner == i and not positive]
        hinges = [
            torch.clamp((1 - queries[i] @ passages[a]) - (1 - queries[i] @ passages[n]) + margin, min=0)
            for a in positives
            for n in negatives
        ]
        if hinges:
            means.append(torch.stack(hinges).mean())
    return torch.stack(means).mean()


def cosent(world: Batch, queries: torch.Tensor, passages: torch.Tensor, *, temperature: float) -> torch.Tensor:
    scored = [(c, i, s) for c, i, _, _, _, s in world.passage_facts() if s is not None]
    total = torch.ones((), dtype=torch.float64)
    for low, i, low_score in scored:
        for high, k, high_score in scored:
            if low_score < high_score:
                total = total + torch.exp((queries[i] @ passages[low] - queries[k] @ passages[high]) / temperature)
    return torch.log(total)
