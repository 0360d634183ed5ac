"""From queries and a corpus to positives and hard negatives: search, rules, draw; in blocks that may run anywhere.

Invariant: what a query gets depends on the policy, the seed, its own text and the corpus; not on the other queries
(but for `negative_max_uses`), on block sizes or on who computes a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.fanout import Fanout
from data_prep.mine import positives as choice
from data_prep.mine.choose import Choice, choose, skipped
from data_prep.mine.policy import PAPER_CUTS, RULES, Policy
from data_prep.mine.sampling import capped
from data_prep.mine.sides import Side, cosines
from data_prep.mine.vetoes import worst_of
from data_prep.mine.windows import Near, Searcher
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.neighbors.search import Backend

Judge = Callable[["NDArray[np.int64]", "NDArray[np.int64]", "NDArray[np.int64]"], "NDArray[np.bool_]"]


@dataclass
class Known:
    """Positives that are known beforehand: a side of texts, and which of its rows belong to each query [q, P]."""

    side: Side
    rows: NDArray[np.int64]


@dataclass
class Mined:
    """What q queries got.

    Attributes:
        positives, positive_scores: [q, P] rows (of the corpus, or of the known positives) and cosines.
        negatives, negative_scores: [q, negatives_per_query] rows of the corpus, in the order to store; -1 for none.
        kept: [q] whether the query becomes a pair.
        nearest: [q, depth] scores of its neighbours, best first.
        counts: what was refused and skipped. alone: what each rule would take away if it were the only one (rules that
            read vectors: of what the others left). best: the best score of a neighbour that is no copy.
    """

    positives: NDArray[np.int64]
    positive_scores: NDArray[np.float32]
    negatives: NDArray[np.int64]
    negative_scores: NDArray[np.float32]
    kept: NDArray[np.bool_]
    nearest: NDArray[np.float32]
    counts: dict[str, int] = field(default_factory=dict)
    alone: dict[str, int] = field(default_factory=dict)
    best: float = -1.0


@dataclass
class Task:
    """One mining task.

    Attributes:
        own: [q] row of the corpus that is the query's own text, -1 for none.
        own_keys: [q] keys of the texts that the queries were cut from. ids: [q] hexadecimal; they seed draws.
        known: positives that are given; None finds them.
        titles: [n] keys of the first lines of the corpus where those are the queries: a text that carries the query as
            its title (itself, a near copy) is no answer to it.
        judge: the cross-encoder, where there is one: (queries [s], corpus rows [s], best positive of each [s]) → which
            of them it finds relevant.
        spared: [q] a row of the corpus that is not taken as a positive; -1 for none.
    """

    policy: Policy
    queries: Side
    corpus: Side
    own: NDArray[np.int64]
    own_keys: NDArray[np.uint64]
    ids: Sequence[str]
    neighbors: int
    depth: int
    backend: Backend
    seed: int
    known: Known | None = None
    titles: NDArray[np.uint64] | None = None
    judge: Judge | None = None
    spared: NDArray[np.int64] | None = None


def mine_queries(task: Task, *, fanout: Fanout | None, scratch: Path, progress: Progress) -> Mined:
    """Positives and negatives of every query.

    Args:
        scratch: a folder that outlives a crash: a second call takes finished blocks up.

    Raises:
        UserError: the window of negatives is empty for every query.
    """
    import numpy as np

    policy = task.policy
    _check_scale(task)
    names = ("refused_no_positive", "refused_few_negatives", "skipped_duplicate", "skipped_same_text")
    counts = dict.fromkeys(names, 0) | {skipped(rule): 0 for rule in RULES if policy.on(rule)}
    searcher = Searcher(
        task.queries, task.corpus, own=task.own, backend=task.backend, seed=task.seed, fanout=fanout,
        scratch=scratch, progress=progress,
    )  # fmt: skip
    searcher.measure_crowds(policy)
    percentiles = [policy.positive_min_percentile] if policy.positive_min_percentile else []
    if policy.negative_percentiles and policy.languages == "any":
        percentiles += policy.negative_percentiles
    near = _without_titles(task, searcher.nearest(task.depth, percentiles), counts)
    rows, scores, best = _positives(task, searcher, near, counts)
    side = task.known.side if task.known else task.corpus
    kept = (rows >= 0).any(axis=1) | (policy.keep_self & (task.own >= 0))
    counts["refused_no_positive"] = int((~kept).sum())
    alone: dict[str, int] = {}
    wanted = policy.negatives_per_query
    negatives = np.full((len(task.queries), wanted), -1, dtype=np.int64)
    negative_scores = np.full((len(task.queries), wanted), -np.inf, dtype=np.float32)
    if wanted and kept.any():
        asked = np.flatnonzero(kept)
        candidates = _candidates(task, searcher, near, side, rows, scores, asked)
        columns, block_counts, alone = choose(
            Choice(
                policy=policy, queries=task.queries.rows(asked), corpus=task.corpus, positives=side, rows=rows[asked],
                scores=scores[asked], candidates=candidates.rows, candidate_scores=candidates.scores,
                own_keys=task.own_keys[asked], ids=[task.ids[row] for row in asked.tolist()], seed=task.seed,
                spare=max(4, wanted) if task.judge or policy.negative_max_uses else 0,
            ),
            fanout=fanout, scratch=scratch, progress=progress,
        )  # fmt: skip
        for name, count in block_counts.items():
            counts[name] = counts.get(name, 0) + count
        drawn = _taken(candidates.rows, columns)
        if task.judge is not None:
            drawn, counts[skipped("cross_encoder")] = _judged(task.judge, drawn, asked, rows[asked])
        if policy.negative_max_uses:
            drawn, counts["skipped_negative_max_uses"] = capped(
                drawn, task.queries.keys[asked], task.corpus.keys, most=policy.negative_max_uses, seed=task.seed
            )
        order = np.argsort(drawn < 0, axis=1, kind="stable")[:, :wanted]
        found_scores = np.take_along_axis(candidates.scores, np.maximum(columns, 0), 1)
        negatives[asked], negative_scores[asked] = (np.take_along_axis(a, order, 1) for a in (drawn, found_scores))
    nearness = negative_scores if policy.sampling == "stages" else -negative_scores
    order = np.lexsort((negatives, nearness, negatives < 0), axis=1)
    negatives = np.take_along_axis(negatives, order, 1)
    negative_scores = np.take_along_axis(negative_scores, order, 1)
    few = kept & ((negatives >= 0).sum(axis=1) < policy.min_negatives)
    counts["refused_few_negatives"] = int(few.sum())
    return Mined(rows, scores, negatives, negative_scores, kept & ~few, near.scores, counts, alone, best)


def _check_scale(task: Task) -> None:
    """Raises `UserError` where the policy speaks of scores or distances that these vectors do not have."""
    policy, normalised = task.policy, task.corpus.vectors.normalised
    if policy.preset == "paper":
        name = policy.paper_corpus or "malay-news"
        if PAPER_CUTS[name][2] != normalised and policy.positive_max_distance == PAPER_CUTS[name][0]:
            has, fitting = ("", [n for n, cut in PAPER_CUTS.items() if cut[2]]) if normalised else (
                "not ", [n for n, cut in PAPER_CUTS.items() if not cut[2]]
            )  # fmt: skip
            raise UserError(
                f"mine.policy.paper_corpus = {name!r}",
                f"its distances are of another scale: the vectors of this teacher are {has}normalised",
                f"choose one of {', '.join(fitting)}, or set positive_max_distance and negative_distances",
            )
    by_distance = policy.positive_max_distance is not None and policy.positive_sampling == "uniform"
    if not normalised and not (
        (task.known is not None or by_distance) and (policy.negative_distances or not policy.negatives_per_query)
    ):
        raise UserError(
            "mine.policy with vectors that are not normalised",
            "scores are cosines of normalised vectors",
            "normalise the teacher's vectors, or give positive_max_distance (with positive_sampling uniform) and "
            "negative_distances",
        )


def _without_titles(task: Task, near: Near, counts: dict[str, int]) -> Near:
    """The neighbours without those that carry the query as their title."""
    import numpy as np

    if task.titles is None:
        return near
    there = near.rows >= 0
    titled = there & (task.titles[near.rows] == task.queries.keys[:, None])
    counts["skipped_same_text"] += int(titled[:, : task.neighbors].sum())
    order = np.argsort(titled | ~there, axis=1, kind="stable")
    rows = np.where(titled, -1, near.rows)
    return Near(np.take_along_axis(rows, order, 1), np.take_along_axis(near.scores, order, 1))


def _positives(
    task: Task, searcher: Searcher, near: Near, counts: dict[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.float32], float]:
    """Rows [q, P], cosines [q, P], and the best score of any neighbour that is no copy."""
    import numpy as np

    policy, everyone = task.policy, np.arange(len(task.queries))
    if task.known is not None:
        rows = task.known.rows
        scores = cosines(task.queries.vectors, everyone, task.known.side.vectors, rows)
        return rows, scores, float(scores.max(initial=-1.0))
    above = searcher.levels[policy.positive_min_percentile] if policy.positive_min_percentile else None
    if policy.positive_sampling == "uniform":
        rows, _ = choice.uniform(policy, searcher, above=above)
        same = (rows >= 0) & (task.corpus.keys[rows] == task.own_keys[:, None])
        rows = np.where(same & (not policy.views), -1, rows)
        scores = cosines(task.queries.vectors, everyone, task.corpus.vectors, rows)
        return rows, scores, float(near.scores.max(initial=-1.0))
    if task.spared is not None:
        near = Near(np.where(near.rows == task.spared[:, None], -1, near.rows), near.scores)
    return choice.best(
        policy, near, queries=task.queries, corpus=task.corpus, own_keys=task.own_keys, neighbors=task.neighbors,
        above=above, counts=counts,
    )  # fmt: skip


def _candidates(
    task: Task, searcher: Searcher, near: Near, side: Side, rows: NDArray[np.int64], scores: NDArray[np.float32],
    asked: NDArray[np.int64],
) -> Near:  # fmt: skip
    """What the window holds for the queries that have a positive, with cosines."""
    import numpy as np

    policy = task.policy
    language = np.zeros(len(asked), dtype=np.int64)
    if policy.languages == "query":
        language = task.queries.languages[asked]
    elif policy.languages == "positive":
        first = rows[asked, 0]
        language = np.where(first >= 0, side.languages[np.maximum(first, 0)], task.queries.languages[asked])
    everyone = len(asked) == len(task.queries)  # then nothing large is copied
    some = searcher if everyone else searcher.of(asked)
    theirs = near if everyone else Near(near.rows[asked], near.scores[asked])
    found = some.negatives(policy, theirs, worst_of(rows[asked], scores[asked]), language)
    if task.titles is not None:  # a text with the query as its title is no candidate, from whatever window
        titled = (found.rows >= 0) & (task.titles[found.rows] == task.queries.keys[asked, None])
        found = Near(np.where(titled, -1, found.rows), found.scores)
    if policy.negative_distances is not None and not policy.negative_ranks:
        return Near(found.rows, cosines(task.queries.vectors, asked, task.corpus.vectors, found.rows))
    return found


def _taken(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
    """What stands in the given columns [q, w] of rows [q, m]; -1 for column -1."""
    import numpy as np

    return np.where(columns >= 0, np.take_along_axis(rows, np.maximum(columns, 0), 1), -1)


def _judged(
    judge: Judge, drawn: NDArray[np.int64], asked: NDArray[np.int64], rows: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """The draws without what the cross-encoder finds relevant, and how many it took away."""
    import numpy as np

    queries, places = np.nonzero(drawn >= 0)
    relevant = judge(asked[queries], drawn[queries, places], rows[queries, 0])
    left = drawn.copy()
    left[queries[relevant], places[relevant]] = -1
    return left, int(relevant.sum())
