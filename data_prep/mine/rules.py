"""Which neighbours of one query become its positives and its hard negatives.

Invariant: positives lie between `positive_min_score` and `duplicate_score`; negatives come from a window of ranks,
score at most `negative_max_ratio` times the worst positive, are no near copy of a positive, and no text appears twice
in a row. The draw depends on the seed and on the query's own document, not on its place in the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.corpus.keys import text_key
from data_prep.pairs.row import pair_row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.mine.mine import MineConfig


@dataclass
class Corpus:
    """The documents that are searched, aligned: texts, keys, ids, labels and unit vectors [n, d].

    `first_lines` are the keys of first lines where those are the queries: a document that carries the query as its own
    title (itself, a near copy) is no answer to it. Empty where whole documents are the queries.
    """

    texts: list[str]
    keys: list[str]
    ids: list[str]
    languages: list[str]
    vectors: NDArray[np.float32]
    first_lines: list[str]


class Selection:
    """The rules for one query.

    Attributes:
        best: the best score of a neighbour that is no copy, -1 where there is none.
    """

    def __init__(self, config: MineConfig, corpus: Corpus, row: int, query: str, counts: dict[str, int]) -> None:
        self._config, self._corpus, self._row, self._query, self._counts = config, corpus, row, query, counts
        self.best = -1.0

    def select(self, scores: NDArray[np.float32], indices: NDArray[np.int64], seed: int) -> dict[str, Any] | None:
        """The pair row, or None where a rule refuses the query.

        Args:
            scores, indices: [neighbors + 1] each, best first; the document itself may be among them.
        """
        config, corpus = self._config, self._corpus
        hits = [(s, i) for s, i in zip(scores.tolist(), indices.tolist(), strict=True) if i != self._row]
        hits = hits[: config.neighbors]
        query_key = text_key(self._query)
        if corpus.first_lines:
            titled = [hit for hit in hits if corpus.first_lines[hit[1]] == query_key]
            self._counts["skipped_same_text"] += len(titled)
            hits = [hit for hit in hits if corpus.first_lines[hit[1]] != query_key]
        taken = {query_key, corpus.keys[self._row]}
        positives: list[tuple[float, int]] = []
        for score, index in hits:
            if score >= config.duplicate_score:
                self._counts["skipped_duplicate"] += 1
                continue
            self.best = max(self.best, score)
            if len(positives) == config.positives_per_query or score < config.positive_min_score:
                break
            if corpus.keys[index] in taken:
                self._counts["skipped_same_text"] += 1
                continue
            taken.add(corpus.keys[index])
            positives.append((score, index))
        if not positives:
            self._counts["refused_no_positive"] += 1
            return None
        negatives = self._negatives(hits, positives, taken, seed)
        if len(negatives) < config.min_negatives:
            self._counts["refused_few_negatives"] += 1
            return None
        return pair_row(
            self._query,
            [corpus.texts[i] for _, i in positives],
            [corpus.texts[i] for _, i in negatives],
            "mined",
            corpus.languages[self._row],
            [s for s, _ in positives],
            [s for s, _ in negatives],
            query_document=corpus.ids[self._row],
            positive_documents=[corpus.ids[i] for _, i in positives],
            negative_documents=[corpus.ids[i] for _, i in negatives],
        )

    def _negatives(
        self, hits: list[tuple[float, int]], positives: list[tuple[float, int]], taken: set[str], seed: int
    ) -> list[tuple[float, int]]:
        """Negatives that pass every rule, `negatives_per_query` of them drawn, best first."""
        import numpy as np

        config, corpus = self._config, self._corpus
        if not config.negatives_per_query:
            return []
        # A share of a negative score would lie above it: then nothing is safely below the positive.
        worst = max(min(score for score, _ in positives), 0.0)
        usable: list[tuple[float, int]] = []
        for score, index in hits[config.negative_first_rank - 1 : config.negative_last_rank]:
            if corpus.keys[index] in taken:
                self._counts["skipped_same_text"] += 1
            elif score > config.negative_max_score:
                self._counts["skipped_negative_max_score"] += 1
            elif score > config.negative_max_ratio * worst:
                self._counts["skipped_negative_ratio"] += 1
            else:
                usable.append((score, index))
        if not usable:
            return []
        near = corpus.vectors[[i for _, i in usable]] @ corpus.vectors[[i for _, i in positives]].T
        clear = np.flatnonzero(near.max(axis=1) < config.duplicate_score).tolist()
        self._counts["skipped_negative_near_positive"] += len(usable) - len(clear)
        usable = [usable[n] for n in clear]
        if len(usable) > config.negatives_per_query:
            generator = np.random.default_rng([seed, int(corpus.ids[self._row], 16)])
            drawn = generator.choice(len(usable), config.negatives_per_query, replace=False)
            usable = [usable[n] for n in sorted(drawn.tolist())]
        return usable
