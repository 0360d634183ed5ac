"""Documents → pairs with hard negatives, from a teacher's neighbours, by a policy.

Invariant: the same documents, policy and seed give the same pairs, in whatever blocks and by however many processes
they are mined. `audit.json` tells what each rule took away, with score histograms, examples, and how many of the
negatives are probably false.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.corpus.keys import text_key
from data_prep.corpus.words import words_of
from data_prep.errors import UserError
from data_prep.mine.audit import Audit
from data_prep.mine.config import MineConfig
from data_prep.mine.prepare import Embedding, Pool, drawn_rows, make_pool, needs_sketches
from data_prep.mine.select import Mined, Task, mine_queries
from data_prep.mine.sides import Side, side_of
from data_prep.mine.views import representatives, view_rows
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import ShardWriter
from data_prep.text_store import build_text_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.fanout import Fanout

_MANY = 0.25
"""Share of pairs without a negative from which a policy is worth a second look."""
_WRITE = 2048
_TITLE_WORDS = 3
"""A first line of fewer words is no query: documents may hold it though it is a whole evaluation text, queries not."""


def mine_pairs(
    config: MineConfig,
    *,
    documents: Path,
    out: Path,
    seed: int,
    progress: Progress,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
    cache: Path | None = None,
    labelled: list[Path] | None = None,
) -> dict[str, int | float]:
    """Embed, search, select; write `out/pairs` (kind `pairs`), `out/teacher` and `out/audit.json`.

    Args:
        documents: a shard folder of kind `documents`.
        seed: draws documents, queries, the teacher's sample and each query's negatives.
        fanout: computes blocks elsewhere; None computes them here.
        scratch: outlives a crash, so that a second call goes on; None uses a folder in `out` and removes it.
        cache: vectors of earlier runs by teacher and text; None embeds everything.
        labelled: folders of pair shards whose positives are known to be relevant: the audit counts how many of them
            the policy would take for negatives. Nothing is trained on them.

    Returns:
        Counts: documents (searched), zero_vectors (left out: no word that the teacher knows), queries, best_score (of
        any neighbour that is no copy), pairs, positives, negatives, without_negatives, and what each rule took away:
        refused_* are queries, skipped_* are neighbours.

    Raises:
        UserError: fewer documents than neighbours, a teacher that cannot be made, no pair (the best score is named),
            a window that is empty, or rules that leave nobody the `min_negatives` that are asked for (where 0 are, a
            note says so).
    """

    place = scratch or out / ".scratch"
    with progress.work("mine"):
        store = build_text_store(documents, place / "texts", progress=progress)
        embedding = Embedding(config, out=out, place=place, cache=cache, fanout=fanout, seed=seed, progress=progress)
        views = representatives(store, language=config.policy.view_language) if config.policy.views else None
        rows = None if views is None else views.rows[drawn_rows(len(views.rows), config.max_documents, [seed, 1])]
        pool = make_pool(config, store, embedding, seed=seed, rows=rows)
        asked, texts, queries, titles = _queries(config, pool, embedding, seed)
        task = Task(
            policy=config.policy, queries=queries, corpus=pool.side, own=asked, own_keys=pool.side.keys[asked],
            ids=store.ids(pool.numbers[asked]), neighbors=config.neighbors, depth=config.depth,
            backend=config.backend, seed=seed, titles=titles,
        )  # fmt: skip
        if config.cross_encoder and config.policy.on("cross_encoder"):
            from data_prep.mine.cross_encoder import judge_of

            task.judge = judge_of(
                config.cross_encoder, lambda n: [texts[i] for i in n], pool.texts, pool.texts, progress
            )
        mined = mine_queries(task, fanout=fanout, scratch=place, progress=progress)
        if not mined.kept.any():
            raise no_pairs(config, mined)
        if config.policy.negatives_per_query and not (mined.negatives[mined.kept] >= 0).any():
            progress.note(f"warning: {every_negative_vetoed(mined)}")
        audit = Audit()
        progress.begin("write pairs", int(mined.kept.sum()), "pairs")
        with ShardWriter(out / "pairs", "pairs") as writer:
            found = (
                _rows(pool, asked, texts, mined, progress) if views is None else view_rows(pool, views, asked, mined)
            )
            for row, source in found:
                writer.append(row)
                audit.kept(row, source)
        if not audit.counts["pairs"]:
            raise no_pairs(config, mined)
        bare, pairs = audit.counts["without_negatives"], audit.counts["pairs"]
        if config.policy.negatives_per_query and _MANY * pairs < bare < pairs:
            progress.note(f"warning: {bare:,} of {pairs:,} pairs got no negative; relax {_takes_most(mined)}")
        counts: dict[str, int | float] = {
            "documents": len(pool.side),
            "zero_vectors": pool.zero_vectors,
            "queries": len(asked),
            "best_score": round(mined.best, 4),
            **audit.counts,
            **mined.counts,
        }
        audit.hubs(mined.negatives[mined.kept], pool)
        if labelled:
            from data_prep.mine.false_negatives import estimate

            audit.false_negatives = estimate(
                config, pool, embedding, task, mined, labelled=labelled, fanout=fanout, scratch=place / "labelled",
                progress=progress,
            )  # fmt: skip
        audit.write(out / "audit.json", config=config, counts=counts, mined=mined)
    if scratch is None:
        shutil.rmtree(place, ignore_errors=True)
    return counts


def _queries(
    config: MineConfig, pool: Pool, embedding: Embedding, seed: int
) -> tuple[NDArray[np.int64], list[str], Side, NDArray[np.uint64] | None]:
    """Rows that are asked for, their texts, their side, and for `first_line` the keys of all first lines."""
    import numpy as np

    side = pool.side
    rows = np.arange(len(side), dtype=np.int64)
    if config.query == "document":
        asked = rows[drawn_rows(len(rows), config.max_queries, [seed, 2])]
        # texts of queries are read as they are written: here nobody needs them but a cross-encoder
        texts = pool.texts(asked) if config.cross_encoder else []
        if all(teacher.prompt("query") == teacher.prompt("passage") for teacher in pool.teachers):
            return asked, texts, side if len(asked) == len(side) else side.rows(asked), None
        vectors = embedding.rows(pool.store, pool.numbers[asked], role="query", name="queries")
        queries = side.rows(asked)
        queries.vectors, queries.second = vectors[0], vectors[1] if len(vectors) > 1 else None
        return asked, texts, queries, None
    lines, titled = bytearray(), np.zeros(len(side), dtype=np.bool_)
    for row in rows.tolist():
        line, _, rest = pool.texts([row])[0].partition("\n")
        lines += bytes.fromhex(text_key(line))[:8]
        titled[row] = bool(rest.strip()) and len(words_of(line).hashes) >= _TITLE_WORDS
    rows = np.flatnonzero(titled)
    if not len(rows):
        raise UserError(
            f"mine.query = {config.query!r}",
            "leaves no query: no document has a first line of three words and more",
            "use document",
        )
    asked = rows[drawn_rows(len(rows), config.max_queries, [seed, 2])]
    texts = [text.partition("\n")[0] for text in pool.texts(asked)]
    vectors = embedding.texts(texts, pool.store.ids(pool.numbers[asked]), role="query", name="queries")
    queries = side_of(
        texts, vectors[0], documents=side.documents[asked], languages=side.languages[asked],
        sketches=needs_sketches(config), second=vectors[1] if len(vectors) > 1 else None,
    )  # fmt: skip
    return asked, texts, queries, np.frombuffer(bytes(lines), dtype=np.uint64)


def _rows(
    pool: Pool, asked: NDArray[np.int64], texts: list[str], mined: Mined, progress: Progress
) -> Iterator[tuple[dict[str, Any], str]]:
    """The pair rows in the order of the queries, each with the source of its query."""
    import numpy as np

    store = pool.store
    kept = np.flatnonzero(mined.kept)
    for start in range(0, len(kept), _WRITE):
        for number in kept[start : start + _WRITE].tolist():
            row = int(pool.numbers[asked[number]])
            sides = []
            for rows, scores in (
                (mined.positives[number], mined.positive_scores[number]),
                (mined.negatives[number], mined.negative_scores[number]),
            ):
                there = rows >= 0
                sides.append((pool.numbers[rows[there]], scores[there].tolist()))
            (positives, positive_scores), (negatives, negative_scores) = sides
            yield (
                pair_row(
                    texts[number] if texts else store.text(row),
                    store.texts(positives),
                    store.texts(negatives),
                    "mined",
                    store.language(row),
                    positive_scores,
                    negative_scores,
                    query_document=store.document_name(row),
                    positive_documents=store.document_names(positives),
                    negative_documents=store.document_names(negatives),
                ),
                store.source(row),
            )
        progress.advance(min(_WRITE, len(kept) - start))


def no_pairs(config: MineConfig, mined: Mined) -> UserError:
    """Why nothing was mined, and the setting that would change it."""
    policy, best = config.policy, mined.best
    if mined.counts["refused_few_negatives"]:
        return UserError(
            f"mine.policy.min_negatives = {policy.min_negatives}",
            f"refuses all {mined.counts['refused_few_negatives']} queries that have a positive",
            f"lower mine.policy.min_negatives, or relax what takes most: {_takes_most(mined)}",
        )
    if best < 0 and mined.counts["skipped_duplicate"]:
        return UserError(
            f"mine.policy.duplicate_score = {policy.duplicate_score}",
            "every neighbour is at or above it, so it counts as a copy",
            "raise mine.policy.duplicate_score, or use another teacher",
        )
    if policy.positive_max_distance is not None:
        nearest = math.sqrt(max(0.0, 2 - 2 * best))
        return UserError(
            f"mine.policy.positive_max_distance = {policy.positive_max_distance}",
            f"no query has another text that near (of unit vectors, the nearest is {nearest:.4f} away)",
            "raise mine.policy.positive_max_distance, or use another teacher",
        )
    reachable = math.floor(best * 10_000) / 10_000  # rounded down, so that the advice works as printed
    return UserError(
        f"mine.policy.positive_min_score = {policy.positive_min_score}",
        f"no query has a neighbour that near (the best score is {reachable:.4f})",
        f"set mine.policy.positive_min_score to {reachable:.4f} or lower, or use another teacher",
    )


def _takes_most(mined: Mined) -> str:
    """The rule that took most candidates away, in words."""
    taken = {
        name.removeprefix("skipped_negative_"): n for name, n in mined.counts.items() if "skipped_negative" in name
    }
    if not any(taken.values()):
        return "mine.policy.negative_ranks, which holds too few texts"
    worst = max(taken, key=lambda name: taken[name])
    setting = {
        "max_score": "mine.policy.negative_max_score (raise it)",
        "ratio": "mine.policy.negative_max_ratio (raise it, or move the window away from the query)",
        "margin": "mine.policy.negative_margin (lower it, or move the window away from the query)",
        "duplicate": "mine.policy.duplicate_score (raise it)",
        "near_copy": "mine.policy.near_copy (raise it)",
        "translation": "mine.policy.translation_score (raise it)",
        "second_teacher": "mine.policy.agreement_ratio (raise it)",
        "cross_encoder": "mine.cross_encoder.max_score (raise it)",
        "same_document": 'add "same_document" to mine.policy.without',
        "max_uses": "mine.policy.negative_max_uses (raise it)",
    }
    return f"{setting.get(worst, worst)}; {worst} took {taken[worst]:,} candidates"


def every_negative_vetoed(mined: Mined) -> UserError:
    """No query is left with a negative: the rule to relax."""
    return UserError(
        f"mine.policy with {mined.counts.get('candidates', 0):,} candidates for negatives",
        "every one was vetoed, no query has a negative",
        f"relax {_takes_most(mined)}; or set mine.policy.negatives_per_query to 0 to mine positives alone",
    )
