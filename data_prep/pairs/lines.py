"""Lines of a file, plain or packed (.gz, .zst), none of them longer than memory allows."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

from data_prep.errors import UserError

MAX_LINE_BYTES = 64 << 20
"""A longer line is passed over without being held: no row of texts is that long."""
_BLOCK = 1 << 16


class _Unpacked(io.RawIOBase):
    """A zstd file of any number of frames as a stream. EOFError where the last frame is cut off.

    The library's own stream ends without a word at the end of a file that was cut off.
    """

    def __init__(self, path: Path) -> None:
        import zstandard

        self._make = zstandard.ZstdDecompressor().decompressobj
        self._file = path.open("rb")
        self._frame: Any = self._make()
        self._fed = False
        self._ready = b""

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as one block goes; 0 at the end."""
        while not self._ready:
            if self._frame.eof:
                left, self._frame, self._fed = self._frame.unused_data, self._make(), False
                block = left or self._file.read(_BLOCK)
            else:
                block = self._file.read(_BLOCK)
            if not block:
                if self._fed:
                    raise EOFError("the last frame is not complete")
                return 0
            self._fed = True
            self._ready = self._frame.decompress(block)
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        """Close the file too."""
        self._file.close()
        super().close()


def open_packed(path: Path) -> IO[bytes]:
    """A file as a binary stream; `.gz`, `.zst` and `.zstd` are unpacked on the way."""
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    if path.suffix in (".zst", ".zstd"):
        return io.BufferedReader(_Unpacked(path), _BLOCK)
    return path.open("rb")


def read_lines_within(path: Path, *, limit: int = MAX_LINE_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """Lines with their newline, numbered from 1; None for one of more than `limit` bytes.

    Raises `UserError` where the file is missing, empty or unreadable, or its packed stream is cut off or damaged.
    """
    import zstandard

    number = 0
    try:
        with open_packed(path) as stream:
            while raw := stream.readline(limit + 1):
                number += 1
                whole = len(raw) <= limit
                yield number, raw if whole else None
                while not whole and raw and not raw.endswith(b"\n"):
                    raw = stream.readline(limit)
    except FileNotFoundError as error:
        raise UserError(str(path), "no such file", "check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise UserError(
            f"{path}, after line {number}", f"its packed stream is cut off or damaged ({error})",
            f"copy or download the file again (test it with {'gzip' if path.suffix == '.gz' else 'zstd'} -t)",
        ) from error  # fmt: skip
    except OSError as error:
        raise UserError(
            str(path), f"cannot be read ({error.strerror})", "check its permissions and the disk"
        ) from error
    if number == 0:
        raise UserError(str(path), "is empty", "remove it from the recipe or put text into it")
