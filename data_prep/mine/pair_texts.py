"""The texts of a folder of pairs as sequences that are read from the shards anew, and their facts as arrays.

Invariant: what is held of a pair is its query's id and a few numbers, however long its texts are.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

from data_prep.errors import UserError
from data_prep.mine.sides import language_number
from data_prep.text_store import document_hash

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.shards import Shards

Row = dict[str, Any]


class PairTexts(Sequence[str]):
    """Some strings of every pair, one pair after another; iterating streams the shards, memory holds a row group.

    Args:
        of: the strings of a pair.
        starts: [pairs + 1] how many strings come before each pair's.
    """

    def __init__(self, shards: Shards, of: Callable[[Row], Sequence[str]], starts: NDArray[np.int64]) -> None:
        self._shards, self._of, self._starts = shards, of, starts

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[str]:
        for row in self._shards:
            yield from self._of(row)

    def between(self, start: int, stop: int) -> Iterator[str]:
        """The strings [start, stop), in order; pairs outside are not read."""
        import numpy as np

        if start >= stop:
            return
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        last = int(np.searchsorted(self._starts, stop, side="left"))
        number = int(self._starts[first])
        for row in self._shards.rows_between(first, last):
            for text in self._of(row):
                if start <= number < stop:
                    yield text
                number += 1

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> list[str]: ...

    def __getitem__(self, place: int | slice) -> str | list[str]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            return list(self.between(start, max(start, stop)))[::step] if step > 0 else list(self)[place]
        if not -len(self) <= place < len(self):
            raise IndexError(f"text {place} of {len(self)}")
        return next(self.between(place % len(self), place % len(self) + 1))

    def pick(self, numbers: NDArray[np.int64]) -> list[str]:
        """The strings of some numbers, in the given order; what lies between them is read and forgotten."""
        if not len(numbers):
            return []
        wanted = set(numbers.tolist())
        first = int(numbers.min())
        found = {
            number: text
            for number, text in enumerate(self.between(first, int(numbers.max()) + 1), first)
            if number in wanted
        }
        return [found[number] for number in numbers.tolist()]


@dataclass
class PairFacts:
    """What mining needs of n pairs besides their texts, and these as sequences.

    Attributes:
        queries: their texts, ids: their content ids. positives, positive_ids: those of all pairs, one after another.
        counts: [n] positives of each pair.
        languages: [n] `language_number`. documents: [n] `document_hash` of the query's, 0 unknown.
        positive_documents: [positives] the same for each positive.
    """

    queries: PairTexts
    ids: list[str]
    positives: PairTexts
    positive_ids: PairTexts
    counts: NDArray[np.int64]
    languages: NDArray[np.int64]
    documents: NDArray[np.uint64]
    positive_documents: NDArray[np.uint64]


def pair_facts(shards: Shards) -> PairFacts:
    """Read all pairs once. Raises `UserError` for a pair without a positive."""
    import numpy as np

    ids: list[str] = []
    counts, languages, documents, theirs = array("q"), array("q"), array("Q"), array("Q")
    for row in shards:
        positives = row["positives"]
        if not positives:
            raise UserError(f"query {row['query'][:60]!r}", "has no positive", "remove the pair or give it one")
        ids.append(row["query_id"])
        counts.append(len(positives))
        languages.append(language_number(row["language"]))
        documents.append(_number(row["query_document"]))
        theirs.extend(map(_number, row["positive_documents"] or [None] * len(positives)))
    each = np.asarray(counts, dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(each)]).astype(np.int64)
    one = np.arange(len(ids) + 1, dtype=np.int64)
    return PairFacts(
        queries=PairTexts(shards, lambda row: [row["query"]], one),
        ids=ids,
        positives=PairTexts(shards, lambda row: row["positives"], starts),
        positive_ids=PairTexts(shards, lambda row: row["positive_ids"], starts),
        counts=each,
        languages=np.asarray(languages, dtype=np.int64),
        documents=np.asarray(documents, dtype=np.uint64),
        positive_documents=np.asarray(theirs, dtype=np.uint64),
    )


def _number(document: str | None) -> int:
    return document_hash(document) if document else 0
