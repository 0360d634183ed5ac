"""Hard negatives for pairs that are there already: synthetic and labelled ones.

Invariant: queries and positives stay as they are, in their order; negatives that a pair has come first and stay. What
is added passes every rule of the policy against all of the pair's positives. Pairs are read anew whenever their texts
are needed: no more than a row group of them is in memory.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.embed.embedder import Role
from data_prep.embed.teacher import TeacherConfig
from data_prep.embed.vectors import Vectors
from data_prep.errors import UserError
from data_prep.mine.audit import Audit
from data_prep.mine.config import CrossEncoderConfig, MineConfig
from data_prep.mine.mine import every_negative_vetoed
from data_prep.mine.pair_texts import PairFacts, pair_facts
from data_prep.mine.policy import Policy
from data_prep.mine.prepare import Embedding, Pool, make_pool, needs_sketches
from data_prep.mine.select import Known, Mined, Task, mine_queries
from data_prep.mine.sides import Side, rows_of_keys, side_of
from data_prep.neighbors.search import Backend
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.text_store import build_text_store

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.fanout import Fanout


def add_negatives(
    pairs: Path,
    *,
    documents: Path,
    policy: Policy,
    teacher: TeacherConfig,
    out: Path,
    seed: int = 0,
    progress: Progress | None = None,
    backend: Backend = "exact",
    second_teacher: TeacherConfig | None = None,
    cross_encoder: CrossEncoderConfig | None = None,
    max_documents: int | None = None,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
    cache: Path | None = None,
    table: str = "mine",
) -> dict[str, int | float]:
    """Write `out/pairs`: the pairs with mined negatives added, with the scores of positives and negatives.

    Args:
        pairs: a shard folder of kind `pairs`. documents: the texts that negatives are taken from.
        policy: its bounds of positives are not asked: the pairs' own are kept.
        table: of the recipe that names the teachers, for messages.
        The others are those of `mine_pairs`.

    Returns:
        Counts: pairs, positives, negatives, without_negatives, documents, zero_vectors, and what the rules took away.
        `refused_few_negatives` pairs have fewer than `min_negatives` and are dropped.

    Raises:
        UserError: as `mine_pairs`; or pairs with a positive that is missing.
    """
    progress = progress or Progress()
    place = scratch or out / ".scratch"
    config = MineConfig(
        teacher=teacher, second_teacher=second_teacher, cross_encoder=cross_encoder, backend=backend,
        max_documents=max_documents, neighbors=1, policy=policy,
    )  # fmt: skip
    with progress.work("mine"):
        shards = Shards(pairs, "pairs")
        if not len(shards):
            raise UserError(str(pairs), "holds no pair", "give a folder with pairs")
        store = build_text_store(documents, place / "texts", progress=progress)
        embedding = Embedding(
            config, out=out, place=place, cache=cache, fanout=fanout, seed=seed, progress=progress, table=table
        )
        pool = make_pool(config, store, embedding, seed=seed)
        facts = pair_facts(shards)
        task = _task(config, facts, pool, embedding, seed)
        if cross_encoder and policy.on("cross_encoder"):
            from data_prep.mine.cross_encoder import judge_of

            task.judge = judge_of(cross_encoder, facts.queries.pick, pool.texts, facts.positives.pick, progress)
        mined = mine_queries(task, fanout=fanout, scratch=place, progress=progress)
        if policy.negatives_per_query and not (mined.negatives >= 0).any():
            raise every_negative_vetoed(mined)
        audit = Audit()
        with ShardWriter(out / "pairs", "pairs") as writer:
            for number, row in enumerate(shards):
                if mined.kept[number] or len(row["negatives"] or ()) >= max(1, policy.min_negatives):
                    filled = _filled(row, number, pool, mined)
                    writer.append(filled)
                    audit.kept(filled, row["source"])
        audit.hubs(mined.negatives, pool)
        counts: dict[str, int | float] = {
            "documents": len(pool.side),
            "zero_vectors": pool.zero_vectors,
            **audit.counts,
            **mined.counts,
        }
        audit.write(out / "audit.json", config=config, counts=counts, mined=mined)
    if scratch is None:
        shutil.rmtree(place, ignore_errors=True)
    return counts


def _task(config: MineConfig, facts: PairFacts, pool: Pool, embedding: Embedding, seed: int) -> Task:
    """The pairs as queries with known positives."""
    import numpy as np

    def side(
        texts: Sequence[str], ids: Sequence[str], documents: NDArray[np.uint64], languages: NDArray[np.int64],
        role: Role, name: str,
    ) -> Side:  # fmt: skip
        vectors: list[Vectors] = embedding.texts(texts, ids, role=role, name=name)
        return side_of(
            texts, vectors[0], documents=documents, languages=languages, sketches=needs_sketches(config),
            second=vectors[1] if len(vectors) > 1 else None,
        )  # fmt: skip

    texts = facts.positives
    queries = side(facts.queries, facts.ids, facts.documents, facts.languages, "query", "queries")
    unknown = np.zeros(len(texts), dtype=np.int64)
    positives = side(texts, facts.positive_ids, facts.positive_documents, unknown, "passage", "positives")
    # where a text is in the corpus, the corpus knows its language and its document
    for some in (queries, positives):
        found = rows_of_keys(pool.side.keys, some.keys)
        inside = found >= 0
        some.languages = np.where(inside, pool.side.languages[found], some.languages)
        some.documents = np.where(inside & (some.documents == 0), pool.side.documents[found], some.documents)
        same = rows_of_keys(pool.side.documents, some.documents)
        missing = (some.languages == 0) & (some.documents != 0) & (same >= 0)
        some.languages = np.where(missing, pool.side.languages[same], some.languages)
    counts = facts.counts
    known = np.full((len(counts), counts.max()), -1, dtype=np.int64)
    known[np.arange(counts.max()) < counts[:, None]] = np.arange(len(texts))
    return Task(
        policy=config.policy, queries=queries, corpus=pool.side, own=rows_of_keys(pool.side.keys, queries.keys),
        own_keys=queries.keys, ids=facts.ids, neighbors=config.neighbors, depth=config.depth,
        backend=config.backend, seed=seed, known=Known(positives, known),
    )  # fmt: skip


def _filled(row: dict[str, Any], number: int, pool: Pool, mined: Mined) -> dict[str, Any]:
    """The pair with its mined negatives behind its own."""
    there = mined.negatives[number] >= 0
    found = pool.numbers[mined.negatives[number][there]]
    had = list(row["negatives"] or ())
    count = len(row["positives"])
    return pair_row(
        row["query"],
        row["positives"],
        [*had, *pool.store.texts(found)],
        row["source"],
        row["language"],
        mined.positive_scores[number][:count].tolist(),
        None if had else mined.negative_scores[number][there].tolist(),
        query_document=row["query_document"],
        positive_documents=row["positive_documents"],
        negative_documents=[*(row["negative_documents"] or [None] * len(had)), *pool.store.document_names(found)]
        if not had or row["negative_documents"]
        else None,
    )
