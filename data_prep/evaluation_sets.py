"""Evaluation sets on disk, in the layout of BEIR.

A set is a folder with `corpus.jsonl[.gz]` (`_id`, `title`, `text`), `queries.jsonl[.gz]` (`_id`, `text`, where known
`language` and `source`) and `qrels.tsv` (a header, then query-id, corpus-id, score). Other `qrels_NAME.tsv` beside it
are subsets of its queries, such as the hard ones. `set.json`, which may be absent, says what the set is: `SetFacts`.

Nothing is passed over in silence: a text is counted or refused. The sets live here, below training, because
decontamination must read them too.
"""

from __future__ import annotations

import glob
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import read_json, read_jsonl, read_lines
from data_prep.similarity_sets import load_similarity_set

SET_FILE = "set.json"


class SetFacts(Section):
    """`set.json`: what a set is, as far as its folder says."""

    kind: str | None = None
    """Of which kind its texts are, such as `news`."""
    language: str | None = None
    """Of its queries, such as `ms`; taken for every query whose own line names none."""
    near_duplicates: bool = False
    """Count near copies of a relevant document as relevant. For corpora that hold a text several times, where only one
    copy was judged."""
    source: str | None = None
    """Where it is from; taken for every query whose own line names none."""
    licence: str | None = None
    """Under which licence."""
    about: str | None = None
    """One sentence."""


@dataclass(frozen=True)
class EvaluationSet:
    """One retrieval task.

    Attributes:
        name: the folder's name.
        document_ids, documents: the corpus, aligned; a document is its title and text joined by a newline.
        query_ids, queries: all queries that have at least one relevant document, aligned.
        relevant: subset name (`all`, and one for each qrels_NAME.tsv) → query id → ids of relevant documents.
        irrelevant: query id → ids of documents that some qrels file judges 0.
        unjudged: ids of the queries in the file that have no relevant document.
        documents_in_file, queries_in_file: lines that were read.
        languages, sources: aligned with the queries; None where neither the query's line nor set.json says it.
        facts: what set.json says.
    """

    name: str
    document_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    relevant: dict[str, dict[str, set[str]]] = field(default_factory=dict)
    irrelevant: dict[str, set[str]] = field(default_factory=dict)
    unjudged: list[str] = field(default_factory=list)
    documents_in_file: int = 0
    queries_in_file: int = 0
    languages: list[str | None] = field(default_factory=list)
    sources: list[str | None] = field(default_factory=list)
    facts: SetFacts = field(default_factory=SetFacts)


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


def set_files(place: Path) -> list[Path]:
    """The files that `load_set` may read of a set, sorted: what a stage that reads the set depends on."""
    if place.is_file():
        return [place]
    return sorted(f for f in place.iterdir() if f.suffix in (".gz", ".jsonl", ".tsv") or f.name == SET_FILE)


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


@dataclass
class _Texts:
    """The lines of a corpus or of queries; aligned, and by id."""

    texts: dict[str, str] = field(default_factory=dict)
    languages: dict[str, str | None] = field(default_factory=dict)
    sources: dict[str, str | None] = field(default_factory=dict)
    lines: int = 0


def _read_corpus(path: Path) -> _Texts:
    """Documents (title and text joined by a newline) in file order; an id may stand only once."""
    found = _Texts()
    for number, row in read_jsonl(path, required=("_id", "text")):
        title = row.get("title") or ""
        _add(found, path, number, row, f"{title}\n{row['text']}" if title else row["text"])
    return found


def _read_queries(path: Path) -> _Texts:
    """Queries in file order; an id may stand only once, and none may be empty."""
    found = _Texts()
    for number, row in read_jsonl(path, required=("_id", "text")):
        if not row["text"].strip():
            raise UserError(
                f"{path}, line {number}",
                f"the query {row['_id']!r} is empty",
                "write its text, or remove the line and its judgements in the qrels",
            )
        for key in ("language", "source"):
            if row.get(key) is not None and not (isinstance(row[key], str) and row[key].strip()):
                raise UserError(
                    f"{path}, line {number}", f"{key} {row[key]!r} is no text", f"name the {key}, or leave the key out"
                )
        _add(found, path, number, row, row["text"])
        found.languages[row["_id"]], found.sources[row["_id"]] = row.get("language"), row.get("source")
    return found


def _add(found: _Texts, path: Path, number: int, row: dict[str, Any], text: str) -> None:
    if row["_id"] in found.texts:
        raise UserError(f"{path}, line {number}", f"_id {row['_id']!r} stands twice", "give every line its own _id")
    found.texts[row["_id"]] = text
    found.lines += 1


def _read_qrels(
    path: Path, documents: Collection[str], queries: Collection[str], irrelevant: dict[str, set[str]]
) -> dict[str, set[str]]:
    """Query id → ids of relevant documents; what is judged 0 goes into `irrelevant`."""
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
        (relevant if float(score) > 0 else irrelevant).setdefault(query, set()).add(document)
    if not relevant:
        raise UserError(
            str(path), "names no relevant document", "give every query at least one line with a score above 0"
        )
    return relevant


def _read_facts(folder: Path) -> SetFacts:
    path = folder / SET_FILE
    if not path.exists():
        return SetFacts()
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(str(path), f"is a JSON {type(found).__name__}, not an object", 'write {"kind": "news", …}')
    try:
        return SetFacts(**found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise UserError(f"{path}: {key}", "unknown key", f"valid: {', '.join(SetFacts.model_fields)}") from None
        rule = str(first["msg"]).removeprefix("Input ")
        raise UserError(f"{path}: {key} = {found[key]!r}", rule, "mend the value, or leave the key out") from None


def load_set(folder: Path) -> EvaluationSet:
    """Read one set; every id in every qrels file must exist.

    A file of sentence pairs is read as a set whose queries are the first sentences, whose documents are the second and
    in which nothing is relevant: so whoever keeps the texts of sets out of training keeps those of pairs out too.

    Raises:
        UserError: naming file and line: what is missing, empty, unknown or stands twice.
    """
    if folder.is_file():
        return _as_set(folder)
    facts = _read_facts(folder)
    documents, queries = _read_corpus(_jsonl(folder, "corpus")), _read_queries(_jsonl(folder, "queries"))
    irrelevant: dict[str, set[str]] = {}
    relevant = {"all": _read_qrels(folder / "qrels.tsv", documents.texts, queries.texts, irrelevant)}
    for extra in sorted(folder.glob("qrels_*.tsv")):
        name = extra.stem.removeprefix("qrels_")
        if name == "all":
            raise UserError(str(extra), "names its subset 'all', which is what qrels.tsv holds", "rename the file")
        relevant[name] = _read_qrels(extra, documents.texts, queries.texts, irrelevant)
    judged = set().union(*(subset.keys() for subset in relevant.values()))
    used = [query for query in queries.texts if query in judged]
    return EvaluationSet(
        name=folder.name,
        document_ids=list(documents.texts),
        documents=list(documents.texts.values()),
        query_ids=used,
        queries=[queries.texts[query] for query in used],
        relevant=relevant,
        irrelevant=irrelevant,
        unjudged=[query for query in queries.texts if query not in judged],
        documents_in_file=documents.lines,
        queries_in_file=queries.lines,
        languages=[queries.languages[query] or facts.language for query in used],
        sources=[queries.sources[query] or facts.source for query in used],
        facts=facts,
    )


def _as_set(path: Path) -> EvaluationSet:
    pairs = load_similarity_set(path)
    numbers = [str(number) for number in range(1, len(pairs.scores) + 1)]
    return EvaluationSet(
        name=pairs.name,
        document_ids=[f"{number} sentence2" for number in numbers],
        documents=pairs.second,
        query_ids=[f"{number} sentence1" for number in numbers],
        queries=pairs.first,
        relevant={"all": {}},
    )
