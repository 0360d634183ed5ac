"""Documents of a piece of the input, uncleaned, one after another.

Memory holds one line, or one batch of Parquet rows, however large the file is. What is wrong with a line is told with
its file and number, or passed over and counted where the config says so; no line is lost without a count.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.corpus.config import CorpusConfig
from data_prep.corpus.cut import Piece
from data_prep.corpus.lines import Lines, Trouble
from data_prep.errors import UserError
from data_prep.files import parsed, read_errors

_BATCH_ROWS = 256


class Document(NamedTuple):
    """One document as it stands in the input.

    Attributes:
        text, source: the text, and where it is from. label: the language that the input gives, or empty.
        document: name of the document that it is a part of, None for itself alone. ident: its id, None without one.
    """

    text: str
    source: str
    label: str
    document: str | None
    ident: str | None


def source_name(path: Path) -> str:
    """The name of a file without its suffixes: the source of documents that name none."""
    return path.name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[0]


def read_piece(piece: Piece, config: CorpusConfig, trouble: Trouble) -> Iterator[Document]:
    """The documents of a piece, in order.

    Raises:
        UserError: the file is damaged, lacks the text field, or holds a line that is refused.
    """
    if piece["kind"] == "hub":
        from data_prep.corpus.hub import hub_rows

        yield from _of_rows(hub_rows(piece), piece["path"].removeprefix("datasets:").split(":")[0], config, trouble)
        return
    path = Path(piece["path"])
    if piece["kind"] == "parquet":
        yield from _of_rows(_parquet_rows(path, piece, config), source_name(path), config, trouble)
        return
    lines = Lines(path, piece, config, trouble)
    if piece["kind"] == "txt":
        for text in _texts(lines, config):
            yield Document(text, source_name(path), "", None, None)
    elif piece["kind"] == "jsonl":
        yield from _of_rows(_json_rows(lines, config, trouble), source_name(path), config, trouble)
    else:
        yield from _of_rows(_csv_rows(lines, piece["kind"], config, trouble), source_name(path), config, trouble)
    if not lines.read and piece["start"] is None:
        raise UserError(str(path), "is empty", "remove it from the recipe or put text into it")


def _texts(lines: Lines, config: CorpusConfig) -> Iterator[str]:
    """The texts of a .txt file: its lines, its paragraphs, or all of it."""
    if config.txt_unit == "line":
        yield from (line for _, line in lines if line.strip())
        return
    paragraphs = config.txt_unit == "paragraph"
    held: list[str] = []
    first, size = 1, 0
    for number, line in lines:
        if paragraphs and not line.strip():
            if held:
                yield "\n".join(held)
            elif size:
                lines.too_long(first, size, "begins a paragraph")
            held, size = [], 0
            continue
        first = first if size else number
        size += len(line) + 1
        if size <= lines.limit:
            held.append(line)
        else:  # measured to its end, not kept
            held = []
    if held:
        yield "\n".join(held)
    elif size:
        lines.too_long(first, size, "begins a paragraph" if paragraphs else "begins a text")


Row = tuple[Callable[[], str], dict[str, Any]]
"""What to call a row in a message, and its fields."""


def _json_rows(lines: Lines, config: CorpusConfig, trouble: Trouble) -> Iterator[Row]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = parsed(line, lines.path, number, required=(config.text_field,))
        except UserError as error:
            fix = f'{error.fix}; corpus.text_field names another field, on_bad_line = "skip" passes over such lines'
            trouble.meet("bad_lines", UserError(lines.place(number), error.rule, fix))
            continue
        yield partial(lines.place, number), row


def _csv_rows(lines: Lines, kind: str, config: CorpusConfig, trouble: Trouble) -> Iterator[Row]:
    """Rows of a CSV file (RFC 4180: quotes may hold line breaks) or a TSV one (no quotes), under its header line."""
    csv.field_size_limit(lines.limit)
    given = (line + "\n" for _, line in lines)
    if kind == "tsv":
        reader = csv.reader(given, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(given, strict=True)
    header: list[str] | None = None
    while True:
        first = lines.read + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fix = "quote the fields as RFC 4180 says, or convert the file to JSON lines"
            trouble.meet("bad_lines", UserError(lines.place(first), f"is not {kind.upper()} ({error})", fix))
            continue
        if header is None:
            header = values
            _check_columns(lines.path, header, config)
        elif len(values) == len(header):
            yield partial(lines.place, first), dict(zip(header, values, strict=True))
        elif values:
            rule = f"has {len(values)} columns, the header {len(header)}"
            fix = "mend the line; fields that hold the separator need quotes (only .csv has them)"
            trouble.meet("bad_lines", UserError(lines.place(first), rule, fix))


def _check_columns(path: Path, columns: list[str], config: CorpusConfig) -> None:
    if config.text_field not in columns or len(set(columns)) < len(columns):
        twice = [name for name, times in Counter(columns).items() if times > 1]
        raise UserError(
            f"{path}, columns {', '.join(columns[:20])}",
            f"column {twice[0]!r} stands twice" if twice else f"none is named {config.text_field!r}",
            "give every column a name of its own"
            if twice
            else "set corpus.text_field to the column that holds the text",
        )


def row_groups(path: Path) -> list[int]:
    """Uncompressed bytes of each row group of a Parquet file. Raises `UserError` where it is none or holds no row."""
    with opened_parquet(path) as file:
        metadata = file.metadata
        if not metadata.num_rows:
            raise UserError(str(path), "is empty", "remove it from the recipe or put text into it")
        return [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]


def opened_parquet(path: Path) -> Any:
    """A Parquet file, open for reading. Raises `UserError` where it is none, or damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with read_errors(path, lambda: 0):
            return pq.ParquetFile(path)
    except pa.ArrowException as error:
        raise damaged_parquet(path, error) from error


def damaged_parquet(path: Path, error: Exception) -> UserError:
    """What to tell the user of a file that Arrow cannot read."""
    told = " ".join(str(error).split())[:150]
    return UserError(str(path), f"is damaged or no Parquet file ({told})", "copy or write the file again")


def _parquet_rows(path: Path, piece: Piece, config: CorpusConfig) -> Iterator[Row]:
    import pyarrow as pa

    wanted = [config.text_field, config.source_field, *config.language_fields, *config.document_fields]
    wanted += [*config.id_fields, *([config.title_field] if config.title_field else [])]
    with opened_parquet(path) as file:
        names = file.schema_arrow.names
        _check_columns(path, names, config)
        groups = range(piece["start"], piece["stop"]) if piece["stop"] is not None else range(file.num_row_groups)
        number = sum(file.metadata.row_group(i).num_rows for i in range(groups.start))
        try:
            batches = file.iter_batches(
                batch_size=_BATCH_ROWS, row_groups=list(groups), columns=[n for n in names if n in wanted]
            )
            for batch in batches:
                columns = {name: row_values(batch.column(name)) for name in batch.schema.names}
                for values in zip(*columns.values(), strict=True):
                    number += 1
                    yield partial("{}, row {}".format, path, number), dict(zip(columns, values, strict=True))
        except (pa.ArrowException, OSError) as error:
            raise damaged_parquet(path, error) from error


def row_values(column: Any) -> list[Any]:
    """A column as Python values; text that is not UTF-8 stays bytes."""
    import pyarrow as pa

    try:
        values: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        raw = column.cast(pa.large_binary()).to_pylist()
        values = [_decoded_or_bytes(v) for v in raw]
    return values


def _decoded_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _of_rows(rows: Iterator[Row], stem: str, config: CorpusConfig, trouble: Trouble) -> Iterator[Document]:
    """Documents from rows with fields."""
    limit = config.max_line_mb * 1e6
    for place, row in rows:
        text = row.get(config.text_field)
        if not isinstance(text, str):
            found = "not UTF-8" if isinstance(text, bytes) else f"a {type(text).__name__}, must be text"
            fix = f'give every row a {config.text_field!r} with text, or set corpus.on_bad_line = "skip"'
            trouble.meet("bad_lines", UserError(place(), f"{config.text_field!r} is {found}", fix))
            continue
        if len(text) > limit:
            rule = f"is a text of {len(text) / 1e6:.1f} MB, over corpus.max_line_mb = {config.max_line_mb:g}"
            fix = 'raise it, or pass such text over with corpus.oversize = "skip"'
            trouble.meet("oversize", UserError(place(), rule, fix))
            continue
        title = _first(row, [config.title_field]) if config.title_field else None
        yield Document(
            f"{title}\n{text}" if title else text,
            _first(row, [config.source_field]) or stem,
            _first(row, config.language_fields) or "",
            _first(row, config.document_fields),
            _first(row, config.id_fields),
        )


def _first(row: dict[str, Any], names: list[str | None] | list[str]) -> str | None:
    """The first of the fields that holds text or a number, as text without the white space around it."""
    for name in names:
        value = row.get(name) if name is not None else None
        if isinstance(value, str | int) and not isinstance(value, bool) and (found := str(value).strip()):
            return found
    return None
