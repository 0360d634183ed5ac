"""Does a system notice what a text says? The true passage against a copy that says something else; questions that a
corpus cannot answer against those that it can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval.robustness.drawn import Cell, Drawn
from eval.robustness.kinds import KINDS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TIE = 1e-6
"""Scores this near each other, relative to their size (at least 1), are equal: a model rounds differently in another
batch, and a copy that differs beyond the model's last token gets the same vector."""


@dataclass(frozen=True)
class Distractors:
    """Counterfactual copies of relevant documents, appended to the corpus of a set.

    Attributes:
        texts: the copies.
        of: index of a document → index of its copy in the longer corpus.
    """

    texts: list[str]
    of: dict[int, int]


def distractors(drawn: Drawn, cell: Cell, *, seed: int) -> Distractors:
    """A copy of each relevant document in which the kind turns something; none where the copy stands there already."""
    kind, strength = cell
    held = set(drawn.documents)
    texts: list[str] = []
    of: dict[int, int] = {}
    for document in sorted(set().union(*drawn.relevant)):
        copy = KINDS[kind](drawn.documents[document], strength, seed=seed, key=drawn.document_ids[document])
        if copy.changed and copy.text not in held:
            of[document] = len(drawn.documents) + len(texts)
            texts.append(copy.text)
    return Distractors(texts, of)


def above(scores: NDArray[np.float32], drawn: Drawn, copies: Distractors) -> NDArray[np.float64]:
    """How often each query puts a true passage above its copy: float64 [queries]; a tie is a half, NaN is no copy.

    Args:
        scores: [queries, documents and copies], by index.
    """
    import numpy as np

    found = np.full(len(drawn.queries), np.nan)
    for row, relevant in enumerate(drawn.relevant):
        pairs = [(d, copies.of[d]) for d in sorted(relevant) if d in copies.of]
        if pairs:
            true, false = (scores[row, [pair[i] for pair in pairs]].astype(np.float64) for i in (0, 1))
            near = np.abs(true - false) <= TIE * np.maximum(1.0, np.abs(true))
            found[row] = np.where(near, 0.5, true > false).mean()
    return found


def by_index(ranked: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores of complete rankings in the order of the documents: float32 [queries, documents]."""
    import numpy as np

    ordered = np.empty_like(scores)
    np.put_along_axis(ordered, ranked, scores, axis=1)
    return ordered


def auroc(
    inside: NDArray[np.float32], outside: NDArray[np.float32], *, samples: int, rng: np.random.Generator
) -> tuple[float, NDArray[np.float64]]:
    """How often a score from inside is above one from outside, ties a half, and the same for resampled scores.

    The area under the ROC curve (Mann and Whitney 1947): 0.5 tells nothing apart, 1 everything.

    Args:
        inside, outside: [n] and [m] scores, at least one each.

    Returns:
        the value, and float64 [samples] with both groups drawn anew.
    """
    import numpy as np

    wins = (inside[:, None] > outside[None, :]) + 0.5 * (inside[:, None] == outside[None, :])
    drawn = [
        rng.multinomial(count, np.full(count, 1 / count), size=samples) / count for count in (len(inside), len(outside))
    ]
    return float(wins.mean()), ((drawn[0] @ wins) * drawn[1]).sum(axis=1)
