"""Pairs from elsewhere, checked row by row.

Invariant: every pair row of the project is built by `pair_row`, so an id is always the content hash of its text. An
imported pair has a query and a positive that differ, and no text of it is a text of an evaluation set. Each row that
was read is either kept or counted under the reason for which it was not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.corpus.decontaminate import DecontaminateConfig, Gate, Overlap
from data_prep.corpus.keys import text_key
from data_prep.corpus.language import LanguageTagger
from data_prep.corpus.repair import text_cleaner
from data_prep.errors import UserError
from data_prep.pairs.formats import Candidate, Format, Refused, parse
from data_prep.pairs.report import Tally
from data_prep.pairs.row import pair_row
from data_prep.pairs.rows import Read, Table, find_tables, read_table
from data_prep.progress import Progress
from data_prep.shards import ShardWriter

Value = TypeVar("Value", float, str)
REPORT = "report.json"
_ALWAYS = (
    "files", "read", "kept", "positives", "negatives", "duplicates", "evaluation_overlap", "negatives_dropped",
    "refused_empty_query", "refused_no_positive", "refused_positive_is_query",
)  # fmt: skip
_REMEMBERED = 500_000
"""Texts that are remembered as clean, and as no evaluation text: about 200 MB. Mined texts stand in many rows."""
_CHARACTERS_PER_FILE = 64_000_000
_ENOUGH = 1000
"""Rows after which a table that gave no pair at all is given up."""


class PairsConfig(Section):
    """`[pairs]`: labelled or mined pairs to import."""

    files: list[str] = Field(min_length=1)
    """Files, folders or globs: .jsonl, .csv, .tsv (also .gz, .zst), .parquet, MosaicML MDS folders, pair shards.
    Rows: `query` with `positive` or `pos` (and `neg` …), triplets, sentence pairs, questions, renderings."""
    format: Literal["auto"] | Format = "auto"
    """What every row must be; `auto` tells it from the columns of each row."""
    columns: dict[str, str] = {}  # noqa: RUF012 - frozen by pydantic
    """Other names of columns, as { theirs = "ours" }, e.g. { tajuk = "query", isi = "positive" }."""
    min_score: float | None = None
    """Leave out pairs whose positive scores less: a low score of a similarity set means that the texts are no pair.
    Unset keeps all, which only the loss `cosent` can use."""
    tag_languages: bool = False
    """Tell the language of each query that comes without one (else `und`), and bring the names of languages that files
    use to ours; worth it where hard negatives are mined for these pairs. Adds about half to the import's time."""
    max_pairs_per_file: Annotated[int, Field(ge=1)] | None = None
    """Keep at most this many pairs of each file (the first ones), so that one source does not drown the rest."""
    max_negatives: Annotated[int, Field(ge=0)] = 15
    """Keep at most this many negatives a pair (the first ones); the published mined sets hold up to 15."""
    max_chars: Annotated[int, Field(ge=1)] = 1_000_000
    """Refuse rows with a longer text: that is a file in a cell, and repairing it takes minutes."""
    max_refused_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fail when more than this share of a file's rows are no pairs: it is then of another format than you think.
    Duplicates and evaluation texts do not count."""

    decontaminate: DecontaminateConfig = DecontaminateConfig()
    """What counts as a text of an evaluation set: such pairs and negatives are left out, or the import fails."""

    @model_validator(mode="after")
    def _columns_are_known(self) -> PairsConfig:
        if len(set(self.columns.values())) != len(self.columns):
            raise ValueError("pairs.columns: names one of our columns twice. Fix: use positive_1, positive_2 …")
        return self


def import_pairs(
    config: PairsConfig, *, evaluation_sets: list[Path], out: Path, progress: Progress
) -> dict[str, int | float]:
    """Read, clean, check, deduplicate and decontaminate pairs.

    Writes a shard folder of kind `pairs` to `out`, with `report.json` beside it: counts by table, format, source and
    language, and the first samples of everything that was left out. Memory holds a buffer of rows and 16 bytes for each
    pair that was kept (about 100 as Python holds them: 1 GB for ten million pairs), to tell duplicates.

    Returns:
        Counts: files, read, kept, positives, negatives, duplicates, evaluation_overlap (pairs whose query, or every
        positive, repeats evaluation text), below_min_score, labelled_no_pair, and what was refused, as
        refused_REASON: empty_query, no_positive, positive_is_query, and where there are any unreadable,
        unknown_columns, no_query, not_text, bad_score, too_long. `negatives_dropped` are negatives that were empty,
        repeated, equal to query or positive, evaluation text, or over the cap; `positives_dropped` are positives that
        repeat evaluation text beside others that do not; `prompts_dropped` are prompts of rows, which rumpun sets for a
        whole model instead.

    Raises:
        UserError: a file that cannot be read, too many rows that are no pairs, or no pair left.
    """
    tables = find_tables(config.files, what="pairs.files")
    with progress.work("prepare"):
        clean = text_cleaner()
        sieve = _Sieve(config, Gate(evaluation_sets, config.decontaminate, clean=clean), clean)
        progress.begin("read pairs", None, "pairs")
        with _Writer(out, "pairs") as writer:
            for table in tables:
                for row in sieve.pairs(table, _counted(read_table(table), progress)):
                    writer.append(row)
            counts = {name: sieve.tally.counts[name] for name in _ALWAYS} | dict(sieve.tally.counts)
            if not counts["kept"]:
                raise UserError(
                    f"pairs.files = {config.files}",
                    f"leaves no pair ({counts['read']} read, {counts['evaluation_overlap']} in the evaluation sets)",
                    "every line needs a query and a positive text that differ",
                )
            sieve.tally.write(out / REPORT)
    return {name: int(number) for name, number in counts.items()}


class _Writer(ShardWriter):
    """Also cuts files by their text: rows of dozens of texts would fill memory before a file is full of them."""

    _characters = 0

    def append(self, row: dict[str, Any]) -> None:
        """Add one row."""
        self._characters += len(row["query"]) + sum(map(len, row["positives"])) + sum(map(len, row["negatives"]))
        super().append(row)
        if self._characters >= _CHARACTERS_PER_FILE:
            self._flush()
            self._characters = 0


def _counted(rows: Iterable[Read], progress: Progress) -> Iterator[Read]:
    for row in rows:
        progress.advance(1)
        yield row


@dataclass(slots=True)
class _Text:
    """A cleaned text with what belongs to it."""

    text: str
    key: str
    score: float | None
    document: str | None


class _Sieve:
    """Lets sound pairs through, once each; counts the rest."""

    def __init__(self, config: PairsConfig, gate: Gate, clean: Callable[[str], str]) -> None:
        self._config, self._gate, self._clean = config, gate, clean
        self._overlaps: dict[str, Overlap | None] = {}
        self._repaired: dict[bytes, str] = {}
        self._wanted = None if config.format == "auto" else config.format
        self._tagger = LanguageTagger() if config.tag_languages else None
        self._seen: set[bytes] = set()
        self.tally = Tally()

    def pairs(self, table: Table, rows: Iterable[Read]) -> Iterator[dict[str, Any]]:
        """The pair rows of a table. Raises `UserError` where too many of its rows are no pairs."""
        tally, kept, most = self.tally, 0, self._config.max_pairs_per_file
        tally.begin(table)
        for read in rows:
            tally.row()
            for found, candidate in self._candidates(read, table):
                try:
                    row = self._sound(candidate, table, read.where)
                except Refused as refused:
                    tally.refuse(refused.reason, read.where, str(refused), candidate.query)
                    continue
                if row is not None:
                    tally.keep(row, found)
                    yield row
                    kept += 1
            if (most and kept >= most) or tally.faults == tally.read == _ENOUGH:
                break
        self._judge(table, kept)

    def _candidates(self, read: Read, table: Table) -> Iterator[tuple[Format, Candidate]]:
        """The pairs that a row holds; the fault of a row that holds none is counted."""
        try:
            if read.fault:
                raise Refused("unreadable", read.fault)
            found, candidates = parse(self._renamed(read.value), self._wanted, typed=table.typed)
            for candidate in candidates:
                yield found, candidate
        except Refused as refused:
            if refused.reason == "class_label":  # the rows that are not refused would be no pairs either
                raise UserError(read.where, str(refused), "keep the rows that are pairs and drop the column") from None
            self.tally.refuse(refused.reason, read.where, str(refused), str(read.value or ""))

    def _judge(self, table: Table, kept: int) -> None:
        tally, most = self.tally, self._config.max_refused_share
        if tally.faults <= most * tally.read:
            return
        told = f"{tally.faults} of {tally.read} rows are no pairs; the first is {tally.first_fault}"
        rule = f"more than pairs.max_refused_share = {most:g} allows" if kept else "leaves no pair"
        raise UserError(
            f"pairs.files: {table.path}", f"{rule} ({told})",
            "mend the file, name its columns with pairs.columns, or leave it out",
        )  # fmt: skip

    def _renamed(self, row: object) -> object:
        if isinstance(row, dict) and row.get("prompt"):
            self.tally.counts["prompts_dropped"] += 1
        if not self._config.columns or not isinstance(row, dict):
            return row
        names = self._config.columns
        missing = [name for name in names if name not in row]
        if missing:
            raise Refused("unknown_columns", f"{missing[0]!r} of pairs.columns is missing")
        taken = set(names.values())
        return {names.get(n, n): v for n, v in row.items() if n in names or n not in taken}

    def _sound(self, candidate: Candidate, table: Table, where: str) -> dict[str, Any] | None:
        """The pair row of a candidate, None where it is left out. Raises `Refused` for a fault."""
        query = self._text(candidate.query)
        positives = self._texts(candidate.positives, candidate.positive_scores, candidate.positive_documents)
        negatives = self._texts(candidate.negatives, candidate.negative_scores, candidate.negative_documents)
        if not query.text:
            raise Refused("empty_query", "its query is empty")
        distinct = _distinct(positives, set())
        if not distinct:
            raise Refused("no_positive", f"query {query.text[:60]!r} has no positive text")
        keys = {text.key for text in distinct}
        if query.key in keys:
            raise Refused("positive_is_query", f"a positive is the query {query.text[:60]!r} itself")
        least = self._config.min_score
        if least is not None:
            distinct = [text for text in distinct if text.score is None or text.score >= least]
        if not distinct:
            self.tally.refuse("below_min_score", where, f"no positive scores {least:g}", query.text)
            return None
        overlaps = {text.key: found for text in (query, *distinct) if (found := self._overlap(text))}
        left = [text for text in distinct if text.key not in overlaps]
        if query.key in overlaps or not left:
            leaking = query if query.key in overlaps else distinct[0]
            self._leave_out(overlaps[leaking.key], where, leaking)
            return None
        if len(left) < len(distinct):
            self.tally.counts["positives_dropped"] += len(distinct) - len(left)
            distinct = left
        usable = _distinct(negatives, {query.key, *keys})
        usable = list(islice((t for t in usable if not self._overlap(t)), self._config.max_negatives))
        # triplets give a pair once for each of its negatives: those rows are no duplicates
        whole = "".join((query.key, *sorted(keys), "|", *sorted(text.key for text in usable)))
        digest = hashlib.blake2b(whole.encode(), digest_size=16).digest()
        if digest in self._seen:
            self.tally.refuse("duplicates", where, "the same pair stood before", query.text)
            return None
        self._seen.add(digest)
        self.tally.counts["negatives_dropped"] += len(negatives) - len(usable)
        return pair_row(
            query.text,
            [t.text for t in distinct],
            [t.text for t in usable],
            candidate.source or table.stem,
            self._tagger.label(candidate.language or "", query.text) if self._tagger else candidate.language or "und",
            _given(t.score for t in distinct),
            _given(t.score for t in usable),
            query_document=candidate.query_document,
            positive_documents=_given(t.document for t in distinct),
            negative_documents=_given(t.document for t in usable),
        )

    def _overlap(self, text: _Text) -> Overlap | None:
        """The evaluation text that a text repeats; negatives stand in many rows, so that it is remembered."""
        if text.key not in self._overlaps:
            if len(self._overlaps) >= _REMEMBERED:
                self._overlaps.clear()
            self._overlaps[text.key] = self._gate.find(text.text)
        return self._overlaps[text.key]

    def _leave_out(self, overlap: Overlap, where: str, text: _Text) -> None:
        """Count a pair that repeats an evaluation text. Raises `UserError` where the config wants that."""
        if self._config.decontaminate.on_overlap == "fail":
            raise UserError(
                f"{where} repeats {overlap}", "no evaluation text may be in training",
                'take it out, or set pairs.decontaminate.on_overlap = "remove"',
            )  # fmt: skip
        self.tally.refuse("evaluation_overlap", where, f"repeats {overlap}", text.text)

    def _text(self, text: str, score: float | None = None, document: str | None = None) -> _Text:
        if len(text) > self._config.max_chars:
            raise Refused("too_long", f"a text has {len(text)} characters")
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if (key := self._repaired.get(digest)) is not None:
            return _Text(text, key, score, document)
        cleaned = self._clean(text)
        key = text_key(cleaned)
        if cleaned == text:
            if len(self._repaired) >= _REMEMBERED:
                self._repaired.clear()
            self._repaired[digest] = key
        return _Text(cleaned, key, score, document)

    def _texts(self, texts: list[str], scores: list[float] | None, documents: list[str] | None) -> list[_Text]:
        return [
            self._text(text, scores[i] if scores else None, documents[i] if documents else None)
            for i, text in enumerate(texts)
        ]


def _distinct(texts: list[_Text], taken: set[str]) -> list[_Text]:
    """The texts that are not empty and not taken, each once, the first of equal ones."""
    found: dict[str, _Text] = {}
    for text in texts:
        if text.text and text.key not in taken:
            found.setdefault(text.key, text)
    return list(found.values())


def _given(values: Iterable[Value | None]) -> list[Value] | None:
    """The values, None where there are none."""
    found = [v for v in values if v is not None]
    return found or None
