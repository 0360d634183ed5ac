"""MosaicML MDS shards, read from their bytes: the format that the paper's authors trained from.

A folder holds `index.json` and `shard.00000.mds …`, as they are or compressed (`.zstd`, `.gz`, `.bz2`). A shard is: the
number of samples n (uint32, little-endian like all that follows); n + 1 byte offsets from the start of the file
(uint32); the writer's settings as JSON; the samples. A sample begins with one uint32 length for every column that has
no fixed size, in the order of the column names; the columns' bytes follow in the same order.

The library that writes the format cannot be installed beside transformers 5, hence this reader. Files are checked
against the sizes and hashes of the index before a row is handed out, and read as a stream: memory holds the offsets of
one shard and one sample. Pickled columns are refused, because to load one is to run it.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO, Any, cast

from data_prep.errors import UserError
from data_prep.files import read_json

INDEX = "index.json"
_VERSION = 2
_BLOCK = 1 << 20
_NUMBERS = {
    "int": "q", "int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H", "uint32": "I",
    "uint64": "Q", "float16": "e", "float32": "f", "float64": "d",
}  # fmt: skip
"""Encodings of one number, by their `struct` letter."""
_PICKLED = ("pkl", "pickle")
_DAMAGED = "copy or download the shard again"

Decoder = Callable[[bytes], Any]


def is_mds(folder: Path) -> bool:
    """Whether a folder's index.json is that of an MDS data set."""
    path = folder / INDEX
    if not path.is_file():
        return False
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    shards = index.get("shards") if isinstance(index, dict) else None
    return isinstance(shards, list) and all(isinstance(s, dict) and "format" in s for s in shards)


def read_mds(folder: Path, *, verify: bool = True) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every sample of an MDS folder, with its place (`FILE, sample N`, from 0); unknown encodings are left out.

    Args:
        verify: also compare the hashes that the index gives (sizes always are).

    Raises:
        UserError: no index; another version or format; a pickled column; a compression that is not read; a file that
            is missing, damaged, or not what the index says.
    """
    index = read_json(folder / INDEX)
    shards = index.get("shards") if isinstance(index, dict) else None
    if not isinstance(shards, list) or not all(isinstance(s, dict) for s in shards):
        raise UserError(str(folder / INDEX), "lists no shards", "give the index.json that was written with the shards")
    if index.get("version", _VERSION) != _VERSION:
        raise UserError(
            str(folder / INDEX), f"is of version {index['version']}, {_VERSION} is read here", "write it anew"
        )
    plans = [_Shard(folder, number, told) for number, told in enumerate(shards)]
    for shard in plans:
        yield from shard.samples(verify=verify)


class _Shard:
    """One shard as the index describes it. Raises `UserError` where that cannot be read here."""

    def __init__(self, folder: Path, number: int, told: Mapping[str, Any]) -> None:
        self._where = f"{folder / INDEX}, shard {number}"
        if told.get("format") != "mds" or told.get("version", _VERSION) != _VERSION:
            found = f"{told.get('format')!r}, version {told.get('version')}"
            raise UserError(self._where, f"is {found}; MDS shards of version {_VERSION} are read here", "write it anew")
        try:
            names, encodings = list(told["column_names"]), list(told["column_encodings"])
            sizes, self._rows = list(told["column_sizes"]), int(told["samples"])
            raw, packed = told["raw_data"], told.get("zip_data")
            self._raw_bytes = int(raw["bytes"])
            chosen = packed or raw
            self.path = folder / Path(str(chosen["basename"])).name
            self._bytes, self._hashes = int(chosen["bytes"]), dict(chosen.get("hashes") or {})
            if not self.path.exists() and packed and (folder / Path(str(raw["basename"])).name).exists():
                packed = None  # unpacked by hand or by a reader that removes the packed files
                self.path = folder / Path(str(raw["basename"])).name
                self._bytes, self._hashes = self._raw_bytes, dict(raw.get("hashes") or {})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                self._where, f"lacks a fact, or has one of the wrong kind ({error!r})", "write the index anew"
            ) from error
        if not len(names) == len(encodings) == len(sizes):
            raise UserError(self._where, "names more columns than it describes", "write the index anew")
        self._columns = [
            (str(n), _decoder(str(e), name=str(n), where=self._where), s if isinstance(s, int) and s > 0 else None)
            for n, e, s in zip(names, encodings, sizes, strict=True)
        ]
        self._compression = str(told.get("compression") or "").partition(":")[0] if packed else ""
        if self._compression not in ("", "zstd", "gz", "bz2"):
            raise UserError(
                self._where, f"is compressed with {self._compression!r}; zstd, gz and bz2 are read here",
                "unpack the shards, or write them with zstd",
            )  # fmt: skip

    def _check(self, *, hashes: bool) -> None:
        """Compare the file with the index."""
        try:
            size = self.path.stat().st_size
        except FileNotFoundError as error:
            raise UserError(str(self.path), "is missing, but index.json lists it", _DAMAGED) from error
        if size != self._bytes:
            raise UserError(str(self.path), f"has {size} bytes, index.json says {self._bytes}", _DAMAGED)
        for name, told in sorted(self._hashes.items()) if hashes else ():
            found = _hash_file(self.path, name)
            if found not in (None, told):
                raise UserError(str(self.path), f"its {name} differs from the one in index.json", _DAMAGED)

    def samples(self, *, verify: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        """The shard's samples with their places."""
        import zstandard

        self._check(hashes=verify)
        at = 0
        try:
            with self._open() as stream:
                offsets = self._offsets(stream)
                for at in range(self._rows):
                    where = f"{self.path}, sample {at}"
                    yield where, self._decode(_exactly(stream, offsets[at + 1] - offsets[at]), where)
        except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
            raise UserError(f"{self.path}, at sample {at}", f"cannot be read on ({error})", _DAMAGED) from error

    def _open(self) -> IO[bytes]:
        if self._compression == "gz":
            return cast(IO[bytes], gzip.open(self.path, "rb"))
        if self._compression == "bz2":
            return bz2.open(self.path, "rb")
        if self._compression == "zstd":
            import zstandard

            reader = zstandard.ZstdDecompressor().stream_reader(
                self.path.open("rb"), read_across_frames=True, closefd=True
            )
            return cast(IO[bytes], reader)
        return self.path.open("rb")

    def _offsets(self, stream: IO[bytes]) -> list[int]:
        """Where each sample begins and the last ends; the stream is left at the first sample."""
        (rows,) = struct.unpack("<I", _exactly(stream, 4))
        if rows != self._rows:
            raise UserError(str(self.path), f"holds {rows} samples, index.json says {self._rows}", _DAMAGED)
        offsets = list(struct.unpack(f"<{rows + 1}I", _exactly(stream, 4 * (rows + 1))))
        settings = offsets[0] - 4 - 4 * (rows + 1)
        rising = all(a <= b for a, b in pairwise(offsets))
        if settings < 0 or not rising or offsets[-1] != self._raw_bytes:
            raise UserError(str(self.path), "has sample offsets that fit no file of its size", _DAMAGED)
        _exactly(stream, settings)
        return offsets

    def _decode(self, data: bytes, where: str) -> dict[str, Any]:
        row, place, lengths = {}, 0, []
        for _, _, size in self._columns:
            if size is None:
                if place + 4 > len(data):
                    raise UserError(where, "is cut off", _DAMAGED)
                (size,) = struct.unpack_from("<I", data, place)
                place += 4
            lengths.append(size)
        if place + sum(lengths) != len(data):
            raise UserError(where, f"has {len(data)} bytes, its columns need {place + sum(lengths)}", _DAMAGED)
        for (name, decode, _), size in zip(self._columns, lengths, strict=True):
            piece = data[place : place + size]
            place += size
            if decode is None:
                continue
            try:
                row[name] = decode(piece)
            except (ValueError, struct.error, RecursionError) as error:
                raise UserError(where, f"column {name!r} cannot be decoded ({error})", _DAMAGED) from error
        return row


def _decoder(encoding: str, *, name: str, where: str) -> Decoder | None:
    """What turns a column's bytes into a value; None for encodings that hold no text or number (pictures, arrays)."""
    if encoding in _PICKLED:
        raise UserError(
            f"{where}: column {name!r}", "is pickled; to load a pickle is to run whatever is in it",
            "write the column as 'json' or 'str'",
        )  # fmt: skip
    if encoding in _NUMBERS:
        layout = struct.Struct("<" + _NUMBERS[encoding])
        return lambda data: layout.unpack(data)[0]
    known: dict[str, Decoder] = {
        "str": bytes.decode,
        "bytes": bytes,
        "json": json.loads,
        "str_int": int,
        "str_float": float,
    }
    return known.get(encoding)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """The next `size` bytes. EOFError where the stream ends before."""
    pieces, missing = [], size
    while missing:
        piece = stream.read(min(missing, _BLOCK))
        if not piece:
            raise EOFError(f"the file ends {missing} bytes early")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _hash_file(path: Path, name: str) -> str | None:
    """A hash of the file in hex; None where this machine has no such function."""
    try:
        digest: Any = hashlib.new(name)
    except ValueError:
        try:
            import xxhash
        except ImportError:
            return None
        if name not in xxhash.algorithms_available:
            return None
        digest = getattr(xxhash, name)()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return str(digest.hexdigest())
