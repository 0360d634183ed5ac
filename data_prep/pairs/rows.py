"""Rows of any table of pairs, one at a time: JSON lines, CSV, TSV, Parquet, MDS shards, our own pair shards.

Invariant: a row that cannot be read is handed out with its fault, so that it can be counted; only a file that cannot be
read on (cut off, missing, of no known kind) is an error. Memory holds one row, or one row group.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data_prep.errors import UserError
from data_prep.files import expand, open_bytes, read_errors
from data_prep.pairs.mds import INDEX, is_mds, read_mds
from data_prep.shards import Shards

Kind = Literal["jsonl", "csv", "tsv", "parquet", "mds", "shards"]
_ENDINGS: dict[str, Kind] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
}  # fmt: skip
_BATCH_ROWS = 256
_PACKED = (".gz", ".zst")
MAX_LINE_BYTES = 64 << 20
"""A longer line is passed over without being held: no row of texts is that long."""


@dataclass(frozen=True, slots=True)
class Table:
    """One input: a file, or a folder of shards that is read as one."""

    path: Path
    kind: Kind

    @property
    def stem(self) -> str:
        """Its name without endings: the source of rows that name none."""
        name = self.path.name
        for ending in (*_PACKED, *_ENDINGS):
            name = name.removesuffix(ending)
        return name

    @property
    def typed(self) -> bool:
        """Whether its cells can hold lists; elsewhere a list is written as JSON text."""
        return self.kind in ("jsonl", "parquet", "shards")


@dataclass(frozen=True, slots=True)
class Read:
    """One row as it was read: where it stands, and its value or why it has none."""

    where: str
    value: Any = None
    fault: str | None = None


def find_tables(patterns: list[str], *, what: str) -> list[Table]:
    """The tables that the patterns name, each once; a folder with an index.json or manifest.json is one table.

    Raises `UserError` for a pattern that matches nothing, and for files of no known kind.
    """
    tables: dict[Path, Table] = {}
    files = expand(patterns, what=what)
    folders = {path.parent: _folder_kind(path.parent) for path in files}
    for path in files:
        kind = folders[path.parent]
        if kind is not None:
            tables.setdefault(path.parent, Table(path.parent, kind))
        elif path.name not in (INDEX, "manifest.json", "README.md"):
            tables.setdefault(path, Table(path, _kind_of(path)))
    return list(tables.values())


def _folder_kind(folder: Path) -> Kind | None:
    if is_mds(folder):
        return "mds"
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind is None or kind == "pairs":
        return kind and "shards"
    told = repr(kind) if isinstance(kind, str) else "vectors"
    raise UserError(str(folder), f"holds {told}, not pairs", "give a folder of pair shards, such as runs/NAME/synth")


def _kind_of(path: Path) -> Kind:
    ending = Path(path.name.removesuffix(path.suffix) if path.suffix in _PACKED else path.name).suffix.lower()
    if ending == ".mds" or ".mds" in path.suffixes:
        raise UserError(str(path), "is a shard of a data set", f"give the folder that holds it and its {INDEX}")
    if ending not in _ENDINGS:
        raise UserError(
            str(path), "is of no kind that pairs are read from",
            "give .jsonl, .csv, .tsv (also .gz or .zst), .parquet, or a folder of MDS or rumpun shards",
        )  # fmt: skip
    return _ENDINGS[ending]


def read_table(table: Table) -> Iterator[Read]:
    """All rows of a table, in order. Raises `UserError` where the file itself cannot be read on."""
    if table.kind == "mds":
        yield from (Read(where, value) for where, value in read_mds(table.path))
    elif table.kind == "shards":
        for number, row in enumerate(Shards(table.path, "pairs")):
            yield Read(f"{table.path}, row {number + 1}", row)
    elif table.kind == "parquet":
        yield from _read_parquet(table.path)
    elif table.kind == "jsonl":
        yield from _read_jsonl(table.path)
    else:
        yield from _read_separated(table.path, table.kind)


def _read_parquet(path: Path) -> Iterator[Read]:
    import pyarrow as pa

    from data_prep.corpus.readers import damaged_parquet, opened_parquet, row_values

    number = 0
    with opened_parquet(path) as file:
        try:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                columns = [row_values(batch.column(name)) for name in batch.schema.names]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield Read(f"{path}, row {number}", dict(zip(batch.schema.names, values, strict=True)))
        except (pa.ArrowException, OSError) as error:
            raise damaged_parquet(path, error) from error
    if not number:
        raise UserError(str(path), "is empty", "remove it from the recipe or put rows into it")


def read_lines_within(path: Path, *, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their newline, numbered from 1; None for one of more than `limit` bytes, which is not held.

    Raises `UserError` where the file is missing, empty or unreadable, or its packed stream is cut off or damaged.
    """
    number = 0
    with read_errors(path, lambda: number), open_bytes(path) as stream:
        while raw := stream.readline(limit + 1):
            number += 1
            whole = len(raw) <= limit
            yield number, raw if whole else None
            while not whole and raw and not raw.endswith(b"\n"):
                raw = stream.readline(limit)
    if number == 0:
        raise UserError(str(path), "is empty", "remove it from the recipe or put text into it")


def _lines(path: Path) -> Iterator[tuple[str, str | None, str]]:
    """(place, line or None, why there is none) of every line."""
    for number, raw in read_lines_within(path):
        where = f"{path}, line {number}"
        if raw is None:
            yield where, None, f"is longer than {MAX_LINE_BYTES >> 20} MiB"
            continue
        try:
            # a byte order mark, as Windows editors write it, is not part of the first line
            yield where, raw.decode("utf-8-sig" if number == 1 else "utf-8"), ""
        except UnicodeDecodeError as error:
            yield where, None, f"is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})"


def _read_jsonl(path: Path) -> Iterator[Read]:
    first = True
    for where, line, fault in _lines(path):
        if line is None:
            yield Read(where, fault=fault)
            continue
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if first and line.lstrip()[0] in "[{" and path.name.partition(".")[2].startswith("json") and _opens(line):
                raise UserError(
                    str(path), "is one JSON value over many lines; pairs are read from one object on each line",
                    f"jq -c '.[]' {path.name} > {path.name.partition('.')[0]}.jsonl",
                ) from error  # fmt: skip
            reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            yield Read(where, fault=f"is not JSON ({reason})")
        else:
            yield Read(where, value)
        first = False


def _opens(line: str) -> bool:
    """Whether a line only opens a JSON value that others go on with."""
    return line.strip() in ("[", "{", "[{")


def _read_separated(path: Path, kind: Kind) -> Iterator[Read]:
    """Rows of a table with a header. Cells of a TSV are taken as they are, quotes included, as its readers do."""
    csv.field_size_limit(MAX_LINE_BYTES)
    place = [f"{path}, line 1"]

    def texts() -> Iterable[str]:
        for where, line, fault in _lines(path):
            place[0] = where
            if line is None:  # a broken line inside a quoted cell would shift all that follow
                raise UserError(where, fault, "mend or remove the line")
            yield line

    if kind == "tsv":
        reader = csv.reader(texts(), delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(texts(), strict=True)
    header: list[str] | None = None
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None or "unexpected end" in str(error):
                raise UserError(place[0], f"cannot be read as a table ({error})", "close its quotes") from error
            yield Read(place[0], fault=f"cannot be read as a row ({error})")
            continue
        if not cells:
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            if len(set(header)) != len(header) or not all(header):
                raise UserError(place[0], "must name every column once", "put a header line first")
            continue
        if len(cells) != len(header):
            yield Read(place[0], fault=f"has {len(cells)} cells, the header {len(header)}")
        else:
            yield Read(place[0], dict(zip(header, cells, strict=True)))
