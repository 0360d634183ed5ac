"""Files that are read with clear errors and written whole or not at all.

Readers name the file and the line; writers write beside, fsync and rename, so that a crash leaves the old file or the
new one and never half of either.
"""

from __future__ import annotations

import errno
import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from data_prep.errors import UserError

_BLOCK = 1 << 20


def content_id(text: str) -> str:
    """32 hex digits that identify a text: BLAKE2b-128 of its UTF-8 bytes."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, as 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full, read-only or forbidden disk while writing `path` into a `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"writing {path}",
                "the disk (or your quota) is full",
                "free space or put the run elsewhere with --runs DIR; nothing half-written was kept",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise UserError(
                f"writing {path}", f"not allowed ({error.strerror})", "choose a writable place with --runs DIR"
            ) from error
        raise


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, fsync, and rename over it. Raises `UserError` on a full disk."""
    # two hosts may share the folder and have the same process number
    beside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    with disk_errors(path):
        try:
            with beside.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented, key-sorted JSON, atomically."""
    write_atomically(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read one JSON file. Raises `UserError` where it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(str(path), "no such file", "check the path, or build it with `rumpun run`") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            str(path), f"is not valid JSON ({error})", "restore the file or delete it and run again"
        ) from error


def expand(patterns: list[str], *, what: str) -> list[Path]:
    """The files that the patterns name, sorted, each once.

    A pattern is a file, a folder (its files and those of its folders, hidden ones left out) or a glob. Raises
    `UserError` where a pattern matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if path.is_dir():
            matches = _files_below(path)
        elif path.exists():
            matches = [path]
        else:
            # a broken link stays in the list: whoever reads it says so, instead of passing it over in silence
            matches = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if not os.path.isdir(p))
        if not matches:
            raise UserError(
                f"{what} = {pattern!r}",
                "no such file or folder, and no glob match",
                "check the path (relative paths start at the current folder)",
            )
        found.update(dict.fromkeys(matches))
    return list(found)


def _files_below(folder: Path) -> list[Path]:
    """Files in a folder and its folders, links to folders followed once each."""
    found = []
    seen: set[tuple[int, int]] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in names if not name.startswith(".")]
    return sorted(found)


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed where it ends in `.gz` or `.zst`; errors are those of `read_errors`."""
    if path.suffix == ".zst":
        from data_prep.zst import open_zst

        return open_zst(path)
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


@contextmanager
def read_errors(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Turn what goes wrong while `path` is read into a `UserError`; `line` tells how many lines were read well."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(str(path), "no such file", "check the path") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        name = "zstd" if path.suffix == ".zst" else "gzip"
        raise UserError(
            f"{path}, after line {line()}",
            f"its {name} stream is cut off or damaged ({error})",
            f"copy or download the file again (test it with {name} -t)",
        ) from error
    except OSError as error:
        raise UserError(
            str(path), f"cannot be read ({error.strerror})", "check its permissions and the disk"
        ) from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # known by name: most runs need no zstandard
            raise
        raise UserError(
            f"{path}, after line {line()}",
            f"its zstd stream is damaged ({error})",
            "copy or download the file again (test it with zstd -t)",
        ) from error


def decoded(raw: bytes, path: Path, number: int) -> str:
    """Line `number` of a file as text, without its newline. Raises `UserError` where it is not UTF-8."""
    try:
        # A byte order mark, as Windows editors write it, is not part of the first line.
        return raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}, line {number}",
            f"is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})",
            "convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8",
        ) from error


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 text file (also `.gz`, `.zst`), numbered from 1, without their newline.

    Raises:
        UserError: the file is missing, empty, unreadable, not UTF-8, or its compressed stream ends early or is damaged;
            the message names the file and, where there is one, the line.
    """
    number = 0
    with read_errors(path, lambda: number), open_bytes(path) as stream:
        for number, raw in enumerate(stream, start=1):
            yield number, decoded(raw, path, number)
    if number == 0:
        raise UserError(str(path), "is empty", "remove it from the recipe or put text into it")


def read_jsonl(path: Path, *, required: tuple[str, ...]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON-lines file with their line numbers; blank lines are passed over.

    Raises `UserError` for what `read_lines` refuses, a line that is no JSON object, a missing key of `required`, or a
    required value that is not text.
    """
    for number, line in read_lines(path):
        if not line.strip():
            continue
        yield number, parsed(line, path, number, required=required)


def parsed(line: str, path: Path, number: int, *, required: tuple[str, ...]) -> dict[str, Any]:
    """The JSON object on a line. Raises `UserError` as `read_jsonl` does."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # also: a number too long for Python, brackets too deep
        reason = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        reason = reason.replace(" starting at at column", " that starts at column")
        raise UserError(f"{path}, line {number}", f"is not JSON ({reason})", "mend or remove the line") from error
    if not isinstance(row, dict):
        raise UserError(
            f"{path}, line {number}",
            f"is a JSON {type(row).__name__}, not an object",
            'write {"text": …} on every line',
        )
    for key in required:
        if not isinstance(row.get(key), str):
            found = "missing" if key not in row else f"a {type(row[key]).__name__}"
            raise UserError(
                f"{path}, line {number}",
                f"{key!r} is {found}, must be text; its fields are {', '.join(list(row)[:12]) or 'none'}",
                f"give every line a {key!r} field with a string",
            )
    return row
