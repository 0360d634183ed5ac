"""Ids of the input that stand more than once in a file: found in bounded memory, told, never acted on.

An id is remembered as 8 bytes of a hash of the file and the id. Each part keeps its hashes sorted; ranges of hashes are
then looked at across all parts, so that memory holds one range. Ids themselves lie in a text file beside, for samples.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from data_prep.files import disk_errors

_RANGE = 1 << 22
"""Hashes looked at together: 32 MB of them."""
_SAMPLES = 10


class IdentWriter:
    """Writes the ids of one part to a folder; use it as a context manager.

    Attributes:
        rows: ids so far.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self.rows = folder, 0
        self._hashes = bytearray()
        self._names: IO[str] | None = None

    def add(self, file: str, ident: str) -> None:
        """Remember an id of a file."""
        if self._names is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._names = (self._folder / "names.jsonl").open("w", encoding="utf-8")
        asked = f"{file}\0{ident}".encode("utf-8", "surrogatepass")
        self._hashes += hashlib.blake2b(asked, digest_size=8).digest()
        with disk_errors(self._folder):
            self._names.write(json.dumps([file, ident]) + "\n")
        self.rows += 1

    def __enter__(self) -> IdentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._names is None:
            return
        import numpy as np

        with disk_errors(self._folder):
            self._names.close()
            if kind is None:
                hashes = np.frombuffer(bytes(self._hashes), "<u8")
                order = np.argsort(hashes, kind="stable")
                np.save(self._folder / "hashes.npy", hashes[order], allow_pickle=False)
                np.save(self._folder / "rows.npy", order, allow_pickle=False)


def repeated_idents(folders: list[Path]) -> tuple[int, list[dict[str, Any]]]:
    """How many rows have the id of an earlier row of their file, and samples of such ids.

    Args:
        folders: what `IdentWriter` wrote, in the order of the parts.

    Returns:
        Rows beyond the first of each id; up to ten ids in the order of their first row, with file and `times`.
    """
    import numpy as np

    parts = [np.load(folder / "hashes.npy", allow_pickle=False, mmap_mode="r") for folder in folders]
    total = sum(map(len, parts))
    ranges = max(1, -(-total // _RANGE))
    edges = [np.uint64((number << 64) // ranges) for number in range(ranges)]
    repeated, found = 0, []
    for number, low in enumerate(edges):
        starts = [int(np.searchsorted(part, low)) for part in parts]
        stops = [int(np.searchsorted(part, edges[number + 1])) if number + 1 < ranges else len(part) for part in parts]
        values, counts = np.unique(
            np.concatenate([part[a:b] for part, a, b in zip(parts, starts, stops, strict=True)]), return_counts=True
        )
        repeated += int((counts - 1).sum())
        many = np.flatnonzero(counts > 1)
        found += [(_first_place(folders, parts, values[i]), int(counts[i])) for i in many[: _SAMPLES * 100]]
    samples = []
    for (part, row), times in sorted(found)[:_SAMPLES]:
        file, ident = _name(folders[part] / "names.jsonl", row)
        samples.append({"id": ident, "file": Path(file).name, "times": times})
    return repeated, samples


def _first_place(folders: list[Path], parts: list[Any], value: Any) -> tuple[int, int]:
    """(part, row among its ids) at which a hash stands first."""
    import numpy as np

    for number, (folder, hashes) in enumerate(zip(folders, parts, strict=True)):
        at = int(np.searchsorted(hashes, value))
        if at < len(hashes) and hashes[at] == value:
            return number, int(np.load(folder / "rows.npy", allow_pickle=False, mmap_mode="r")[at])
    raise AssertionError("a hash that stands in no part")


def _name(path: Path, row: int) -> tuple[str, str]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            if number == row:
                file, ident = json.loads(line)
                return file, ident
    raise AssertionError("fewer ids than hashes")
