"""How a shard folder looks on disk; nothing else in the project knows.

A shard folder holds `part-00000.parquet …` (zstd) and `manifest.json` with the schema version, the kind, the rows of
each file, its SHA-256, and a fingerprint of the content. The manifest is written last: a folder without one is not a
shard folder. Readers check size and checksum before they hand out a row, and say which file is wrong and what to do.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json, sha256_file, write_json

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = 3
Kind = Literal["documents", "pairs", "tokens"]
_ROW_GROUP = 4096
"""Rows that are decompressed together: what a reader that streams holds in memory."""
KINDS: tuple[Kind, ...] = ("documents", "pairs", "tokens")


def schema_of(kind: Kind) -> pa.Schema:
    """The Arrow schema of a kind of shard.

    documents: one cleaned text a row; `document` names the document that it is a part or a rendering of (null: itself
    alone). pairs: a query with its positives and negatives; the ids are content hashes of
    the texts and drive deduplication and false-negative masks, the documents are the names of what the texts come
    from (null where unknown). tokens: rows of a fixed number of `input_ids`; `document_starts` are the offsets inside
    the row at which a document (or the rest of one) begins, the first is 0; `source` is null in rows of several
    sources.
    """
    import pyarrow as pa

    text, texts, scores = pa.string(), pa.list_(pa.string()), pa.list_(pa.float32())
    fields: dict[Kind, list[tuple[str, pa.DataType]]] = {
        "documents": [("id", text), ("text", text), ("source", text), ("language", text), ("document", text)],
        "pairs": [
            ("query", text),
            ("positives", texts),
            ("negatives", texts),
            ("source", text),
            ("language", text),
            ("query_id", text),
            ("positive_ids", texts),
            ("negative_ids", texts),
            ("positive_scores", scores),
            ("negative_scores", scores),
            ("query_document", text),
            ("positive_documents", texts),
            ("negative_documents", texts),
        ],
        "tokens": [("input_ids", pa.list_(pa.int32())), ("document_starts", pa.list_(pa.int32())), ("source", text)],
    }
    return pa.schema(fields[kind])


class ShardWriter:
    """Writes one shard folder; use it as a context manager.

    Rows are buffered and written as files of `rows_per_file` rows. On a clean exit the manifest is written; on an
    exception it is not, and the folder stays invalid. A full disk is a `UserError`.
    """

    def __init__(self, folder: Path, kind: Kind, *, rows_per_file: int = 50_000) -> None:
        self.folder, self.kind, self.rows = folder, kind, 0
        self._rows_per_file = rows_per_file
        self._schema = schema_of(kind)
        self._buffer: list[dict[str, Any]] = []
        self._files: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def append(self, row: dict[str, Any]) -> None:
        """Add one row; missing columns become null."""
        self._buffer.append(row)
        self.rows += 1
        if len(self._buffer) >= self._rows_per_file:
            self._flush()

    def extend(self, rows: Iterable[dict[str, Any]]) -> None:
        """Add many rows."""
        for row in rows:
            self.append(row)

    def _flush(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not self._buffer:
            return
        path = self.folder / f"part-{len(self._files):05d}.parquet"
        table = pa.Table.from_pylist(self._buffer, schema=self._schema)
        with disk_errors(path):
            try:
                pq.write_table(table, path, compression="zstd", row_group_size=_ROW_GROUP)
            except BaseException:
                path.unlink(missing_ok=True)
                raise
        self._files.append(
            {"name": path.name, "rows": len(self._buffer), "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        )
        self._buffer = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        self._flush()
        fingerprint = hashlib.sha256("".join(f["sha256"] for f in self._files).encode()).hexdigest()
        write_json(
            self.folder / "manifest.json",
            {
                "schema": SCHEMA_VERSION,
                "kind": self.kind,
                "rows": self.rows,
                "files": self._files,
                "fingerprint": fingerprint,
            },
        )


class Shards:
    """A verified shard folder, read as one sequence of rows.

    Args:
        folder: the shard folder.
        kind: what it must hold.
        verify: also compare every file's SHA-256 (sizes and row counts are always compared).

    Raises:
        UserError: no manifest, another schema version or kind, or a file that is missing or differs from its
            checksum; the message names the file and the command that rebuilds it.
    """

    def __init__(self, folder: Path, kind: Kind, *, verify: bool = True) -> None:
        self.folder, self.kind = folder, kind
        manifest_path = folder / "manifest.json"
        rebuild = f"delete {folder} and run the same command again: the stage that makes it is rebuilt"
        if not manifest_path.exists():
            raise UserError(str(folder), "is not a shard folder (it has no manifest.json)", rebuild)
        manifest = read_json(manifest_path)
        if not isinstance(manifest, dict):
            raise UserError(str(manifest_path), "is not a shard manifest", rebuild)
        if manifest.get("schema") != SCHEMA_VERSION:
            raise UserError(
                str(manifest_path),
                f"schema version {manifest.get('schema')}, this rumpun reads {SCHEMA_VERSION}",
                rebuild,
            )
        if manifest.get("kind") != kind:
            raise UserError(
                str(folder), f"holds {manifest.get('kind')!r} shards, {kind!r} are needed here", "check the path"
            )
        for file in manifest["files"]:
            path = folder / file["name"]
            if not path.exists():
                raise UserError(str(path), "is missing but its manifest lists it", rebuild)
            if path.stat().st_size != file["bytes"] or (verify and sha256_file(path) != file["sha256"]):
                raise UserError(
                    str(path), "its checksum differs from the manifest: the file is damaged or was changed", rebuild
                )
        self.rows: int = manifest["rows"]
        self.fingerprint: str = manifest["fingerprint"]
        self._files: list[dict[str, Any]] = manifest["files"]
        self._table: pa.Table | None = None

    def __len__(self) -> int:
        return self.rows

    def table(self) -> pa.Table:
        """The whole folder as one memory-mapped Arrow table of `rows` rows."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if self._table is None:
            parts = [pq.read_table(self.folder / f["name"], memory_map=True) for f in self._files]
            self._table = pa.concat_tables(parts) if parts else schema_of(self.kind).empty_table()
            if self._table.num_rows != self.rows:
                raise UserError(
                    str(self.folder), f"holds {self._table.num_rows} rows, its manifest says {self.rows}", "rebuild it"
                )
        return self._table

    def column(self, name: str) -> list[Any]:
        """One column as a Python list of length `rows`; the others are not read."""
        import pyarrow.parquet as pq

        values: list[Any] = []
        for file in self._files:
            values += pq.read_table(self.folder / file["name"], columns=[name]).column(0).to_pylist()
        return values

    def take(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The given rows, in the given order."""
        if not rows:  # Arrow knows no type for an empty list of row numbers
            return []
        table = self.table()  # its own `take` copies a column of texts to one piece, which may hold 2 GiB at most
        return [table.slice(row, 1).to_pylist()[0] for row in rows]

    @property
    def file_rows(self) -> list[int]:
        """Rows of each file: what may be read apart by `read_file`."""
        return [file["rows"] for file in self._files]

    def read_file(self, number: int) -> Iterator[dict[str, Any]]:
        """Rows of one file in order; memory holds one row group at a time."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.folder / self._files[number]["name"]) as parquet:
            for batch in parquet.iter_batches(batch_size=_ROW_GROUP):
                yield from batch.to_pylist()

    def rows_between(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Rows [start, stop) in order; files and row groups outside are not read."""
        import pyarrow.parquet as pq

        first = 0
        for file in self._files:
            if first + file["rows"] > start and first < stop:
                with pq.ParquetFile(self.folder / file["name"]) as parquet:
                    yield from _group_rows(parquet, start - first, stop - first)
            first += file["rows"]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Rows in order; memory holds one row group at a time, however large the folder is."""
        for number in range(len(self._files)):
            yield from self.read_file(number)


def _group_rows(parquet: Any, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Rows [start, stop) of one file, by row groups; the bounds may lie outside the file."""
    first = 0
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        low, high = max(start - first, 0), min(stop - first, rows)
        if low < high:
            yield from parquet.read_row_group(group).slice(low, high - low).to_pylist()
        first += rows


def gather_shards(folders: list[Path], out: Path, kind: Kind) -> int:
    """Join shard folders; files are linked where the file system can, else copied. Returns the rows.

    The folders stay as they are, so that a run that dies here can do it again.
    """
    out.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, Any]] = []
    for folder in folders:
        for file in read_json(folder / "manifest.json")["files"]:
            path = out / f"part-{len(files):05d}.parquet"
            with disk_errors(path):
                path.unlink(missing_ok=True)
                try:
                    os.link(folder / file["name"], path)
                except OSError:
                    shutil.copyfile(folder / file["name"], path)
            files.append({**file, "name": path.name})
    rows = sum(file["rows"] for file in files)
    fingerprint = hashlib.sha256("".join(f["sha256"] for f in files).encode()).hexdigest()
    manifest = {"schema": SCHEMA_VERSION, "kind": kind, "rows": rows, "files": files, "fingerprint": fingerprint}
    write_json(out / "manifest.json", manifest)
    return rows
