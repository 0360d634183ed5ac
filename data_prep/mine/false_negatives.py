"""How many of the mined negatives are answers after all, judged by relevance that is known.

Two estimates, each with a 95 % Wilson interval:

`known`: of the negatives drawn for queries with known relevant texts in the corpus, the share that is known to be
relevant. It is a lower bound: relevance that nobody wrote down is not counted.

`hidden`: for each labelled query, one known relevant text is put among the searched texts and its relevance is hidden.
The policy mines as always (its positive is what it would take without the label), and we count how often the hidden
text is drawn as a negative. Reported per query with negatives (how often the policy falls into a trap that is there)
and per drawn negative (again a lower bound of the share of false ones, one trap a query).

Both assume that the labelled pairs look like the corpus, and that queries are independent; queries about one document
are not, so their interval is somewhat too narrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpus.keys import text_key
from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.mine.prepare import drawn_rows, needs_sketches
from data_prep.mine.select import Mined, Task, mine_queries
from data_prep.mine.sides import Joined, Side, rows_of_keys, side_of
from data_prep.progress import Progress
from data_prep.shards import Shards

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.fanout import Fanout
    from data_prep.mine.config import MineConfig
    from data_prep.mine.prepare import Embedding, Pool

_QUERIES = 2000
"""Labelled queries that are hidden: the interval of a rate of 1 % is then ± 0.5 %."""
_Z = 1.959964


def wilson(hits: int, trials: int) -> dict[str, float | int]:
    """A rate with its 95 % Wilson score interval (Wilson 1927); 0 to 1 where nothing was tried."""
    if not trials:
        return {"hits": 0, "trials": 0, "rate": 0.0, "low": 0.0, "high": 1.0}
    rate, square = hits / trials, _Z * _Z
    centre = (rate + square / (2 * trials)) / (1 + square / trials)
    half = _Z / (1 + square / trials) * (rate * (1 - rate) / trials + square / (4 * trials * trials)) ** 0.5
    low = 0.0 if hits == 0 else max(0.0, centre - half)
    high = 1.0 if hits == trials else min(1.0, centre + half)
    return {"hits": hits, "trials": trials, "rate": round(rate, 6), "low": round(low, 6), "high": round(high, 6)}


def estimate(
    config: MineConfig,
    pool: Pool,
    embedding: Embedding,
    task: Task,
    mined: Mined,
    *,
    labelled: list[Path],
    fanout: Fanout | None,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Both estimates, as JSON. Raises `UserError` where a folder holds no pairs."""
    pairs = [
        (row["query"], text, row["language"])
        for folder in labelled
        for row in Shards(folder, "pairs")
        for text in row["positives"]
    ]
    if not pairs:
        raise UserError(f"{[str(folder) for folder in labelled]}", "hold no pair", "give labelled pairs or none")
    return {
        "known": known_relevance(task, mined, [(query, text) for query, text, _ in pairs]),
        "hidden": _hidden(config, pool, embedding, task, pairs, fanout, scratch, progress),
        "labelled_pairs": len(pairs),
    }


def known_relevance(task: Task, mined: Mined, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The estimate `known`, from pairs of relevant texts; relevance counts both ways."""
    import numpy as np

    numbers = np.asarray([[_key(one), _key(other)] for one, other in pairs], dtype=np.uint64).reshape(-1, 2)
    both = np.concatenate([numbers, numbers[:, ::-1]])
    mixed = np.unique(_joined(both[:, 0], both[:, 1]))
    queries = task.own_keys
    in_corpus = np.isin(both[:, 1], task.corpus.keys)
    asked = np.isin(queries, both[in_corpus, 0]) & mined.kept
    drawn = mined.negatives[asked]
    keys = np.where(drawn >= 0, task.corpus.keys[drawn], 0)
    hits = np.isin(_joined(np.broadcast_to(queries[asked][:, None], keys.shape), keys), mixed) & (drawn >= 0)
    return {"queries": int(asked.sum()), "per_negative": wilson(int(hits.sum()), int((drawn >= 0).sum()))}


def _key(text: str) -> int:
    return int.from_bytes(bytes.fromhex(text_key(text))[:8], "little")


def _joined(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One number for an ordered pair of keys."""
    import numpy as np

    with np.errstate(over="ignore"):
        joined: NDArray[np.uint64] = (one * np.uint64(0x9E3779B97F4A7C15)) ^ (other * np.uint64(0xC2B2AE3D27D4EB4F))
    return joined


def _hidden(
    config: MineConfig,
    pool: Pool,
    embedding: Embedding,
    task: Task,
    pairs: list[tuple[str, str, str]],
    fanout: Fanout | None,
    scratch: Path,
    progress: Progress,
) -> dict[str, Any]:
    """The estimate `hidden`."""
    import numpy as np

    first = dict(_first_of_each(pairs))
    names = list(first)
    names = [names[row] for row in drawn_rows(len(names), _QUERIES, [task.seed, 7]).tolist()]
    traps = [first[name][0] for name in names]
    languages = [first[name][1] for name in names]
    sides = []
    for role, name, texts in (("query", "labelled-queries", names), ("passage", "labelled-texts", traps)):
        vectors = embedding.texts(texts, [content_id(text) for text in texts], role=role, name=name)  # type: ignore[arg-type]
        # a text of unknown document and of its query's language: no rule but those on scores can tell it
        unknown, words = np.zeros(len(texts), dtype=np.uint64), needs_sketches(config)
        second = vectors[1] if len(vectors) > 1 else None
        sides.append(side_of(texts, vectors[0], documents=unknown, languages=languages, sketches=words, second=second))
    queries, hidden = sides
    usable = np.flatnonzero(
        queries.vectors.read(0, len(queries)).any(axis=1) & hidden.vectors.read(0, len(hidden)).any(axis=1)
    )
    queries, hidden = queries.rows(usable), hidden.rows(usable)
    corpus, trap_rows = _with(pool.side, hidden)
    own = rows_of_keys(corpus.keys, queries.keys)
    own = np.where(own == trap_rows, -1, own)
    found = mine_queries(
        replace(
            task, queries=queries, corpus=corpus, own=own, own_keys=queries.keys, titles=None, judge=None,
            ids=[content_id(names[row]) for row in usable.tolist()], spared=trap_rows,
        ),
        fanout=fanout, scratch=scratch, progress=progress,
    )  # fmt: skip
    with_negatives = found.kept & (found.negatives >= 0).any(axis=1)
    hits = int((found.negatives[with_negatives] == trap_rows[with_negatives, None]).sum())
    return {
        "queries": len(usable),
        "per_query": wilson(hits, int(with_negatives.sum())),
        "per_negative": wilson(hits, int((found.negatives[with_negatives] >= 0).sum())),
    }


def _first_of_each(pairs: list[tuple[str, str, str]]) -> Iterator[tuple[str, tuple[str, str]]]:
    """(query, (its first known relevant text, language)), every query once."""
    seen: set[str] = set()
    for query, text, language in pairs:
        if query not in seen and query != text:
            seen.add(query)
            yield query, (text, language)


def _with(side: Side, more: Side) -> tuple[Side, NDArray[np.int64]]:
    """The side with the texts of `more` that it lacks, and the row where each text of `more` stands."""
    import numpy as np

    rows = rows_of_keys(side.keys, more.keys)
    _, firsts = np.unique(more.keys, return_index=True)
    new = np.sort(firsts[rows[firsts] < 0])
    added = more.rows(new)
    joined = Side(
        vectors=Joined(side.vectors, added.vectors),
        keys=np.concatenate([side.keys, added.keys]),
        documents=np.concatenate([side.documents, added.documents]),
        languages=np.concatenate([side.languages, added.languages]),
        sketches=None
        if side.sketches is None or added.sketches is None
        else np.concatenate([side.sketches, added.sketches]),
        second=None if side.second is None or added.second is None else Joined(side.second, added.second),
    )
    return joined, rows_of_keys(joined.keys, more.keys)
