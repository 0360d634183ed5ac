"""Zstandard streams: whole ones of any make are read, cut or damaged ones are an error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import zstandard

from data_prep.errors import UserError
from data_prep.files import read_lines
from data_prep.zst import open_zst

LINES = b"".join(b"baris nombor %d\n" % n for n in range(30_000))


def _skippable(size: int) -> bytes:
    return b"\x5a\x2a\x4d\x18" + size.to_bytes(4, "little") + bytes(size)


@pytest.mark.parametrize("content", [b"", b"a", LINES, b"x" * 300_000, random.Random(0).randbytes(300_000)])
@pytest.mark.parametrize("checksum", [True, False])
def test_frames_are_joined_and_every_cut_is_noticed(tmp_path: Path, content: bytes, checksum: bool) -> None:
    frame = zstandard.ZstdCompressor(write_checksum=checksum).compress(content)
    path = tmp_path / "a.zst"
    path.write_bytes(frame + _skippable(40) + frame)
    with open_zst(path) as stream:
        assert stream.read() == content * 2
    whole = path.read_bytes()
    for cut in {1, 5, len(frame) - 1, len(frame) + 20, len(frame) + 50, len(whole) - 1} - {len(frame), len(frame) + 48}:
        path.write_bytes(whole[:cut])
        with pytest.raises((EOFError, zstandard.ZstdError)):
            open_zst(path)


def test_streams_without_a_size(tmp_path: Path) -> None:
    with (tmp_path / "a.txt.zst").open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for start in range(0, len(LINES), 1000):
            writer.write(LINES[start : start + 1000])
    assert [line for _, line in read_lines(tmp_path / "a.txt.zst")] == LINES.decode().splitlines()


def test_errors_name_the_file(tmp_path: Path) -> None:
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
    for content, says in (
        (frame[:-3], "zstd stream is cut off"),
        (b"bukan zstd sama sekali", "zstd stream is damaged"),
        (frame[:40] + bytes([frame[40] ^ 0xFF]) + frame[41:], "zstd stream is"),
        (b"", "is empty"),
    ):
        (tmp_path / "a.txt.zst").write_bytes(content)
        with pytest.raises(UserError, match=says) as caught:
            list(read_lines(tmp_path / "a.txt.zst"))
        assert "a.txt.zst" in str(caught.value)
