"""Evaluation sets on disk, in the layout of BEIR.

A set is a folder with `corpus.jsonl[.gz]` (`_id`, `title`, `text`), `queries.jsonl[.gz]` (`_id`, `text`) and
`qrels.tsv` (a header, then query-id, corpus-id, score). Other `qrels_NAME.tsv` beside it are subsets of its queries,
such as the hard ones. The sets live here, below training, because decontamination must read them too.
"""

from __future__ import annotations

import glob
import math
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_jsonl, read_lines


@dataclass(frozen=True)
class EvaluationSet:
    """One retrieval task.

    Attributes:
        name: the folder's name.
        document_ids, documents: the corpus, aligned; a document is its title and text joined by a newline.
        query_ids, queries: all queries that have at least one relevant document, aligned.
        relevant: subset name (`all`, and one for each qrels_NAME.tsv) → query id → ids of relevant documents.
    """

    name: str
    document_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    relevant: dict[str, dict[str, set[str]]] = field(default_factory=dict)


def find_sets(patterns: list[str]) -> list[Path]:
    """Folders that match the patterns and hold a `qrels.tsv`, sorted. Raises `UserError` where a pattern finds none."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        matches = [Path(p) for p in sorted(glob.glob(pattern)) if (Path(p) / "qrels.tsv").is_file()]
        if not matches:
            raise UserError(
                f"eval.sets = {pattern!r}",
                "matches no folder with a qrels.tsv",
                "give folders in BEIR layout (corpus.jsonl, queries.jsonl, qrels.tsv)",
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _jsonl(folder: Path, stem: str) -> Path:
    for name in (f"{stem}.jsonl.gz", f"{stem}.jsonl"):
        if (folder / name).is_file():
            return folder / name
    raise UserError(str(folder), f"has no {stem}.jsonl or {stem}.jsonl.gz", "an evaluation set needs the BEIR layout")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _read_texts(path: Path, *, titles: bool) -> dict[str, str]:
    """Id → text (title and text joined by a newline where `titles`), in file order; an id may stand only once."""
    texts: dict[str, str] = {}
    for number, row in read_jsonl(path, required=("_id", "text")):
        if row["_id"] in texts:
            raise UserError(f"{path}, line {number}", f"_id {row['_id']!r} stands twice", "give every line its own _id")
        title = row.get("title") or "" if titles else ""
        texts[row["_id"]] = f"{title}\n{row['text']}" if title else row["text"]
    return texts


def _read_qrels(path: Path, documents: set[str], queries: set[str]) -> dict[str, set[str]]:
    relevant: dict[str, set[str]] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        parts = line.split("\t")
        if len(parts) != 3:
            raise UserError(
                f"{path}, line {number}",
                f"has {len(parts)} columns, must have 3",
                "write query-id, corpus-id, score, separated by tabs",
            )
        query, document, score = parts
        if number == 1:  # a file without a header would silently lose its first judgement
            if _is_number(score):
                raise UserError(
                    f"{path}, line 1", "is a judgement, must be a header", "add: query-id, corpus-id, score"
                )
            continue
        if query not in queries or document not in documents:
            what, ident = ("query", query) if query not in queries else ("document", document)
            raise UserError(
                f"{path}, line {number}",
                f"names {what} {ident!r}, which the set does not hold",
                f"remove the line or add the {what}",
            )
        if not _is_number(score):
            raise UserError(
                f"{path}, line {number}", f"score {score!r} is no number", "write 1 for relevant, 0 for not"
            )
        if float(score) > 0:
            relevant.setdefault(query, set()).add(document)
    if not relevant:
        raise UserError(
            str(path), "names no relevant document", "give every query at least one line with a score above 0"
        )
    return relevant


def load_set(folder: Path) -> EvaluationSet:
    """Read one set; every id in every qrels file must exist. Raises `UserError` naming file and line otherwise."""
    documents = _read_texts(_jsonl(folder, "corpus"), titles=True)
    queries = _read_texts(_jsonl(folder, "queries"), titles=False)
    relevant = {"all": _read_qrels(folder / "qrels.tsv", set(documents), set(queries))}
    for extra in sorted(folder.glob("qrels_*.tsv")):
        relevant[extra.stem.removeprefix("qrels_")] = _read_qrels(extra, set(documents), set(queries))
    used = [q for q in queries if any(q in subset for subset in relevant.values())]
    return EvaluationSet(
        folder.name, list(documents), list(documents.values()), used, [queries[q] for q in used], relevant
    )
