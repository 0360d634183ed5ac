"""Texts with several views: the renderings (languages) of one text that share a `document`.

As arXiv 2402.03053 mined: one view is embedded and stands for the text; every view becomes the query of a row, with all
views of the positive texts (but a string equal to the query) and all views of the negative texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.pairs.row import pair_row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.mine.prepare import Pool
    from data_prep.mine.select import Mined
    from data_prep.text_store import TextStore


@dataclass
class Views:
    """Which rows of a store are views of one text.

    Attributes:
        rows: [n] the row that stands for each text, ascending.
        members: [rows of the store] sorted by text; starts: [texts + 1] where each text's rows begin.
        text_of: row of the store → its text's place in `starts`.
    """

    rows: NDArray[np.int64]
    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    text_of: NDArray[np.int64]

    def of(self, row: int) -> list[int]:
        """All rows of the text that a row belongs to, in the order of the store."""
        text = int(self.text_of[row])
        found: list[int] = self.members[self.starts[text] : self.starts[text + 1]].tolist()
        return found


def representatives(store: TextStore, *, language: str) -> Views:
    """The row that stands for each text: its first view in the given language, else its first."""
    import numpy as np

    _, text_of = np.unique(np.asarray(store.documents), return_inverse=True)
    members = np.argsort(text_of, kind="stable").astype(np.int64)
    counts = np.bincount(text_of)
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    wanted = np.asarray([name == language for name in store.languages], dtype=np.bool_)
    preferred = wanted[store.language_codes] if len(store) else np.empty(0, dtype=np.bool_)
    # the preferred views first, inside each text in the order of the store
    order = np.lexsort((np.arange(len(text_of)), ~preferred, text_of))
    return Views(np.sort(order[starts[:-1]]).astype(np.int64), members, starts, text_of.astype(np.int64))


def view_rows(pool: Pool, views: Views, asked: NDArray[np.int64], mined: Mined) -> Iterator[tuple[dict[str, Any], str]]:
    """A pair row for every view of every kept text, with the source of its query.

    Lists hold a text once, compared in lower case; a row without a positive or a negative is left out and counted.
    """
    import numpy as np

    store = pool.store
    mined.counts |= {"refused_view_without_positive": 0, "refused_view_without_negative": 0}
    for number in np.flatnonzero(mined.kept).tolist():
        own = int(pool.numbers[asked[number]])
        lists = []
        for rows, scores, itself in (
            (mined.positives[number], mined.positive_scores[number], True),
            (mined.negatives[number], mined.negative_scores[number], False),
        ):
            chosen = [(own, 1.0)] if itself else []
            chosen += [(int(pool.numbers[r]), float(s)) for r, s in zip(rows, scores, strict=True) if r >= 0]
            lists.append(_distinct(store, [(view, score) for row, score in chosen for view in views.of(row)]))
        for view in views.of(own):
            query = store.text(view)
            (positives, positive_scores), (negatives, negative_scores) = (
                _without(store, rows, query if n == 0 else None) for n, rows in enumerate(lists)
            )
            if not positives or not negatives:
                mined.counts[f"refused_view_without_{'negative' if positives else 'positive'}"] += 1
                continue
            yield (
                pair_row(
                    query,
                    store.texts(positives),
                    store.texts(negatives),
                    "mined",
                    store.language(view),
                    positive_scores,
                    negative_scores,
                    query_document=store.document_name(view),
                    positive_documents=store.document_names(positives),
                    negative_documents=store.document_names(negatives),
                ),
                store.source(view),
            )


def _distinct(store: TextStore, rows: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The rows without repeated texts."""
    found: dict[str, tuple[int, float]] = {}
    for row, score in rows:
        found.setdefault(store.text(row).lower(), (row, score))
    return list(found.values())


def _without(store: TextStore, rows: list[tuple[int, float]], text: str | None) -> tuple[list[int], list[float]]:
    """Rows and scores, without the rows whose text is `text`."""
    left = [(row, score) for row, score in rows if text is None or store.text(row) != text]
    return [row for row, _ in left], [score for _, score in left]
