from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.files import expand, read_jsonl, read_lines, sha256_file, write_atomically


def _error(path: Path, required: tuple[str, ...] = ("text",)) -> str:
    with pytest.raises(UserError) as caught:
        list(read_jsonl(path, required=required))
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and "Fix:" in message
    return message


def test_missing_file(tmp_path: Path) -> None:
    assert "no such file" in _error(tmp_path / "a.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert "is empty" in _error(tmp_path / name)


def test_half_a_gzip_file(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"text": "baris nombor %d"}\n' % n for n in range(5000)))
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    assert "gzip stream is cut off" in _error(tmp_path / "a.jsonl.gz")


def test_not_gzip_at_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(b'{"text": "terus"}\n')
    assert "damaged" in _error(tmp_path / "a.jsonl.gz")


def test_not_utf8_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "baik"}\n{"text": "caf\xe9"}\n')
    message = _error(tmp_path / "a.jsonl")
    assert "line 2" in message and "0xe9" in message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "list, not an object"),
        ('{"teks": "x"}', "'text' is missing"),
        ('{"text": 5}', "'text' is a int"),
        ('{"text": null}', "'text' is a NoneType"),
        ('{"n": ' + "9" * 5000 + "}", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_bad_lines(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "baik"}\n\n' + line + "\n")
    message = _error(tmp_path / "a.jsonl")
    assert says in message and "line 3" in message


def test_unreadable_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "x"}\n')
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything (root)")
    assert "cannot be read" in _error(path)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    assert "cannot be read" in _error(tmp_path)


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfsatu\r\ndua\n")
    assert list(read_lines(tmp_path / "a.txt")) == [(1, "satu"), (2, "dua")]


def test_expand(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", ".hidden"):
        (tmp_path / name).write_text(name)
    both = [tmp_path / "a.txt", tmp_path / "b.txt"]
    assert expand([str(tmp_path)], what="x") == both
    assert expand([str(tmp_path / "*.txt"), str(tmp_path / "b.txt")], what="x") == both
    with pytest.raises(UserError, match=r"corpus.files = .*no such file"):
        expand([str(tmp_path / "*.gz")], what="corpus.files")


def test_write_atomically_replaces_and_leaves_nothing_beside(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_atomically(path, b"satu")
    first = sha256_file(path)
    write_atomically(path, b"dua")
    assert path.read_bytes() == b"dua" and sha256_file(path) != first
    assert os.listdir(tmp_path) == ["x"]
