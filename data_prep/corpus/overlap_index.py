"""Evaluation texts as tables in which a training text is looked up word by word.

Two tables: runs of `ngram_words` words, and pairs of neighbouring words. Of the pairs a text keeps the rarer ones only:
with k edits allowed at least `pairs - 2 k` survive, so up to half as many may be left out and the other half still has
to be there. That keeps common pairs out of the table and misses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class RunTable(NamedTuple):
    """Runs of words: hash slots and numbers; per number a list of texts and of the places where the run begins."""

    slots: NDArray[np.uint64]
    numbers: NDArray[np.int32]
    posting_starts: NDArray[np.int64]
    postings: NDArray[np.int32]
    places: NDArray[np.int32]


class PairTable(NamedTuple):
    """Pairs of words: hash slots and numbers; per number a list of texts; per text how many pairs must be found."""

    slots: NDArray[np.uint64]
    numbers: NDArray[np.int32]
    posting_starts: NDArray[np.int64]
    postings: NDArray[np.int32]
    need: NDArray[np.int32]


def run_table(texts: Sequence[NDArray[np.uint64]], documents: Sequence[int], size: int, common: int) -> RunTable:
    """Every run of `size` words of the texts, but for those that stand in more than `common` documents.

    Args:
        texts: word hashes of each text.
        documents: which document each text is a form of.
    """
    import numpy as np

    from data_prep.corpus.overlap_kernels import build_table
    from data_prep.corpus.word_kernels import grams

    runs = [grams(hashes, size) for hashes in texts]
    flat = np.concatenate([*runs, np.empty(0, np.uint64)])
    owner = np.repeat(np.arange(len(texts), dtype=np.int32), [len(r) for r in runs])
    place = np.concatenate([*(np.arange(len(r), dtype=np.int32) for r in runs), np.empty(0, np.int32)])
    keys, inverse = np.unique(flat, return_inverse=True)
    held = np.unique(np.stack([inverse, np.asarray(documents, np.int64)[owner]]), axis=1)[0]
    rare = (np.bincount(held, minlength=len(keys)) <= common)[inverse]
    flat, owner, place = flat[rare], owner[rare], place[rare]
    order = np.argsort(flat, kind="stable")
    keys, first = np.unique(flat[order], return_index=True)
    slots, numbers = build_table(keys)
    return RunTable(slots, numbers, np.append(first, len(flat)).astype(np.int64), owner[order], place[order])


def pair_table(texts: Sequence[NDArray[np.uint64]], edits: Sequence[int]) -> PairTable:
    """The rarer pairs of words of every text.

    Args:
        texts: word hashes of each text.
        edits: how many edits each may have, under half its pairs; a negative number leaves the text out.
    """
    import numpy as np

    from data_prep.corpus.overlap_kernels import build_table
    from data_prep.corpus.word_kernels import grams

    need = np.zeros(len(texts), np.int32)
    chosen = [(i, np.unique(grams(texts[i], 2), return_counts=True)) for i in range(len(texts)) if edits[i] >= 0]
    pairs, frequency = np.unique(
        np.concatenate([*(values for _, (values, _) in chosen), np.empty(0, np.uint64)]), return_counts=True
    )
    kept: list[NDArray[np.uint64]] = []
    owners: list[NDArray[np.int32]] = []
    for i, (values, times) in chosen:
        needed = len(texts[i]) - 1 - 2 * edits[i]
        order = np.argsort(-frequency[np.searchsorted(pairs, values)], kind="stable")
        left_out = np.cumsum(times[order])
        dropped = int(np.searchsorted(left_out, needed // 2, side="right"))
        need[i] = needed - (int(left_out[dropped - 1]) if dropped else 0)
        kept.append(values[order[dropped:]])
        owners.append(np.full(len(values) - dropped, i, np.int32))
    flat = np.concatenate([*kept, np.empty(0, np.uint64)])
    owner = np.concatenate([*owners, np.empty(0, np.int32)])
    order = np.argsort(flat, kind="stable")
    keys, first = np.unique(flat[order], return_index=True)
    slots, numbers = build_table(keys)
    return PairTable(slots, numbers, np.append(first, len(flat)).astype(np.int64), owner[order], need)
