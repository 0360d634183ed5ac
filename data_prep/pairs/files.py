"""Labelled pairs from files, and the one function that makes a pair row.

Invariant: every pair row of the project is built by `pair_row`, so an id is always the content hash of its text. An
imported pair has a query and a positive that differ, and no text of it is a text of an evaluation set.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from data_prep.config import Section
from data_prep.corpus.keys import evaluation_keys, text_key
from data_prep.corpus.repair import text_cleaner
from data_prep.errors import UserError
from data_prep.files import expand, read_jsonl
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import ShardWriter

POSITIVE_FIELDS = ("positive", "positives", "pos")
NEGATIVE_FIELDS = ("negative", "negatives", "neg")


class PairsConfig(Section):
    """`[pairs]`: labelled pairs to import."""

    files: list[str] = Field(min_length=1)
    """Files, folders or globs of .jsonl or .jsonl.gz with `query`, `positive` (or a list `positives`/`pos`) and
    maybe `negatives`/`neg`, `source`, `language`, and a `score` of its one positive for the loss `cosent`."""
    max_pairs_per_file: Annotated[int, Field(ge=1)] | None = None
    """Keep at most this many pairs of each file (the first ones), so that one source does not drown the rest."""
    max_negatives: Annotated[int, Field(ge=0)] = 15
    """Keep at most this many negatives a pair (the first ones); the published mined sets hold up to 15."""


def import_pairs(
    config: PairsConfig, *, evaluation_sets: list[Path], out: Path, progress: Progress
) -> dict[str, int | float]:
    """Read, clean, check, deduplicate and decontaminate pairs; write a shard folder of kind `pairs` to `out`.

    Returns:
        Counts: files, read, kept, positives, negatives, duplicates, evaluation_overlap (pairs whose query or a positive
        is evaluation text), and what was refused: refused_empty_query, refused_no_positive, refused_positive_is_query;
        `negatives_dropped` are negatives that were empty, repeated, equal to query or positive, evaluation text, or
        over the cap.

    Raises:
        UserError: a file that cannot be read, a line without a `query` string or whose texts are no strings, or no
            pair left.
    """
    counts = dict.fromkeys(
        ("files", "read", "kept", "positives", "negatives", "duplicates", "evaluation_overlap", "negatives_dropped"), 0
    ) | dict.fromkeys(("refused_empty_query", "refused_no_positive", "refused_positive_is_query"), 0)
    paths = expand(config.files, what="pairs.files")
    with progress.work("prepare"):
        forbidden = evaluation_keys(evaluation_sets)
        clean = text_cleaner()
        seen: set[tuple[str, ...]] = set()
        progress.begin("read pairs", None, "pairs")
        with ShardWriter(out, "pairs") as writer:
            for path in paths:
                counts["files"] += 1
                kept = 0
                for number, row in read_jsonl(path, required=("query",)):
                    counts["read"] += 1
                    progress.advance(1)
                    pair = _clean_pair(row, clean, where=f"{path}, line {number}")
                    reason = _refuse(pair, forbidden, seen)
                    if reason:
                        counts[reason] += 1
                        continue
                    query, positives, raw_negatives = pair
                    negatives = _usable_negatives(pair, forbidden)[: config.max_negatives]
                    source, language = _label(row, path)
                    score = _score(row, positives, where=f"{path}, line {number}")
                    writer.append(pair_row(query, positives, negatives, source, language, score))
                    counts["kept"] += 1
                    counts["positives"] += len(positives)
                    counts["negatives"] += len(negatives)
                    counts["negatives_dropped"] += len(raw_negatives) - len(negatives)
                    kept += 1
                    if kept == config.max_pairs_per_file:
                        break
            if not counts["kept"]:
                raise UserError(
                    f"pairs.files = {config.files}",
                    f"leaves no pair ({counts['read']} read, {counts['evaluation_overlap']} in the evaluation sets)",
                    "every line needs a query and a positive text that differ",
                )
    return dict(counts)


Pair = tuple[str, list[str], list[str]]


def _texts(row: dict[str, Any], fields: tuple[str, ...], where: str) -> list[str]:
    """All texts of the named fields; a field may hold one text, a list of texts, or null."""
    texts: list[str] = []
    for name in fields:
        value = row.get(name)
        values = value if isinstance(value, list) else [] if value is None else [value]
        for item in values:
            if not isinstance(item, str):
                raise UserError(where, f"{name!r} holds a {type(item).__name__}, must be text", "give strings")
            texts.append(item)
    return texts


def _clean_pair(row: dict[str, Any], clean: Callable[[str], str], *, where: str) -> Pair:
    """Cleaned (query, distinct positives, negatives); empty positives are gone, empty negatives are still counted."""
    positives: dict[str, str] = {}
    for text in map(clean, _texts(row, POSITIVE_FIELDS, where)):
        if text:
            positives.setdefault(text_key(text), text)
    return clean(row["query"]), list(positives.values()), [clean(t) for t in _texts(row, NEGATIVE_FIELDS, where)]


def _refuse(pair: Pair, forbidden: set[str], seen: set[tuple[str, ...]]) -> str | None:
    """The count under which the pair is refused, or None; a pair that passes is remembered in `seen`."""
    query, positives, _ = pair
    if not query:
        return "refused_empty_query"
    if not positives:
        return "refused_no_positive"
    keys = [text_key(query), *sorted(map(text_key, positives))]
    if keys[0] in keys[1:]:
        return "refused_positive_is_query"
    if forbidden and any(key in forbidden for key in keys):
        return "evaluation_overlap"
    if tuple(keys) in seen:
        return "duplicates"
    seen.add(tuple(keys))
    return None


def _usable_negatives(pair: Pair, forbidden: set[str]) -> list[str]:
    query, positives, negatives = pair
    taken = {text_key(query), *map(text_key, positives)}
    usable = []
    for text in negatives:
        key = text_key(text)
        if text and key not in taken and key not in forbidden:
            taken.add(key)
            usable.append(text)
    return usable


def _score(row: dict[str, Any], positives: list[str], *, where: str) -> list[float] | None:
    """The score that a line gives its one positive, None where it gives none."""
    value = row.get("score")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(where, f"'score' is {value!r}, must be a finite number", "give a number or leave it out")
    if len(positives) != 1:
        raise UserError(
            where, f"gives one score to {len(positives)} positives", "write a line for each scored pair of texts"
        )
    return [float(value)]


def _label(row: dict[str, Any], path: Path) -> tuple[str, str]:
    """Source and language of a pair: the row's, else the file's name and `und` (undetermined)."""
    source, language = row.get("source"), row.get("lang") or row.get("language")
    stem = path.name.removesuffix(".gz").rsplit(".", 1)[0]
    return source if isinstance(source, str) and source else stem, language if isinstance(language, str) else "und"
