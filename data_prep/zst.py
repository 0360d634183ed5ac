"""Zstandard files read as streams, with an error where one ends early.

zstandard's reader takes a file that was cut off for a whole one: it returns what is there and says nothing. So the
frames are walked first, block header by block header (RFC 8878), which reads a few bytes of every 128 KiB.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, Any

_MAGIC = b"\x28\xb5\x2f\xfd"
_LONGEST_WINDOW = 1 << 31  # what `zstd --long=31` writes
_RLE = 1


def open_zst(path: Path) -> io.BufferedReader:
    """The decompressed bytes of a .zst file, as a stream of bounded memory.

    Raises:
        EOFError: the file ends inside a frame. zstandard.ZstdError: it is damaged (may also be raised by reading).
        OSError: it cannot be read.
    """
    import zstandard

    stream = path.open("rb")
    try:
        _check_frames(stream, path.stat().st_size)
        stream.seek(0)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW)
        reader: Any = decompressor.stream_reader(stream, read_across_frames=True, closefd=True)
        return io.BufferedReader(reader, 1 << 17)
    except BaseException:
        stream.close()
        raise


def _check_frames(stream: IO[bytes], size: int) -> None:
    """Walk the frames of a file of `size` bytes to its end."""
    import zstandard

    at = 0
    while at < size:
        stream.seek(at)
        head = stream.read(18)
        if head[:4] != _MAGIC:
            if len(head) >= 8 and 0x50 <= head[0] <= 0x5F and head[1:4] == b"\x2a\x4d\x18":  # a skippable frame
                at += 8 + int.from_bytes(head[4:8], "little")
                continue
            raise zstandard.ZstdError(f"no frame starts at byte {at}")
        head = head.ljust(18, b"\0")  # the last frame may be shorter than the longest header
        checksum = zstandard.get_frame_parameters(head).has_checksum
        at += zstandard.frame_header_size(head)
        last = False
        while not last:
            stream.seek(at)
            header = int.from_bytes(_exactly(stream, 3), "little")
            last = bool(header & 1)
            at += 3 + (1 if header >> 1 & 3 == _RLE else header >> 3)
        at += 4 if checksum else 0
    if at > size:
        raise EOFError(f"the last frame needs {at - size} more bytes")


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError("the last frame has no end")
    return data
