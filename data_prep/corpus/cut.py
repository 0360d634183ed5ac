"""The input cut into parts that workers clean at the same time.

A piece is a range of one file: bytes that begin and end at a line (or a paragraph), row groups of Parquet, shards of a
hub data set, or a whole file where it cannot be cut (compressed text, CSV). A part is a run of pieces of about equal
work. Cuts depend on the files and `part_mb` alone, and documents come in the same order however the input is cut.
"""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

from data_prep.corpus.config import CorpusConfig
from data_prep.errors import UserError
from data_prep.files import expand, read_errors

Piece = dict[str, Any]
"""JSON: `path`, `kind` (jsonl, txt, csv, tsv, parquet, hub), `start` and `stop` (bytes, row groups or shards; null:
all), `stamp` (size and time of the file: a changed file is another piece)."""

SUFFIXES = (".jsonl", ".ndjson", ".txt", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".zst")
HUB = "datasets:"
_PACKED_WEIGHT = 4
"""Compressed text is about a quarter of its size."""
_BLOCK = 1 << 16


def text_files(patterns: list[str]) -> list[Path]:
    """The files among the patterns of `corpus.files`, hub data sets left out. Raises `UserError` as `expand` does."""
    local = [p for p in patterns if not p.startswith(HUB)]
    return expand(local, what="corpus.files") if local else []


def plan_parts(config: CorpusConfig) -> list[list[Piece]]:
    """All pieces of the input, in order, as parts.

    Raises:
        UserError: a pattern without files, a file of another kind, an empty one, or a data set that cannot be opened.
    """
    limit = config.part_mb * 1e6
    parts: list[list[Piece]] = []
    weight = 0.0
    for piece, cost in _pieces(config, limit):
        if not parts or weight + cost > limit:
            parts.append([])
            weight = 0.0
        parts[-1].append(piece)
        weight += cost
    return parts


def _pieces(config: CorpusConfig, limit: float) -> list[tuple[Piece, float]]:
    """Every piece with its weight in bytes of text; patterns keep their order, each file comes once."""
    found: list[tuple[Piece, float]] = []
    seen: set[Path] = set()
    for pattern in config.files:
        if pattern.startswith(HUB):
            from data_prep.corpus.hub import hub_pieces

            found += [(piece, limit) for piece in hub_pieces(pattern)]
            continue
        for path in text_files([pattern]):
            if path not in seen:
                seen.add(path)
                found += _cut(path, config, limit)
    return found


def _cut(path: Path, config: CorpusConfig, limit: float) -> list[tuple[Piece, float]]:
    kind, packed = kind_of(path)
    with read_errors(path, lambda: 0):
        stat = path.stat()
    if not stat.st_size:
        raise UserError(str(path), "is empty", "remove it from the recipe or put text into it")
    # absolute, so that a worker may run in another folder
    stamp = [stat.st_size, stat.st_mtime_ns]
    piece: Piece = {"path": str(path.absolute()), "kind": kind, "start": None, "stop": None, "stamp": stamp}
    whole = [(piece, float(stat.st_size * (_PACKED_WEIGHT if packed else 1)))]
    if config.max_documents_per_file is not None:  # the first ones of a file: one worker counts them
        return whole
    if kind == "parquet":
        from data_prep.corpus.readers import row_groups

        sizes = row_groups(path)
        cuts = _even_cuts(sizes, limit)
        return [({**piece, "start": a, "stop": b}, float(sum(sizes[a:b]))) for a, b in cuts]
    if packed or stat.st_size <= limit or kind in ("csv", "tsv") or (kind == "txt" and config.txt_unit == "file"):
        return whole
    mark = b"\n\n" if kind == "txt" and config.txt_unit == "paragraph" else b"\n"
    edges = _line_cuts(path, stat.st_size, max(1, int(limit)), mark)
    return [({**piece, "start": a, "stop": b}, float(b - a)) for a, b in itertools.pairwise(edges)]


def kind_of(path: Path) -> tuple[str, bool]:
    """(kind of text file, whether it is compressed). Raises `UserError` for a suffix that no reader knows."""
    packed = path.suffix in PACKED
    suffix = Path(path.stem).suffix if packed else path.suffix
    if suffix not in SUFFIXES or (packed and suffix == ".parquet"):
        raise UserError(
            str(path),
            f"is none of {', '.join(SUFFIXES)} (text also with {' or '.join(PACKED)})",
            "convert it, or leave it out of corpus.files (a glob such as folder/**/*.jsonl names only some files)",
        )
    return {".ndjson": "jsonl"}.get(suffix, suffix[1:]), packed


def _even_cuts(sizes: list[int], limit: float) -> list[tuple[int, int]]:
    """Runs of items whose sizes sum to at most `limit`, or of one larger item."""
    cuts, start, held = [], 0, 0.0
    for number, size in enumerate(sizes):
        if number > start and held + size > limit:
            cuts.append((start, number))
            start, held = number, 0.0
        held += size
    return [*cuts, (start, len(sizes))]


def _line_cuts(path: Path, size: int, step: int, mark: bytes) -> list[int]:
    """Positions 0 … size about `step` apart, each right after a `mark`; a line longer than a step is not cut."""
    edges = [0]
    with read_errors(path, lambda: 0), path.open("rb") as stream:
        while edges[-1] + step < size:
            at = max(edges[-1], edges[-1] + step - len(mark))
            stream.seek(at)
            kept = b""
            while block := stream.read(_BLOCK):
                found = (kept + block).find(mark)
                if found >= 0:
                    break
                at += len(kept) + len(block)
                kept = (kept + block)[-(len(mark) - 1) :] if len(mark) > 1 else b""
                at -= len(kept)
            edge = at + found + len(mark) if block else size
            if edge >= size:
                break
            edges.append(edge)
    return [*edges, size]


@functools.cache
def first_line(path: Path, start: int) -> int:
    """How many lines end before a byte of a file: only wanted for a message, so counted when it is."""
    lines = 0
    with path.open("rb") as stream:
        while start > 0 and (block := stream.read(min(start, 1 << 20))):
            lines += block.count(b"\n")
            start -= len(block)
    return lines
