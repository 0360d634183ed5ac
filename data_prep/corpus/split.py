"""Documents that training never sees, chosen by the name of the document alone.

Whether a document is held out depends on its key, the fraction and the seed, on nothing else: all passages and
renderings of a document fall on one side, in every part of the corpus, and a growing corpus moves no document.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import content_id, write_atomically
from data_prep.progress import Progress

if TYPE_CHECKING:
    from data_prep.corpus.config import CorpusConfig
    from data_prep.fanout import Fanout

_TITLE_WORDS = (3, 25)
_BODY_WORDS = 20
_QUOTES, _UNFINISHED = "\"'“‘", ".,;:-–—"


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

    A title has 3 to 25 words, begins with a letter that is not a small one (or with a digit, or a quotation mark), and
    ends in no mark that a sentence goes on after or ends with. A body of 20 words or more follows, which does not begin
    with the title again (a query that stands in its answer word for word asks nothing).
    """
    title, _, body = text.partition("\n")
    title, body = title.strip(), body.strip()
    if not _TITLE_WORDS[0] <= len(title.split()) <= _TITLE_WORDS[1] or len(body.split()) < _BODY_WORDS:
        return None
    start = title[0] if title[0].isalnum() else title[1] if title[0] in _QUOTES and len(title) > 1 else "("
    if not start.isalnum() or start.islower() or title[-1] in _UNFINISHED:
        return None
    return None if body.lower().startswith(title.lower()) else (title, body)


def held_out_set(
    documents: Path,
    out: Path,
    *,
    seed: int,
    queries: int = 1000,
    training: Path | None = None,
    config: CorpusConfig | None = None,
    progress: Progress | None = None,
    fanout: Fanout | None = None,
    scratch: Path | None = None,
) -> dict[str, int]:
    """Write held-out documents as an evaluation set in BEIR layout: the title is the query, the body its document.

    A way to have an evaluation set of one's own text without judging anything: relevance is known by construction. Of
    each document one passage is asked for (the first with a title line); titles that several documents bear are not
    asked. Every text, asked for or not, is in the corpus of the set, without its title line where it has one.

    Held out is not yet unseen: texts of one corpus quote each other. What overlaps a training text, in the sense of
    `decontaminate`, is left out of the set: it then holds nothing that training sees, and training loses nothing.

    Args:
        documents: a shard folder of kind `documents` that training does not read.
        out: the folder of the set; its name is the set's name.
        seed: decides which titles are asked where there are more than `queries`.
        training: the documents that training reads; none compares with nothing.
        config: how the corpus was cleaned and what counts as an overlap.
        fanout, scratch: who compares, and a folder that outlives a crash.

    Returns:
        Counts: `documents` in the set, `queries`, `untitled` texts, `ambiguous` titles, `overlapping` texts left out.

    Raises:
        UserError: no text with a title line is left.
    """
    progress = progress or Progress()
    place = scratch or out.with_name(f".{out.name}.scratch")
    corpus, asked, counts = _read(documents, progress)
    counts["overlapping"] = 0
    while training is not None and asked:
        from data_prep.corpus.seen import seen_texts

        beside = place / out.name
        _write(beside, corpus, list(asked.items()))
        seen = seen_texts(beside, training, config=config, fanout=fanout, scratch=place, progress=progress)
        if not seen:
            break
        # once more: in a smaller set, what was a formula of many documents may be the words of a few
        counts["overlapping"] += len(seen)
        queries_seen = {ident for part, ident in seen if part == "query"}
        documents_seen = {ident for part, ident in seen if part == "document"}
        documents_seen |= {ident for title, ident in asked.items() if content_id(title) in queries_seen}
        corpus = {ident: body for ident, body in corpus.items() if ident not in documents_seen}
        asked = {title: ident for title, ident in asked.items() if ident in corpus}
    chosen = sorted(
        asked.items(), key=lambda pair: hashlib.blake2b(f"{seed} {pair[1]}".encode(), digest_size=8).digest()
    )[:queries]
    counts["documents"], counts["queries"] = len(corpus), len(chosen)
    if not chosen:
        raise UserError(
            str(documents),
            f"leaves no text with a title line to ask for ({counts['untitled']} texts have none, {counts['ambiguous']} "
            f"titles are borne by several, {counts['overlapping']} texts overlap training text)",
            "hold out more documents (corpus.held_out), or give evaluation sets in eval.sets",
        )
    _write(out, corpus, chosen)
    if scratch is None:
        shutil.rmtree(place, ignore_errors=True)
    return counts


def _read(documents: Path, progress: Progress) -> tuple[dict[str, str], dict[str, str], dict[str, int]]:
    """Id → text of everything held out, title → id of what may be asked, counts."""
    from data_prep.shards import Shards

    corpus: dict[str, str] = {}
    bearers: dict[str, set[str]] = {}
    done: set[str] = set()
    untitled = 0
    for row in Shards(documents, "documents"):
        parts = title_and_body(row["text"])
        body = parts[1] if parts else row["text"]
        ident = content_id(body)
        corpus[ident] = body
        if parts is None:
            untitled += 1
        elif (name := row["document"] or row["id"]) not in done:
            done.add(name)
            bearers.setdefault(" ".join(parts[0].split()), set()).add(ident)
        progress.advance(1)
    asked = {title: next(iter(idents)) for title, idents in bearers.items() if len(idents) == 1}
    return corpus, asked, {"untitled": untitled, "ambiguous": len(bearers) - len(asked)}


def _write(out: Path, corpus: dict[str, str], asked: list[tuple[str, str]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _write_lines(out / "corpus.jsonl", ({"_id": k, "title": "", "text": v} for k, v in corpus.items()))
    _write_lines(out / "queries.jsonl", ({"_id": content_id(title), "text": title} for title, _ in asked))
    lines = ["query-id\tcorpus-id\tscore", *(f"{content_id(title)}\t{ident}\t1" for title, ident in asked)]
    write_atomically(out / "qrels.tsv", ("\n".join(lines) + "\n").encode())


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
