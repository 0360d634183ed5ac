"""Documents written in files of bounded size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_prep.shards import ShardWriter

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
