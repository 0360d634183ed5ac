"""Vectors that were computed before, found by teacher and text.

A folder for each teacher (its hash and whether rows are normalised), in it one file for each batch that was added:
a header line, then sorted 16-byte keys, a CRC-32 for each row, and the float16 rows in the order of the keys. Files are
written beside and renamed, never changed, and named by their content: two processes may add to one cache at once, and
a killed one leaves nothing that is read. Keys and rows are memory-mapped, so memory does not grow with the cache.

A row whose checksum is wrong counts as unknown and is computed again.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.files import disk_errors, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SUFFIX = ".vectors"
_HEADER, _DAY_S = 256, 86_400


class VectorCache:
    """The cache of one teacher.

    Args:
        root: folder of all caches.
        teacher: its hash. dimension, normalised: of its vectors.
        only: names of the files to look into (`files` of an earlier time); None takes all that are there now.

    Attributes:
        files: names of the files that are looked into.
    """

    def __init__(
        self, root: Path, *, teacher: str, dimension: int, normalised: bool, only: Collection[str] | None = None
    ) -> None:
        self.folder = root / f"{teacher[:32]}-{dimension}{'' if normalised else '-raw'}"
        self._dimension = dimension
        with disk_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        for half in self.folder.glob(".*.tmp"):  # what a killed process was writing; a living one takes seconds
            with suppress(OSError):
                if time.time() - half.stat().st_mtime > _DAY_S:
                    half.unlink()
        names = sorted(path.name for path in self.folder.glob(f"*{_SUFFIX}"))
        self.files = [name for name in names if only is None or name in only]
        self._open: dict[str, _File | None] = {}

    def get(self, keys: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Which of the keys [n, 16] are known (their places, ascending), and their vectors [m, dimension]."""
        import numpy as np

        wanted = np.ascontiguousarray(keys).view("S16").ravel()
        vectors = np.empty((len(wanted), self._dimension), dtype=np.float16)
        missing = np.arange(len(wanted))
        for name in self.files:
            if not len(missing):
                break
            file = self._file(name)
            if file is None:
                continue
            hit, rows = file.find(wanted[missing])
            vectors[missing[hit]] = rows
            missing = np.delete(missing, hit)
        known = np.ones(len(wanted), dtype=bool)
        known[missing] = False
        places = known.nonzero()[0]
        return places, vectors[places]

    def _file(self, name: str) -> _File | None:
        if name not in self._open:
            self._open[name] = _File.open(self.folder / name, self._dimension)
        return self._open[name]

    def add(self, keys: NDArray[np.uint8], vectors: NDArray[np.float16]) -> None:
        """Keep vectors [n, dimension] under distinct keys [n, 16]; they are found by caches opened from now on."""
        import numpy as np

        order = np.argsort(np.ascontiguousarray(keys).view("S16").ravel(), kind="stable")
        rows = np.ascontiguousarray(vectors[order].astype("<f2", copy=False))
        sums = np.fromiter((zlib.crc32(row) for row in rows), dtype="<u4", count=len(rows))
        head = keys[order].tobytes() + sums.tobytes()
        name = f"{hashlib.blake2b(head, digest_size=12).hexdigest()}{_SUFFIX}"
        header = json.dumps({"rows": len(rows), "dimension": self._dimension, "index_crc": zlib.crc32(head)})
        # over a file of the same name, too: it may be damaged
        write_atomically(self.folder / name, header.ljust(_HEADER - 1).encode() + b"\n" + head + rows.tobytes())


class _File:
    """One file of the cache, memory-mapped."""

    def __init__(self, keys: NDArray[Any], sums: NDArray[Any], rows: NDArray[Any]) -> None:
        self._keys, self._sums, self._rows = keys, sums, rows

    @classmethod
    def open(cls, path: Path, dimension: int) -> _File | None:
        """None where the file is gone, cut off or damaged in its index: what it held is computed again."""
        import numpy as np

        try:
            data = np.memmap(path, dtype=np.uint8, mode="r")
            header = json.loads(data[:_HEADER].tobytes())
            count, index = int(header["rows"]), _HEADER + 20 * int(header["rows"])
            whole = count > 0 and len(data) == index + 2 * count * dimension and header["dimension"] == dimension
            if not whole or zlib.crc32(data[_HEADER:index].tobytes()) != header["index_crc"]:
                return None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        middle = _HEADER + 16 * count
        return cls(
            data[_HEADER:middle].view("S16"),
            data[middle:index].view("<u4"),
            data[index:].view("<f2").reshape(count, dimension),
        )

    def find(self, wanted: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """Places in `wanted` that this file knows, and their rows; a damaged row is unknown."""
        import numpy as np

        at = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        hit = (self._keys[at] == wanted).nonzero()[0]
        rows = np.ascontiguousarray(self._rows[at[hit]])
        sums = np.fromiter((zlib.crc32(row) for row in rows), dtype=np.uint32, count=len(rows))
        sound = sums == self._sums[at[hit]]
        return hit[sound], rows[sound]
