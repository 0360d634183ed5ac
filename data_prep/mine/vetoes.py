"""What is never a negative: every rule as a mask over a block of candidates.

Invariant: a rule looks at the query, its positives and the candidate, at nothing else, so rules commute and a block may
be of any size. A mask is True where the rule takes the candidate away. Rules that read vectors are asked only about
what the others left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.mine.sides import Side, shared_words, unit_vectors

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.mine.policy import Policy, Rule

    Mask = NDArray[np.bool_]

_CELLS = 1 << 22
"""Numbers of vectors that are compared at once: 16 MB a side."""


@dataclass
class Block:
    """A block of q queries, their positives and their candidates.

    Attributes:
        queries: q rows. positives: a side; corpus: the side of the candidates.
        chosen: [q, P] rows of `positives`, -1 for none; chosen_scores: [q, P] their scores.
        candidates: [q, m] rows of `corpus`, -1 for none; scores: [q, m].
        own_keys: [q] keys of the texts that the queries were cut from (their own where they are whole texts).
    """

    queries: Side
    positives: Side
    corpus: Side
    chosen: NDArray[np.int64]
    chosen_scores: NDArray[np.float32]
    candidates: NDArray[np.int64]
    scores: NDArray[np.float32]
    own_keys: NDArray[np.uint64]

    @property
    def there(self) -> Mask:
        """[q, m]: where there is a candidate."""
        there: Mask = self.candidates >= 0
        return there

    def worst(self) -> NDArray[np.float64]:
        """[q] score of the worst positive."""
        return worst_of(self.chosen, self.chosen_scores)


def worst_of(chosen: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float64]:
    """[q]: the lowest of the scores [q, P] of those that are there; -1 without any."""
    import numpy as np

    lowest = np.where(chosen >= 0, scores.astype(np.float64), np.inf).min(axis=1, initial=np.inf)
    return np.where(np.isfinite(lowest), lowest, -1.0)


def same_text(block: Block) -> Mask:
    """The text of the query, of what it was cut from, of a positive, or of an earlier candidate."""
    import numpy as np

    keys = np.where(block.there, block.corpus.keys[block.candidates], 0)
    vetoed = (keys == block.queries.keys[:, None]) | (keys == block.own_keys[:, None])
    for column in range(block.chosen.shape[1]):
        rows = block.chosen[:, column]
        vetoed |= (keys == block.positives.keys[rows][:, None]) & (rows >= 0)[:, None]
    order = np.argsort(keys, axis=1, kind="stable")
    ordered = np.take_along_axis(keys, order, 1)
    repeated = np.zeros_like(vetoed)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    return (vetoed | repeated) & block.there


def by_numbers(policy: Policy, block: Block, left: Mask) -> Iterator[tuple[Rule, Mask]]:
    """The rules that need no vectors, in their order, each with its mask [q, m]; `left` [q, m]: who is there."""
    import numpy as np

    scores, worst = block.scores.astype(np.float64), block.worst()
    if policy.on("same_document"):
        yield "same_document", _same_document(block) & left
    if policy.on("max_score"):
        yield "max_score", scores > policy.negative_max_score
    if policy.on("ratio"):
        # a share of a negative score would lie above it: then nothing is safely below the positive
        yield "ratio", scores > (policy.negative_max_ratio * np.maximum(worst, 0.0))[:, None]
    if policy.on("margin"):
        yield "margin", scores > (worst - policy.negative_margin)[:, None]
    if policy.on("near_copy") and block.corpus.sketches is not None:
        yield "near_copy", _near_copy(block, policy.near_copy)


def _same_document(block: Block) -> Mask:
    import numpy as np

    documents = np.where(block.there, block.corpus.documents[block.candidates], 0)
    vetoed = documents == block.queries.documents[:, None]
    for column in range(block.chosen.shape[1]):
        rows = block.chosen[:, column]
        vetoed |= (documents == block.positives.documents[rows][:, None]) & (rows >= 0)[:, None]
    return vetoed & (documents != 0)


def _near_copy(block: Block, share: float) -> Mask:
    assert block.corpus.sketches is not None and block.queries.sketches is not None
    assert block.positives.sketches is not None
    sketches = block.corpus.sketches[block.candidates]
    vetoed: Mask = shared_words(sketches, block.queries.sketches[:, None]) >= share
    for column in range(block.chosen.shape[1]):
        rows = block.chosen[:, column]
        near = shared_words(sketches, block.positives.sketches[rows][:, None]) >= share
        vetoed |= near & (rows >= 0)[:, None]
    return vetoed


def by_vectors(policy: Policy, block: Block, left: Mask) -> Iterator[tuple[Rule, Mask]]:
    """The rules that compare vectors, in their order; False wherever `left` [q, m] is False."""
    import numpy as np

    translation, duplicate = policy.on("translation"), policy.on("duplicate")
    rows, columns = np.nonzero(left)
    candidates = block.candidates[rows, columns]
    if translation or duplicate:
        near = _to_positives(block, rows, candidates)
        near_query = block.scores[rows, columns]
    if translation:
        language = block.corpus.languages[candidates]
        known = language != 0

        def other(languages: NDArray[np.int64]) -> Mask:
            return known & (languages != 0) & (languages != language)

        vetoed = other(block.queries.languages[rows]) & (near_query >= policy.translation_score)
        for column in range(near.shape[1]):
            theirs = block.positives.languages[block.chosen[rows, column]]
            vetoed |= other(theirs) & (near[:, column] >= policy.translation_score)
        yield "translation", _spread(left, rows, columns, vetoed)
    if duplicate:
        vetoed = (near.max(axis=1, initial=-np.inf) >= policy.duplicate_score) | (near_query >= policy.duplicate_score)
        yield "duplicate", _spread(left, rows, columns, vetoed)
    if policy.on("second_teacher") and block.corpus.second is not None:
        vetoed = _disagrees(block, rows, candidates, ratio=policy.agreement_ratio)
        yield "second_teacher", _spread(left, rows, columns, vetoed)


def _spread(left: Mask, rows: NDArray[np.int64], columns: NDArray[np.int64], vetoed: Mask) -> Mask:
    import numpy as np

    mask = np.zeros_like(left)
    mask[rows, columns] = vetoed
    return mask


def _to_positives(block: Block, rows: NDArray[np.int64], candidates: NDArray[np.int64]) -> NDArray[np.float32]:
    """[s, P]: the score of each candidate against each positive of its query (row); -inf where there is none."""
    import numpy as np

    near = np.full((len(rows), block.chosen.shape[1]), -np.inf, dtype=np.float32)
    step = max(1, _CELLS // block.corpus.vectors.dimension)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        vectors = unit_vectors(block.corpus.vectors, candidates[part])
        for column in range(block.chosen.shape[1]):
            chosen = block.chosen[rows[part], column]
            theirs = unit_vectors(block.positives.vectors, np.maximum(chosen, 0))
            near[part, column] = np.where(chosen >= 0, np.einsum("sd,sd->s", vectors, theirs), -np.inf)
    return near


def _disagrees(block: Block, rows: NDArray[np.int64], candidates: NDArray[np.int64], *, ratio: float) -> Mask:
    """[s]: whether the second teacher scores a candidate above its share of the worst positive."""
    import numpy as np

    assert block.corpus.second is not None and block.queries.second is not None and block.positives.second is not None
    asked = unit_vectors(block.queries.second, np.arange(len(block.queries)))
    scores = np.full(block.chosen.shape, np.inf, dtype=np.float32)
    for column in range(block.chosen.shape[1]):
        chosen = block.chosen[:, column]
        theirs = unit_vectors(block.positives.second, np.maximum(chosen, 0))
        scores[:, column] = np.where(chosen >= 0, np.einsum("qd,qd->q", asked, theirs), np.inf)
    ceiling = ratio * np.maximum(worst_of(block.chosen, scores), 0.0)
    vetoed = np.zeros(len(rows), dtype=np.bool_)
    step = max(1, _CELLS // block.corpus.second.dimension)
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        found = np.einsum("sd,sd->s", unit_vectors(block.corpus.second, candidates[part]), asked[rows[part]])
        vetoed[part] = found > ceiling[rows[part]]
    return vetoed
