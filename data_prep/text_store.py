"""The texts of a documents folder by row number, without holding them in memory.

Shards are read from front to back; mining and embedding need row 7,341,202 now. A text store is built once, by
streaming the shards: `text` (UTF-8 bytes, one text after another) with `text.offsets` (int64, rows + 1), `id` (16 bytes
a row), `language` (int16 codes), `source` (int32 codes) and `document` (uint64: rows of one document share it). Where
rows name a document, `name` holds the names, one after another, with `name.offsets` (int64, rows + 1; no name: no
bytes). All are little-endian and memory-mapped. `manifest.json` comes last, with the names behind the codes, size and
SHA-256 of every file, and the fingerprint of the shards: a store of other shards is built anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import content_id, disk_errors, read_json, sha256_file, write_json
from data_prep.shards import Shards

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from data_prep.progress import Progress

FORMAT = 2
_MANIFEST = "manifest.json"
_DTYPES = {"text.offsets": "<i8", "name.offsets": "<i8", "language": "<i2", "source": "<i4", "document": "<u8"}
_FLUSH = 16_384


def document_hash(name: str) -> int:
    """64 bits that stand for a document's name."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def id_bytes(name: str) -> bytes:
    """The 16 bytes of a content id (32 hex digits); another id stands by its own content id."""
    if len(name) == 32:
        try:
            digest = bytes.fromhex(name)
        except ValueError:
            digest = b""
        if digest.hex() == name:
            return digest
    return bytes.fromhex(content_id(name))


class TextStore:
    """A built text store; rows are those of the shards, in their order.

    Args:
        folder: where `build_text_store` put it.
        verify: also compare every file's SHA-256 (sizes are always compared).

    Attributes:
        rows: how many texts. id_digests: [rows, 16] uint8. languages, sources: the names behind the codes.
        language_codes: [rows] int16. source_codes: [rows] int32.
        documents: [rows] uint64; rows of one document share it, a row alone has its own. All arrays are memory-mapped.
        fingerprint: of the shards that it was built from.

    Raises:
        UserError: no or half a store, or a file that is missing, cut off or damaged.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:

        self.folder = folder
        path = folder / _MANIFEST
        rebuild = f"delete {folder} and run the same command again: it is built anew from the documents"
        if not path.exists():
            raise UserError(str(folder), f"is no text store, or half a one (it has no {_MANIFEST})", rebuild)
        manifest = read_json(path)
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or manifest.get("kind") != "texts":
            raise UserError(str(path), f"is no manifest of a text store in format {FORMAT}", rebuild)
        for name, entry in manifest["files"].items():
            file = folder / name
            if not file.exists() or file.stat().st_size != entry["bytes"]:
                raise UserError(str(file), "is missing or cut off (its size differs from the manifest)", rebuild)
            if verify and sha256_file(file) != entry["sha256"]:
                raise UserError(str(file), "its checksum differs from the manifest: the file is damaged", rebuild)
        self.rows: int = manifest["rows"]
        self.fingerprint: str = manifest["fingerprint"]
        self.languages: list[str] = manifest["languages"]
        self.sources: list[str] = manifest["sources"]
        self._text = _mapped(folder / "text", "u1")
        self._offsets = _mapped(folder / "text.offsets", "<i8")
        self.id_digests: NDArray[np.uint8] = _mapped(folder / "id", "u1").reshape(-1, 16)
        self.language_codes: NDArray[np.int16] = _mapped(folder / "language", "<i2")
        self.source_codes: NDArray[np.int32] = _mapped(folder / "source", "<i4")
        self.documents: NDArray[np.uint64] = _mapped(folder / "document", "<u8")
        self._names = _names(folder, manifest)
        self._document_names, self._name_offsets = None, None
        if "name" in manifest["files"]:
            self._document_names = _mapped(folder / "name", "u1")
            self._name_offsets = _mapped(folder / "name.offsets", "<i8")

    def __len__(self) -> int:
        return self.rows

    def text(self, row: int) -> str:
        """The text of a row. Raises `IndexError` for a row that there is not."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        return bytes(self._text[self._offsets[row] : self._offsets[row + 1]]).decode("utf-8", "surrogatepass")

    def texts(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The texts of the given rows, in the given order."""
        return [self.text(int(row)) for row in rows]

    def id(self, row: int) -> str:
        """The id of a row, as the shards have it."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.rows}")
        digest = bytes(self.id_digests[row])
        return self._names.get(digest) or digest.hex()

    def ids(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The ids of the given rows, in the given order."""
        return [self.id(int(row)) for row in rows]

    def document_name(self, row: int) -> str:
        """The name of the document that a row is a part of; of a row alone its id."""
        if self._document_names is None or self._name_offsets is None or not 0 <= row < self.rows:
            return self.id(row)
        name = bytes(self._document_names[self._name_offsets[row] : self._name_offsets[row + 1]])
        return name.decode("utf-8", "surrogatepass") if name else self.id(row)

    def document_names(self, rows: Sequence[int] | NDArray[np.int64]) -> list[str]:
        """The names of the documents of the given rows, in the given order."""
        return [self.document_name(int(row)) for row in rows]

    def language(self, row: int) -> str:
        """The language of a row."""
        return self.languages[self.language_codes[row]]

    def source(self, row: int) -> str:
        """The source of a row."""
        return self.sources[self.source_codes[row]]

    def lengths(self) -> NDArray[np.int64]:
        """[rows]: length of each text in UTF-8 bytes."""
        import numpy as np

        return np.diff(self._offsets)

    def items(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, str]]:
        """(id, text) of the rows [start, stop)."""
        for row in range(start, self.rows if stop is None else min(stop, self.rows)):
            yield self.id(row), self.text(row)


def _mapped(path: Path, dtype: str) -> NDArray[Any]:
    """A whole file as numbers, memory-mapped read-only (an empty file cannot be)."""
    import numpy as np

    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if path.stat().st_size else np.empty(0, dtype=dtype)


def _names(folder: Path, manifest: dict[str, Any]) -> dict[bytes, str]:
    """Ids that are no content ids, by their 16 bytes; usually there are none."""
    if "id.names" not in manifest["files"]:
        return {}
    return {id_bytes(name): name for name in map(json.loads, (folder / "id.names").read_text().splitlines())}


class _Column:
    """One file that is appended to and hashed on the way."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.name, self.bytes, self._digest = path.name, 0, hashlib.sha256()
        self._stream: IO[bytes] = stack.enter_context(path.open("wb"))

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def entry(self) -> dict[str, Any]:
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}


def build_text_store(documents: Path, folder: Path, *, progress: Progress) -> TextStore:
    """Build the store of a shard folder, unless `folder` holds it already.

    Memory does not grow with the documents, but with the number of sources and of ids that are no content ids.

    Raises:
        UserError: `documents` is no sound folder of documents; a full disk.
    """
    manifest_path = folder / _MANIFEST
    if manifest_path.exists():
        try:
            found = TextStore(folder)
            if found.fingerprint == Shards(documents, "documents", verify=False).fingerprint:
                return found
        except UserError:
            pass  # half a store, or of another format: built anew below
    shards = Shards(documents, "documents")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        manifest_path.unlink(missing_ok=True)
        write_json(manifest_path, _write(shards, folder, progress))
    return TextStore(folder)


def _write(shards: Shards, folder: Path, progress: Progress) -> dict[str, Any]:
    """Write all columns; returns the manifest."""
    import numpy as np

    languages: dict[str, int] = {}
    sources: dict[str, int] = {}
    with ExitStack() as stack:
        text, ids, names, documents = (_Column(folder / name, stack) for name in ("text", "id", "id.names", "name"))
        columns = {name: _Column(folder / name, stack) for name in _DTYPES}
        for offsets in ("text.offsets", "name.offsets"):
            columns[offsets].write(bytes(8))
        waiting: dict[str, list[int]] = {name: [] for name in _DTYPES}

        def flush() -> None:
            progress.advance(len(waiting["document"]))
            for name, dtype in _DTYPES.items():
                columns[name].write(np.array(waiting[name], dtype=dtype).tobytes())
                waiting[name].clear()

        progress.begin("index texts", len(shards), "documents")
        for row in shards:
            name = row["id"]
            digest = id_bytes(name)
            text.write(row["text"].encode("utf-8", "surrogatepass"))
            ids.write(digest)
            if digest.hex() != name:
                names.write(json.dumps(name).encode() + b"\n")
            documents.write((row["document"] or "").encode("utf-8", "surrogatepass"))
            waiting["text.offsets"].append(text.bytes)
            waiting["name.offsets"].append(documents.bytes)
            waiting["language"].append(languages.setdefault(row["language"] or "und", len(languages)))
            waiting["source"].append(sources.setdefault(row["source"] or "", len(sources)))
            waiting["document"].append(document_hash(row["document"] or name))
            if len(waiting["document"]) == _FLUSH:
                flush()
        flush()
    written = [text, ids, *columns.values()]
    if names.bytes:
        written.append(names)
    else:
        (folder / names.name).unlink()
    if documents.bytes:
        written.append(documents)
    else:  # every row is a document of its own
        written.remove(columns["name.offsets"])
        for column in (documents, columns["name.offsets"]):
            (folder / column.name).unlink()
    return {
        "format": FORMAT,
        "kind": "texts",
        "rows": len(shards),
        "languages": list(languages),
        "sources": list(sources),
        "files": {column.name: column.entry() for column in written},
        "fingerprint": shards.fingerprint,
    }
