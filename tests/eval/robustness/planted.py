"""Small sets, and rankers whose answers can be computed by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eval.systems.listing import System
from eval.systems.ranker import ordered_top_k

TOPICS = ["hujan", "padi", "sawah", "pasar", "ikan", "murah", "guru", "jalan", "harga", "bantuan", "kereta", "banjir"]


class WordRanker:
    """Counts the words that query and document share, as they are written; it knows no synonyms and no spelling."""

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        held = [set(d.split()) for d in documents]
        rows = [ordered_top_k(np.array([len(h & set(q.split())) for h in held], np.float32), k) for q in queries]
        return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


class LetterRanker(WordRanker):
    """Compares only the first letters of a query and a document: sees capitals, and nothing later in the text."""

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows = [
            ordered_top_k(
                np.array([float(d[:5] == q[:5]) + 1 / (2 + i) for i, d in enumerate(documents)], np.float32), k
            )
            for q in queries
        ]
        return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


def system(name: str, ranker: object) -> System:
    return System(name, "baseline", name, lambda: ranker)  # type: ignore[arg-type, return-value]


def write_set(folder: Path, *, seed: int, documents: int = 30, queries: int = 12) -> Path:
    """A query for each of the last documents: three words of it. A document has a number and a negation too.

    A query that shares no word with anything finds the first documents, which are no answers.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    corpus, asked = [], []
    for i in range(documents):
        words = [f"{TOPICS[w]}{chr(97 + n)}{folder.name[0]}" for w, n in rng.integers(0, [len(TOPICS), 20], (8, 2))]
        corpus.append({"_id": f"d{i}", "title": "", "text": f"{' '.join(words)} tidak boleh RM{100 + i} sekilo"})
        asked.append({"_id": f"q{i}", "text": " ".join(words[:3])})
    judged = range(documents - queries, documents)
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("".join(json.dumps(asked[i]) + "\n" for i in judged))
    (folder / "qrels.tsv").write_text("q\td\ts\n" + "".join(f"q{i}\td{i}\t1\n" for i in judged))
    return folder
