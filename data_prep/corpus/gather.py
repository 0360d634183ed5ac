"""Documents written in files of bounded size, and the folders of parts joined to one without writing a row anew."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

from data_prep.files import disk_errors, read_json, write_json
from data_prep.shards import SCHEMA_VERSION, Kind, ShardWriter

_MOST_CHARACTERS = 32_000_000


class DocumentWriter(ShardWriter):
    """A shard writer for documents of any length: a file is also ended when it holds 32 M characters.

    So neither who writes nor who reads row group by row group holds more than that in memory.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "documents")
        self._held = 0

    def append(self, row: dict[str, Any]) -> None:
        """Add one document."""
        super().append(row)
        self._held += len(row["text"])
        if self._held >= _MOST_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        super()._flush()
        self._held = 0


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
