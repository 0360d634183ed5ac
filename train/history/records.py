"""One line of a ledger: JSON, sealed with a hash over itself and everything before it.

Invariant: the `chain` of a line is BLAKE2b-128 of the chain before it and of the line without its own, so a line that
was edited, removed, put in or moved breaks the chain at that place. It shows accidents and careless hands; whoever can
write the file can also seal it anew, which is why train/history/verify.py believes no line for its seal alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FORMAT = 1
_SEAL = b',"chain":"'
_SEAL_BYTES = len(_SEAL) + 32 + len(b'"}\n')


class LedgerFault(UserError):
    """What a ledger says cannot be true.

    Args:
        line: of the file, from 1. what: is wrong with it.
    """

    def __init__(self, path: Path, line: int, what: str) -> None:
        super().__init__(
            f"{path}, line {line}",
            what,
            "put the ledger back from a copy; if nobody has touched it, the run did not use its samples as it should",
        )
        self.path, self.line = path, line


def sample_table(samples: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """(source, row) pairs as an array [n, 2]."""
    import numpy as np

    return np.fromiter(chain.from_iterable(samples), np.int64, 2 * len(samples)).reshape(-1, 2)


def order_hash(samples: Sequence[tuple[int, int]] | NDArray[np.int64]) -> str:
    """BLAKE2b-128, in hex, of (source, row) pairs as little-endian 64-bit integers, in their order."""
    import numpy as np

    return hashlib.blake2b(np.asarray(samples, "<i8").tobytes(), digest_size=16).hexdigest()


def number(value: float | None) -> float | str | None:
    """A number as JSON can hold it: "nan", "inf" and "-inf" become text, which `float` reads."""
    return value if value is None or math.isfinite(value) else str(float(value))


def seal(record: Mapping[str, Any], previous: str) -> tuple[bytes, str]:
    """(the line of a record with its newline, its chain), after a line whose chain is `previous`."""
    body = json.dumps(record, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    sealed = _chain(body, previous)
    return body[:-1] + _SEAL + sealed.encode() + b'"}\n', sealed


def chain_of(line: bytes) -> str | None:
    """The chain that a line with its newline claims, None where it has none."""
    if line.endswith(b'"}\n') and line[-_SEAL_BYTES:].startswith(_SEAL):
        return line[-_SEAL_BYTES + len(_SEAL) : -3].decode("ascii", "replace")
    return None


def follows(line: bytes, previous: str) -> bool:
    """Whether a line's seal is right after a line whose chain is `previous`."""
    return chain_of(line) == _chain(line[:-_SEAL_BYTES] + b"}", previous)


def _chain(body: bytes, previous: str) -> str:
    return hashlib.blake2b(previous.encode() + body, digest_size=16).hexdigest()


def sealed_lines(path: Path, name: Path | None = None) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, byte offset, line) of every line whose seal holds.

    What a crash has left of the last line is passed over. Raises `LedgerFault` for a broken seal anywhere else; it
    tells of the file as `name`, where that is given.
    """
    name = name or path
    previous, offset = "", 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            if not follows(line, previous):
                if file.read(1):
                    raise LedgerFault(
                        name, line_number, "its seal does not follow from the lines before it: one was edited, "
                        "removed, put in or moved",
                    )  # fmt: skip
                if line.endswith(b"\n") and chain_of(line):  # whole, so no crash has torn it
                    raise LedgerFault(name, line_number, "its seal is wrong: it, or a line before it, was changed")
                return
            yield line_number, offset, line
            previous = chain_of(line) or ""
            offset += len(line)


def parse(path: Path, line_number: int, line: bytes) -> dict[str, Any]:
    """The record of a sealed line. Raises `LedgerFault` where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LedgerFault(path, line_number, f"is not JSON ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        raise LedgerFault(path, line_number, "is not a record with a kind")
    return record
