"""Ids of the input that stand more than once in a file: found in bounded memory, told, never acted on.

An id is remembered as 8 bytes of a hash of the file and the id. Each part keeps its hashes in sorted runs; ranges of
hashes are then looked at across all runs, so that memory holds one range. Ids themselves lie in a text file beside.
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
_RUN = 1 << 20
"""Ids that are sorted together and written as one run."""
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
        if len(self._hashes) >= 8 * _RUN:
            self._flush()

    def _flush(self) -> None:
        import numpy as np

        if not self._hashes:
            return
        hashes = np.frombuffer(bytes(self._hashes), "<u8")
        order = np.argsort(hashes, kind="stable")
        number = len(list(self._folder.glob("hashes-*.npy")))
        with disk_errors(self._folder):
            np.save(self._folder / f"hashes-{number:05d}.npy", hashes[order], allow_pickle=False)
            rows = order + (self.rows - len(hashes))
            np.save(self._folder / f"rows-{number:05d}.npy", rows, allow_pickle=False)
        self._hashes = bytearray()

    def __enter__(self) -> IdentWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._names is None:
            return
        if kind is None:
            self._flush()
        with disk_errors(self._folder):
            self._names.close()


def repeated_idents(folders: list[Path]) -> tuple[int, list[dict[str, Any]]]:
    """How many rows have the id of an earlier row of their file, and samples of such ids.

    Args:
        folders: what `IdentWriter` wrote, in the order of the parts.

    Returns:
        Rows beyond the first of each id; up to ten ids in the order of their first row, with file and `times`.
    """
    import numpy as np

    files = [file for folder in folders for file in sorted(folder.glob("hashes-*.npy"))]
    parts = [np.load(file, allow_pickle=False, mmap_mode="r") for file in files]
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
        found += [(_first_place(files, parts, values[i]), int(counts[i])) for i in many[: _SAMPLES * 100]]
    samples = []
    for (run, row), times in sorted(found)[:_SAMPLES]:
        file, ident = _name(files[run].with_name("names.jsonl"), row)
        samples.append({"id": ident, "file": Path(file).name, "times": times})
    return repeated, samples


def _first_place(files: list[Path], runs: list[Any], value: Any) -> tuple[int, int]:
    """(run, row among the ids of its part) at which a hash stands first."""
    import numpy as np

    for number, (file, hashes) in enumerate(zip(files, runs, strict=True)):
        at = int(np.searchsorted(hashes, value))
        if at < len(hashes) and hashes[at] == value:
            rows = np.load(file.with_name(file.name.replace("hashes", "rows")), allow_pickle=False, mmap_mode="r")
            return number, int(rows[at])
    raise AssertionError("a hash that stands in no run")


def _name(path: Path, row: int) -> tuple[str, str]:
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            if number == row:
                file, ident = json.loads(line)
                return file, ident
    raise AssertionError("fewer ids than hashes")
