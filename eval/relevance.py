"""Which documents answer which query, as indices; with near copies of a relevant document where the set asks for them.

A near copy is what `data_prep.corpus.near` calls one: the same text but for case and spacing, or word shingles whose
Jaccard similarity is at least `NearConfig.threshold`, over title and text as one. Here the similarity is exact, not
estimated. (What decontamination calls an overlap is looser on purpose: a fifth of the words is enough to keep a text
out of training, and in a statute book it would make every clause an answer.) A document that the qrels judge 0 stays
irrelevant, and nothing is near through a chain: every added document is near to one that was judged.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.corpus.signatures import NearConfig
from data_prep.evaluation_sets import EvaluationSet

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Judged:
    """A set with its judgements as row numbers.

    Attributes:
        task: the set.
        rows: subset → rows of `task.queries` that it judges, rising.
        relevant: subset → for each of these rows the indices of the relevant documents.
        added: subset → how many judgements (query and document) came from near copies.
    """

    task: EvaluationSet
    rows: dict[str, list[int]]
    relevant: dict[str, list[set[int]]]
    added: dict[str, int]


def judge(task: EvaluationSet) -> Judged:
    """The judgements of a set, near copies included where its facts say so."""
    position = {document: index for index, document in enumerate(task.document_ids)}
    row_of = {query: row for row, query in enumerate(task.query_ids)}
    rows: dict[str, list[int]] = {}
    relevant: dict[str, list[set[int]]] = {}
    for subset, judged in task.relevant.items():
        rows[subset] = sorted(row_of[query] for query in judged)
        relevant[subset] = [{position[d] for d in judged[task.query_ids[row]]} for row in rows[subset]]
    added = dict.fromkeys(task.relevant, 0)
    if task.facts.near_duplicates:
        sought = set().union(*(found for subset in relevant.values() for found in subset))
        copies = near_copies(sorted(sought), task.documents)
        for subset in relevant:
            for row, found in zip(rows[subset], relevant[subset], strict=True):
                refused = {position[d] for d in task.irrelevant.get(task.query_ids[row], ())}
                more = set().union(*(copies[document] for document in found)) - found - refused
                found |= more
                added[subset] += len(more)
    return Judged(task, rows, relevant, added)


def near_copies(
    sought: Collection[int], documents: Sequence[str], config: NearConfig | None = None
) -> dict[int, set[int]]:
    """For each of the documents sought, the others that are near copies of it.

    Two sets of shingles with a Jaccard similarity of t or more share one of the rarest `n - ceil(t n) + 1` shingles of
    each (Bayardo, Ma and Srikant 2007), so only documents that do are compared, and none is missed.

    Args:
        sought: indices into `documents`.
        config: what counts as near (default: the corpus's default).
    """
    import numpy as np

    from data_prep.corpus.keys import text_key
    from data_prep.corpus.signatures import shingle_hashes

    config = config or NearConfig()
    by_key: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        by_key.setdefault(text_key(document), []).append(index)
    copies = {index: {*by_key[text_key(documents[index])]} for index in sought}

    shingles = [np.unique(shingle_hashes(document, config.shingle_words)) for document in documents]
    flat = np.concatenate([*shingles, np.empty(0, np.uint64)])
    _, number, times = np.unique(flat, return_inverse=True, return_counts=True)
    ends = np.cumsum([len(one) for one in shingles])
    numbers = np.split(number, ends[:-1]) if len(shingles) else []
    holders: dict[int, list[int]] = {}
    for index in copies:
        for shingle in _rarest(numbers[index], times, config.threshold):
            holders.setdefault(shingle, []).append(index)
    for index, mine in enumerate(numbers):
        near = {other for shingle in _rarest(mine, times, config.threshold) for other in holders.get(shingle, ())}
        for other in near:
            theirs = numbers[other]
            both = len(np.intersect1d(mine, theirs, assume_unique=True))
            if both >= config.threshold * (len(mine) + len(theirs) - both) - _ROUNDING:
                copies[other].add(index)
    for index, found in copies.items():
        found.discard(index)
    return copies


def _rarest(numbers: NDArray[np.int64], times: NDArray[np.int64], threshold: float) -> list[int]:
    """The rarest of a document's shingles, as many as two near copies cannot both be without."""
    import numpy as np

    if not len(numbers):
        return []
    count = len(numbers) - math.ceil(threshold * len(numbers) - _ROUNDING) + 1
    order = np.lexsort((numbers, times[numbers]))
    rarest: list[int] = numbers[order[:count]].tolist()
    return rarest
