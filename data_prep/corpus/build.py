"""Raw text files → cleaned, distinct documents.

Invariant: no two kept documents share a `text_key`, and no kept document (nor its body without the first line) is a
text of an evaluation set. Files are read in sorted order and one line at a time, so the same files give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.corpus.keys import evaluation_keys, text_key
from data_prep.corpus.repair import text_cleaner
from data_prep.errors import UserError
from data_prep.files import content_id, expand, read_jsonl, read_lines
from data_prep.progress import Progress
from data_prep.shards import ShardWriter

SUFFIXES = (".jsonl", ".jsonl.gz", ".txt", ".txt.gz")


class CorpusConfig(Section):
    """`[corpus]`: which text to read and what to leave out."""

    files: list[str] = Field(min_length=1)
    """Files, folders or globs of .jsonl, .jsonl.gz, .txt or .txt.gz; `{data}` is the data folder of the run."""
    txt_unit: Literal["line", "paragraph", "file"] = "paragraph"
    """What one document is in a .txt file; a paragraph ends at a blank line, as plain-text corpora are usually cut."""
    min_chars: Annotated[int, Field(ge=1)] = 20
    """Documents with fewer characters are dropped: below about four words a text teaches nothing."""
    max_documents_per_file: Annotated[int, Field(ge=1)] | None = None
    """Keep at most this many documents of each file (the first ones); none keeps all."""


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rsplit(".", 1)[0]


def _text_field(row: dict[str, Any], names: tuple[str, ...], default: str) -> str:
    """The first of the fields that holds text, else the default."""
    return next((row[n] for n in names if isinstance(row.get(n), str) and row[n].strip()), default)


def _paragraphs(path: Path) -> Iterator[str]:
    lines: list[str] = []
    for _, line in read_lines(path):
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def read_documents(path: Path, *, txt_unit: Literal["line", "paragraph", "file"]) -> Iterator[tuple[str, str, str]]:
    """(text, source, language) of each document of one file, uncleaned.

    Raises:
        UserError: another suffix than `SUFFIXES`, a damaged file, or a JSON line without a `text` string.
    """
    stem = _stem(path)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for _, row in read_jsonl(path, required=("text",)):
            yield row["text"], _text_field(row, ("source",), stem), _text_field(row, ("lang", "language"), "und")
    elif path.name.endswith((".txt", ".txt.gz")):
        if txt_unit == "file":
            texts: Iterator[str] = iter(["\n".join(line for _, line in read_lines(path))])
        elif txt_unit == "line":
            texts = (line for _, line in read_lines(path) if line.strip())
        else:
            texts = _paragraphs(path)
        for text in texts:
            yield text, stem, "und"
    else:
        raise UserError(str(path), f"is none of {', '.join(SUFFIXES)}", "convert it or leave it out of corpus.files")


def build_corpus(
    config: CorpusConfig, *, evaluation_sets: list[Path], out: Path, progress: Progress
) -> dict[str, int | float]:
    """Read, clean, deduplicate and decontaminate; write a shard folder of kind `documents` to `out`.

    Returns:
        Counts: `files`; of documents `read`, `too_short`, `duplicates`, `evaluation_overlap`, `kept`; `characters`
            kept.

    Raises:
        UserError: a pattern without files, a file that cannot be read, an evaluation set that is none, or no document
            left at the end.
    """
    counts = dict.fromkeys(("files", "read", "too_short", "duplicates", "evaluation_overlap", "kept", "characters"), 0)
    paths = expand(config.files, what="corpus.files")
    with progress.work("prepare"):
        forbidden = evaluation_keys(evaluation_sets)
        clean = text_cleaner()
        seen: set[str] = set()
        progress.begin("read text", None, "documents")
        with ShardWriter(out, "documents") as writer:
            for path in paths:
                counts["files"] += 1
                kept = 0
                for raw, source, language in read_documents(path, txt_unit=config.txt_unit):
                    counts["read"] += 1
                    progress.advance(1)
                    text = clean(raw)
                    if len(text) < config.min_chars:
                        counts["too_short"] += 1
                        continue
                    key = text_key(text)
                    if key in seen:
                        counts["duplicates"] += 1
                        continue
                    seen.add(key)
                    if key in forbidden or _body_key(text, forbidden) in forbidden:
                        counts["evaluation_overlap"] += 1
                        continue
                    writer.append({"id": content_id(text), "text": text, "source": source, "language": language})
                    counts["kept"] += 1
                    counts["characters"] += len(text)
                    kept += 1
                    if kept == config.max_documents_per_file:
                        break
            if not counts["kept"]:
                raise UserError(
                    f"corpus.files = {config.files}",
                    f"leaves no document ({counts['read']} read, {counts['too_short']} under {config.min_chars} "
                    f"characters, {counts['evaluation_overlap']} in the evaluation sets)",
                    "give more text or lower corpus.min_chars",
                )
    return dict(counts)


def _body_key(text: str, forbidden: set[str]) -> str:
    """The key of the text without its first line; empty where there is nothing to compare (hashing costs)."""
    body = text.partition("\n")[2] if forbidden else ""
    return text_key(body) if body.strip() else ""
