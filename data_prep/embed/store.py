"""Vectors on disk: float16 files that are memory-mapped, checksummed and named by a manifest.

A folder holds `part-00000.f16 …` (little-endian float16 rows, nothing else), `ids` (16 bytes a row: the id of its text)
and `manifest.json` with the rows, the dimension, whether the rows were normalised, the teacher's hash, the role, and
size and SHA-256 of every file. The manifest is written last: a folder without one is not finished. Beside it,
`part-00000.json …` say what each file holds, so that a killed run takes its finished files up again.

Invariant: float16 rounding happens once, when a vector is made. A row reads as the same float32 values in whatever
block; unit rows are brought back to unit length in float32.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json, sha256_file, write_atomically, write_json
from data_prep.text_store import id_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.embed.cache import VectorCache
    from data_prep.embed.embedder import Role, Teacher
    from data_prep.progress import Progress

FORMAT = 1
ROWS_PER_FILE = 32_768
"""Rows of a file, and texts that are held in memory and sorted by length together: 64 MB at 1,024 numbers a row."""
_UNIT_ROWS = 256
_MANIFEST, _IDS, _BEGUN = "manifest.json", "ids", "begun.json"


@dataclass(frozen=True)
class Kind:
    """What the vectors of a folder are; vectors of two kinds are never mixed.

    Attributes:
        teacher: hash of the teacher. name: what tables call it. role, prompt: how the texts were sent.
    """

    teacher: str
    name: str
    dimension: int
    normalised: bool
    role: str
    prompt: str


def kind_of(teacher: Teacher, role: Role) -> Kind:
    """The kind of the vectors that a teacher gives in a role."""
    return Kind(
        teacher=teacher.hash,
        name=teacher.name,
        dimension=teacher.dimension,
        normalised=teacher.normalised,
        role=role,
        prompt=teacher.prompt(role),
    )


def id_digests(ids: Iterable[str]) -> NDArray[np.uint8]:
    """[n, 16]: the bytes of content ids; another id stands by its own content id."""
    import numpy as np

    return np.frombuffer(b"".join(id_bytes(name) for name in ids), dtype=np.uint8).reshape(-1, 16)


class StoredVectors:
    """A finished folder of vectors; `Vectors`.

    Args:
        folder: the folder.
        verify: also compare every file's SHA-256 (sizes are always compared).

    Attributes:
        teacher: hash of the teacher. kind: all that the manifest says of it. ids: memory-mapped [rows, 16].
        fingerprint: digest of the content of all files. zero_rows: how many rows are all zero.

    Raises:
        UserError: no or half a folder, another format, a file that is missing, cut off or damaged (it is named).
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        import numpy as np

        self.folder = folder
        manifest = _manifest(folder)
        try:
            self.kind = Kind(**manifest["kind"])
            files = [*manifest["files"], manifest["ids"]]
            for file in files:
                _check_file(folder / file["name"], file, verify=verify)
            self.rows: int = manifest["rows"]
            self._starts = np.cumsum([0, *(file["rows"] for file in manifest["files"])])
            self.fingerprint: str = manifest["fingerprint"]
            self.zero_rows: int = manifest["zero_rows"]
        except (KeyError, TypeError) as error:
            raise UserError(str(folder / _MANIFEST), f"is no manifest of vectors ({error})", _again(folder)) from error
        self.teacher, self.dimension, self.normalised = self.kind.teacher, self.kind.dimension, self.kind.normalised
        self._paths = [folder / file["name"] for file in manifest["files"]]
        self._maps: dict[int, NDArray[np.float16]] = {}
        self.ids: NDArray[np.uint8] = _mapped(folder / _IDS, "u1", 16)
        if len(self.ids) != self.rows or self._starts[-1] != self.rows:
            raise UserError(str(folder), "its files and its manifest differ in rows", _again(folder))

    def __len__(self) -> int:
        return self.rows

    def _map(self, number: int) -> NDArray[np.float16]:
        if number not in self._maps:
            self._maps[number] = _mapped(self._paths[number], "<f2", self.dimension)
        return self._maps[number]

    def raw(self, start: int, stop: int) -> NDArray[np.float16]:
        """Rows [start, stop) as they lie on disk (unit length only up to float16); no copy inside one file."""
        import numpy as np

        start, stop = max(0, start), min(stop, self.rows)
        if start >= stop:
            return np.empty((0, self.dimension), dtype=np.float16)
        first, last = np.searchsorted(self._starts, [start, stop - 1], side="right") - 1
        pieces = [
            self._map(n)[max(0, start - self._starts[n]) : stop - self._starts[n]]
            for n in range(int(first), int(last) + 1)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) as float32 [stop - start, dimension]."""
        return self._ready(self.raw(start, stop))

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """The given rows, in the given order. Raises `IndexError` for a row that there is not."""
        import numpy as np

        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) and not (wanted.min() >= 0 and wanted.max() < self.rows):
            raise IndexError(f"rows {wanted.min()} … {wanted.max()} of {self.rows}")
        picked = np.empty((len(wanted), self.dimension), dtype=np.float16)
        order = np.argsort(wanted, kind="stable")  # neighbours on disk are read together
        bounds = np.searchsorted(wanted[order], self._starts)
        for number in range(len(self._paths)):
            here = order[bounds[number] : bounds[number + 1]]
            if len(here):
                picked[here] = self._map(number)[wanted[here] - self._starts[number]]
        return self._ready(picked)

    def _ready(self, stored: NDArray[np.float16]) -> NDArray[np.float32]:
        """As float32, unit rows of unit length again; row by row, so that the block does not matter."""
        import numpy as np

        vectors = stored.astype(np.float32)
        if self.normalised:
            for start in range(0, len(vectors), _UNIT_ROWS):  # stays in the cache
                block = vectors[start : start + _UNIT_ROWS]
                exact = block.astype(np.float64)
                norms = np.sqrt(np.einsum("ij,ij->i", exact, exact))
                norms[norms == 0] = 1.0
                block /= norms[:, None].astype(np.float32)
        return vectors

    def rows_of(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """The row of each id (the first one, where several rows share it); -1 where there is none."""
        import numpy as np

        known = np.ascontiguousarray(self.ids).view("S16").ravel()
        order = np.argsort(known, kind="stable")
        wanted = id_digests(ids).view("S16").ravel()
        at = np.searchsorted(known, wanted, sorter=order)
        found = np.full(len(wanted), -1, dtype=np.int64)
        inside = at < len(known)
        rows = order[at[inside]]
        found[inside] = np.where(known[rows] == wanted[inside], rows, -1)
        return found


def _mapped(path: Path, dtype: str, width: int) -> NDArray[Any]:
    """A file of rows of `width` numbers, memory-mapped read-only (an empty file cannot be)."""
    import numpy as np

    if path.stat().st_size == 0:
        return np.empty((0, width), dtype=dtype)
    return np.memmap(path, dtype=dtype, mode="r").reshape(-1, width)


def _again(folder: Path) -> str:
    return f"run the command that made {folder} again: what is whole in it is kept, the rest is embedded again"


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    if not path.exists():
        begun = len(list(folder.glob("part-*.json"))) if folder.is_dir() else 0
        state = f"is only half embedded ({begun} finished files, no {_MANIFEST})" if begun else "holds no vectors"
        raise UserError(str(folder), state, _again(folder) if begun else "check the path, or embed the texts first")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "kind" not in manifest:
        raise UserError(str(path), f"is no manifest of vectors in format {FORMAT}", _again(folder))
    return manifest


def _check_file(path: Path, entry: dict[str, Any], *, verify: bool) -> None:
    """Raises `UserError` where a file is not what its manifest says."""
    rebuild = f"delete it; {_again(path.parent)}"
    if not path.exists():
        raise UserError(str(path), "is missing but its manifest lists it", _again(path.parent))
    size = path.stat().st_size
    if size != entry["bytes"]:
        raise UserError(str(path), f"has {size} bytes, its manifest says {entry['bytes']}: it is cut off", rebuild)
    if verify and sha256_file(path) != entry["sha256"]:
        raise UserError(str(path), "its checksum differs from the manifest: the file is damaged", rebuild)


class Parts:
    """The files of a folder that is being embedded; each is whole or not there.

    Args:
        folder: where the vectors go; made where it is missing.
        kind: of all vectors in it.
    """

    def __init__(self, folder: Path, kind: Kind) -> None:
        self.folder, self.kind = folder, kind
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"part-{number:05d}.{suffix}"

    def finished(self, number: int, asked: str) -> dict[str, Any] | None:
        """The record of a part that is whole and holds what is asked for, else None.

        Args:
            asked: digest of the ids and texts of the part.
        """
        record = self._path(number, "json")
        if not record.exists():
            return None
        told: dict[str, Any] = read_json(record)
        if told.get("asked") != asked or told.get("kind") != asdict(self.kind):
            return None
        for suffix in ("f16", "ids"):
            path, entry = self._path(number, suffix), told[suffix]
            if not path.exists() or path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
                return None
        return told

    def write(self, number: int, asked: str, ids: NDArray[np.uint8], vectors: NDArray[np.float16]) -> dict[str, Any]:
        """Write one part: vectors [n, dimension], ids [n, 16]; its record comes last."""
        (self.folder / _MANIFEST).unlink(missing_ok=True)  # what it describes is about to change
        record = self._path(number, "json")
        record.unlink(missing_ok=True)
        entries = {}
        for suffix, array in (("f16", vectors.astype("<f2", copy=False)), ("ids", ids)):
            path, data = self._path(number, suffix), array.tobytes()
            write_atomically(path, data)
            entries[suffix] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        zero = int((~vectors.any(axis=1)).sum())
        told = {"asked": asked, "kind": asdict(self.kind), "rows": len(vectors), "zero_rows": zero, **entries}
        write_json(record, told)
        return told

    def finish(self, records: Sequence[dict[str, Any]]) -> StoredVectors:
        """Write the ids and the manifest of all parts, and open the folder."""
        files = [
            {"name": self._path(n, "f16").name, "rows": record["rows"], **record["f16"]}
            for n, record in enumerate(records)
        ]
        for stale in self.folder.glob("part-*"):  # of an earlier run over more texts
            number = stale.name.removeprefix("part-").partition(".")[0]
            if number.isdigit() and int(number) >= len(records):
                stale.unlink()
        for half in self.folder.glob(".part-*.tmp"):  # what killed processes were writing
            half.unlink(missing_ok=True)
        ids = b"".join(self._path(n, "ids").read_bytes() for n in range(len(records)))
        digest = hashlib.sha256(json.dumps(asdict(self.kind), sort_keys=True, ensure_ascii=False).encode())
        for file in files:
            digest.update(file["sha256"].encode())
        ids_sha256 = hashlib.sha256(ids).hexdigest()
        digest.update(ids_sha256.encode())
        manifest = {
            "format": FORMAT,
            "kind": asdict(self.kind),
            "dtype": "float16",
            "byte_order": "little",
            "rows": sum(file["rows"] for file in files),
            "zero_rows": sum(record["zero_rows"] for record in records),
            "files": files,
            "ids": {"name": _IDS, "bytes": len(ids), "sha256": ids_sha256},
            "fingerprint": digest.hexdigest(),
        }
        path, ids_path = self.folder / _MANIFEST, self.folder / _IDS
        if not ids_path.exists() or sha256_file(ids_path) != ids_sha256:
            write_atomically(ids_path, ids)
        if not path.exists() or read_json(path) != manifest:
            write_json(path, manifest)
        (self.folder / _BEGUN).unlink(missing_ok=True)
        return StoredVectors(self.folder, verify=False)


def open_cache(folder: Path, kind: Kind, cache: Path | None) -> VectorCache | None:
    """The cache as it was when `folder` was begun: what later parts add to it changes no vector of this folder."""
    if cache is None:
        return None
    from data_prep.embed.cache import VectorCache

    begun, only = folder / _BEGUN, None
    if begun.exists():
        told = read_json(begun)
        only = told.get("files") if told.get("kind") == asdict(kind) else None
    opened = VectorCache(cache, teacher=kind.teacher, dimension=kind.dimension, normalised=kind.normalised, only=only)
    if only is None:
        with disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(begun, {"kind": asdict(kind), "files": opened.files})
    return opened


def embed_texts(
    texts: Iterable[tuple[str, str]],
    teacher: Teacher,
    *,
    role: Role,
    folder: Path,
    cache: Path | None = None,
    progress: Progress | None = None,
    total: int | None = None,
    rows_per_file: int = ROWS_PER_FILE,
) -> StoredVectors:
    """Embed texts into `folder`; what an earlier, killed run finished there is kept, if its texts are the same.

    Args:
        texts: (id, text); read once, `rows_per_file` of them are held in memory.
        cache: folder of all teachers' caches; none embeds everything.
        total: how many texts there are, for the progress display.

    Raises:
        UserError: a vector that is not finite, zero without a reason, or of another dimension; a full disk.
    """
    from data_prep.embed.part import embed_part
    from data_prep.progress import Progress

    progress = progress or Progress()
    kind = kind_of(teacher, role)
    parts, known = Parts(folder, kind), open_cache(folder, kind, cache)
    progress.begin("embed", total, "texts")
    records: list[dict[str, Any]] = []
    stream, row = iter(texts), 0
    while items := list(islice(stream, rows_per_file)):
        records.append(
            embed_part(parts, len(records), items, teacher, role=role, cache=known, first_row=row, progress=progress)
        )
        row += len(items)
    return parts.finish(records)
