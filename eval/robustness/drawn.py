"""The queries that are drawn from a set, and what they become: the same for every system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from data_prep.evaluation_sets import EvaluationSet
from eval.metrics import generator
from eval.relevance import judge
from eval.robustness.kinds import KINDS

Cell = tuple[str, float]
"""A kind at a strength."""


@dataclass(frozen=True)
class Drawn:
    """Some queries of a set.

    Attributes:
        name: of the set.
        document_ids, documents: all documents of the set, aligned.
        query_ids, queries: the drawn ones, in the order of the set.
        relevant: for each drawn query the indices of its relevant documents.
    """

    name: str
    document_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    relevant: list[set[int]]


def draw(task: EvaluationSet, *, count: int, seed: int) -> Drawn:
    """At most `count` of the queries that the set judges, drawn by the seed and the set's name."""
    judged = judge(task)
    rows, relevant = judged.rows["all"], judged.relevant["all"]
    chosen = list(range(len(rows)))
    if len(rows) > count:
        drawn = generator(seed, "robustness", "queries", task.name).choice(len(rows), size=count, replace=False)
        chosen = sorted(drawn.tolist())
    return Drawn(
        task.name,
        task.document_ids,
        task.documents,
        [task.query_ids[rows[i]] for i in chosen],
        [task.queries[rows[i]] for i in chosen],
        [relevant[i] for i in chosen],
    )


@dataclass
class Asked:
    """Every text that a system is asked about one set, each once.

    Attributes:
        texts: the queries as they are, damaged, and those of other sets; without repeats.
        clean: index into `texts` for each drawn query.
        damaged: cell → the same after the damage.
        outside: index into `texts` for each question that this set cannot answer.
    """

    texts: list[str] = field(default_factory=list)
    clean: list[int] = field(default_factory=list)
    damaged: dict[Cell, list[int]] = field(default_factory=dict)
    outside: list[int] = field(default_factory=list)


def ask(drawn: Drawn, cells: Sequence[Cell], outside: Sequence[str], *, seed: int) -> Asked:
    """Damage the drawn queries in every cell whose kind changes queries.

    A damaged query that came out as it was keeps the index of the clean one, so its ranking is the same to the bit.
    """
    index: dict[str, int] = {}

    def place(text: str) -> int:
        return index.setdefault(text, len(index))

    asked = Asked(clean=[place(query) for query in drawn.queries])
    for kind, strength in cells:
        if KINDS[kind].target == "query":
            asked.damaged[kind, strength] = [
                place(KINDS[kind](query, strength, seed=seed, key=ident).text)
                for ident, query in zip(drawn.query_ids, drawn.queries, strict=True)
            ]
    asked.outside = [place(text) for text in outside]
    asked.texts = list(index)
    return asked


def outside_of(drawn: Drawn, others: Sequence[Drawn], *, seed: int) -> list[str]:
    """Queries of other sets that this one has no answer to, at most as many as were drawn from it.

    A query is left out where this set asks it too or holds one of its relevant documents, word for word: sets may share
    their corpus.
    """
    own, held = set(drawn.queries), set(drawn.documents)
    found: dict[str, None] = {}
    for other in others:
        for query, relevant in zip(other.queries, other.relevant, strict=True):
            if query.strip() and query not in own and not any(other.documents[d] in held for d in relevant):
                found[query] = None
    texts = list(found)
    order = generator(seed, "robustness", "outside", drawn.name).permutation(len(texts))
    return [texts[i] for i in sorted(order[: len(drawn.queries)].tolist())]
