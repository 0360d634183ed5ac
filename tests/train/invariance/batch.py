"""One global batch that holds what makes batches hard, as plain texts.

Ten queries, which neither 3 nor 4 ranks divide; a positive that two queries share; stored negatives that are another
query's positive, or another query; texts of the same documents; queries with several positives, one of which is known
but not used; from none to four stored negatives; texts of one word and texts that are cut; some teacher scores.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tiny import sentence

QUERIES = 10


@dataclass(frozen=True)
class Text:
    """A passage: its text, its document and its teacher score, where known."""

    text: str
    document: str | None = None
    score: float | None = None


@dataclass(frozen=True)
class Row:
    """A query with the passages that a step trains on, and with what is known beside them."""

    query: str
    positives: list[Text]
    negatives: list[Text]
    document: str | None = None
    unused_positives: list[Text] = field(default_factory=list)

    @property
    def passages(self) -> list[Text]:
        return [*self.positives, *self.negatives]

    @property
    def known_texts(self) -> set[str]:
        """Texts that are no negatives of the query."""
        return {self.query, *(p.text for p in (*self.positives, *self.unused_positives))}

    @property
    def known_documents(self) -> set[str]:
        """Documents whose texts are no negatives of the query."""
        found = {self.document, *(p.document for p in (*self.positives, *self.unused_positives))}
        return {d for d in found if d is not None}


def global_batch(negatives: int, *, seed: int = 5) -> list[Row]:
    """The batch, with at most so many stored negatives a query."""
    rng = random.Random(seed)
    queries = [sentence(rng, 2, 9) for _ in range(QUERIES)]
    queries[3] = "banjir"
    firsts = [sentence(rng, 4, 20) for _ in range(QUERIES)]
    firsts[5] = firsts[0]
    firsts[8] = sentence(rng, 44, 44)
    documents = ["d1", "d2", None, "d3", None, "d1", "d2", "d7", None, "d9"]
    rows = []
    for i in range(QUERIES):
        positives = [Text(firsts[i], documents[i], round(rng.uniform(0.6, 0.9), 3))]
        positives += [Text(sentence(rng), None, 0.5 + 0.1 * i / 10) for _ in range({2: 1, 7: 2}.get(i, 0))]
        stored = [
            Text(sentence(rng, 3, 25), rng.choice([None, "d9", "d3", f"n{i}"]), rng.choice([None, 0.1 * j + 0.01 * i]))
            for j in range(i % 5)
        ]
        if i == 4:
            stored[0] = Text(firsts[9], "d9", 0.2)
        if i == 6:
            stored[0] = Text(queries[2])
        if i == 8:
            stored[0] = Text("pasar ikan hujan", None, 0.33)
        spare = [Text("pasar ikan hujan")] if i == 9 else []  # what row 8 stores answers query 9, as is known
        rows.append(Row(queries[i], positives, stored[:negatives], documents[i] if i % 2 else None, spare))
    return rows
