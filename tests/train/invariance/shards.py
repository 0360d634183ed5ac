"""Shards for the pretraining step and for the run of twenty steps."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tiny import sentence

from data_prep.pairs.row import pair_row
from data_prep.shards import ShardWriter

ROW_TOKENS = 40
PAIRS = 90


def make_token_rows(folder: Path, *, rows: int = 7) -> None:
    """`train/` and `validation/` rows of tokens, cut into documents, the shortest of one token."""
    rng = random.Random(11)
    for name in ("train", "validation"):
        with ShardWriter(folder / name, "tokens") as writer:
            for _ in range(rows):
                starts = sorted({0, 5, 6, *(rng.randrange(1, ROW_TOKENS) for _ in range(rng.randint(0, 4)))})
                ids = [rng.randrange(3, 300) for _ in range(ROW_TOKENS)]
                writer.append({"input_ids": ids, "document_starts": starts, "source": "test"})


def make_many_pairs(folder: Path) -> None:
    """Pairs of uneven kinds: repeated positives, several positives, up to four stored negatives, documents."""
    rng = random.Random(12)
    shared = [sentence(rng) for _ in range(6)]
    with ShardWriter(folder, "pairs") as writer:
        for i in range(PAIRS):
            positives = [rng.choice(shared)] if i % 7 == 0 else [sentence(rng) for _ in range(1 + i % 3)]
            negatives = [sentence(rng, 3, 26) for _ in range(i % 5)]
            documents = [f"d{rng.randrange(30)}" for _ in positives] if i % 4 else None
            writer.append(
                pair_row(sentence(rng, 2, 10), positives, negatives, "test", "ms", positive_documents=documents)
            )


def make_watched_set(folder: Path) -> None:
    """An evaluation set in BEIR layout: 60 documents, 25 queries with one to three relevant ones."""
    rng = random.Random(13)
    folder.mkdir()
    documents = [{"_id": f"d{i}", "title": "", "text": sentence(rng, 3, 20)} for i in range(60)]
    queries = [{"_id": f"q{i}", "text": sentence(rng, 2, 8)} for i in range(25)]
    for name, rows in (("corpus", documents), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [f"q{i}\td{d}\t1" for i in range(25) for d in rng.sample(range(60), 1 + i % 3)]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
