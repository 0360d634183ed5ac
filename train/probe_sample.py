"""The questions of a probe: some queries of a pair shard, and the passages that hold their positives.

Invariant: the sample is a function of the shard's rows and the seed. A passage that any row read calls a positive of
a query counts as one, whichever row brought it, and no query is ranked against itself.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError

if TYPE_CHECKING:
    from data_prep.shards import Shards


@dataclass(frozen=True)
class Sample:
    """Q queries and P passages.

    Attributes:
        queries, passages: their texts; passages come in the order of their content ids, so ties favour none.
        relevant: for each query the indices of its positives, at least one.
        hidden: for each query the indices of passages that are not ranked: its own text.
    """

    queries: list[str]
    passages: list[str]
    relevant: list[list[int]]
    hidden: list[list[int]]


def draw_sample(pairs: Shards, *, queries: int, passages: int, seed: int) -> Sample:
    """Draw up to so many queries and passages: the queries' positives first, then other rows' texts.

    Raises `UserError` where fewer than two queries or passages are there.
    """
    import numpy as np

    order = np.random.default_rng([seed, zlib.crc32(b"probe")]).permutation(len(pairs)).tolist()
    asked: dict[str, str] = {}
    known: dict[str, set[str]] = {}
    texts: dict[str, str] = {}
    others: dict[str, str] = {}
    for row in _rows(pairs, order):
        query, positives = row["query_id"], dict(zip(row["positive_ids"], row["positives"], strict=True))
        negatives = dict(zip(row["negative_ids"] or [], row["negatives"] or [], strict=True))
        positives.pop(query, None)
        full = len(asked) == queries or len(texts) + len(positives) > passages
        if positives and (query in asked or not full):
            asked[query] = row["query"]
            known.setdefault(query, set()).update(positives)
            texts |= positives
        else:
            others |= positives
        others |= negatives
        if full and len(texts.keys() | others.keys()) >= passages:
            break
    for identity, text in others.items():
        if len(texts) >= passages:
            break
        texts.setdefault(identity, text)
    if len(asked) < 2 or len(texts) < 2:
        raise UserError(
            f"probe: {len(asked)} queries and {len(texts)} passages",
            f"at least two of each are needed ({len(pairs)} pairs in {pairs.folder.name})",
            "probe a larger source (truncate.probe.source), or leave [truncate.probe] away",
        )
    ids = sorted(texts)
    place = {identity: i for i, identity in enumerate(ids)}
    return Sample(
        queries=list(asked.values()),
        passages=[texts[i] for i in ids],
        relevant=[sorted(place[i] for i in known[query]) for query in asked],
        hidden=[[place[query]] if query in place else [] for query in asked],
    )


def _rows(pairs: Shards, order: list[int], block: int = 512) -> Iterator[dict[str, Any]]:
    for start in range(0, len(order), block):
        yield from pairs.take(order[start : start + block])
