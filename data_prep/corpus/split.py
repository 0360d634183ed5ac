"""Documents that training never sees, chosen by the name of the document alone.

Whether a document is held out depends on its key, the fraction and the seed, on nothing else: all passages and
renderings of a document fall on one side, in every part of the corpus, and a growing corpus moves no document.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import content_id, write_atomically
from data_prep.progress import Progress

_TITLE_WORDS = (3, 25)
_BODY_WORDS = 20


def is_held_out(document: str, fraction: float, seed: int) -> bool:
    """Whether a document is held out of training.

    Args:
        document: what its passages share: the `document` column of a document shard, or its `id` where that is null.
        fraction: expected share of documents held out, 0 to 1. A larger one holds out the same documents and more.
        seed: another seed holds out other documents.
    """
    digest = hashlib.blake2b(document.encode("utf-8", "surrogatepass"), digest_size=8, key=f"split {seed}".encode())
    return int.from_bytes(digest.digest()) < fraction * 2**64


def title_and_body(text: str) -> tuple[str, str] | None:
    """A text's title line and the rest, None where its first line is no title.

    A title has 3 to 25 words, a body of 20 words or more follows, and the body does not begin with the title again (a
    query that stands in its answer word for word asks nothing).
    """
    title, _, body = text.partition("\n")
    title, body = title.strip(), body.strip()
    if not _TITLE_WORDS[0] <= len(title.split()) <= _TITLE_WORDS[1] or len(body.split()) < _BODY_WORDS:
        return None
    return None if body.lower().startswith(title.lower()) else (title, body)


def held_out_set(
    documents: Path, out: Path, *, seed: int, queries: int = 1000, progress: Progress | None = None
) -> dict[str, int]:
    """Write held-out documents as an evaluation set in BEIR layout: the title is the query, the body its document.

    A way to have an evaluation set of one's own text without judging anything: relevance is known by construction. Of
    each document one passage is asked for (the first with a title line); titles that several documents bear are not
    asked. Every text, asked for or not, is in the corpus of the set, without its title line where it has one.

    Args:
        documents: a shard folder of kind `documents` that training does not read.
        out: the folder of the set; its name is the set's name.
        seed: decides which titles are asked where there are more than `queries`.

    Returns:
        Counts: `documents` in the set, `queries`, `untitled` texts, `ambiguous` titles.

    Raises:
        UserError: no text has a title line.
    """
    from data_prep.shards import Shards

    corpus: dict[str, str] = {}
    asked: dict[str, str | None] = {}  # title → id of its text; None where several bear it
    done: set[str] = set()
    counts = dict.fromkeys(("documents", "queries", "untitled", "ambiguous"), 0)
    for row in Shards(documents, "documents"):
        parts = title_and_body(row["text"])
        body = parts[1] if parts else row["text"]
        ident = content_id(body)
        corpus[ident] = body
        if parts is None:
            counts["untitled"] += 1
        elif (name := row["document"] or row["id"]) not in done:
            done.add(name)
            title = " ".join(parts[0].split())
            asked[title] = None if title in asked and asked[title] != ident else ident
        if progress is not None:
            progress.advance(1)
    counts["ambiguous"] = sum(ident is None for ident in asked.values())
    chosen = sorted(
        ((title, ident) for title, ident in asked.items() if ident is not None),
        key=lambda pair: hashlib.blake2b(f"{seed} {pair[1]}".encode(), digest_size=8).digest(),
    )[:queries]
    counts["documents"], counts["queries"] = len(corpus), len(chosen)
    if not chosen:
        raise UserError(
            str(documents),
            f"has no text with a title line ({counts['untitled']} texts without, {counts['ambiguous']} titles borne by "
            "several)",
            "hold out more documents, or give evaluation sets in eval.sets",
        )
    out.mkdir(parents=True, exist_ok=True)
    _write_lines(out / "corpus.jsonl", ({"_id": k, "title": "", "text": v} for k, v in corpus.items()))
    _write_lines(out / "queries.jsonl", ({"_id": content_id(title), "text": title} for title, _ in chosen))
    lines = ["query-id\tcorpus-id\tscore", *(f"{content_id(title)}\t{ident}\t1" for title, ident in chosen)]
    write_atomically(out / "qrels.tsv", ("\n".join(lines) + "\n").encode())
    return counts


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
