"""A node's lines to the controller, in pieces that the scheduler's standard output carries reliably.

SLURM forwards the standard output of a step in messages of 1,024 bytes. On 22.05 a line that needs more than one was
not delivered in 5 to 20 % of all cases (its end stayed in the node's daemon until more was written); of lines below
that none was lost in thousands. So every line is cut, and put together again per node:

    TOKEN NODE k/n TEXT     the k-th of n pieces (from 1) of a line of JSON

The token marks them: whatever a library prints beside does not disturb.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

PIECE = 800  # bytes of text; token, node and numbers stay below the 224 that are left, and a name of 100 is long


def cut(token: str, node: str, line: Mapping[str, Any]) -> bytes:
    """The line as it is written, all of its pieces. ASCII, so that no character is cut in two."""
    text = json.dumps(line, separators=(",", ":"), ensure_ascii=True)
    pieces = [text[begin : begin + PIECE] for begin in range(0, len(text), PIECE)]
    # the leading newline ends what a library may have written without one
    return b"".join(
        f"\n{token} {node} {number}/{len(pieces)} {piece}\n".encode() for number, piece in enumerate(pieces, 1)
    )


class Joined:
    """Lines out of pieces, of all nodes in any order."""

    def __init__(self, token: str) -> None:
        self._mark = f"{token} ".encode()
        self._begun: dict[str, list[str]] = {}

    def take(self, written: bytes) -> dict[str, Any] | None:
        """One line of standard output in; the line of JSON that it completes, or None."""
        _, found, rest = written.partition(self._mark)
        if not found:
            return None
        with suppress(ValueError):
            node, place, piece = rest.decode().removesuffix("\n").split(" ", 2)
            number, total = map(int, place.split("/"))
            if number == 1:
                self._begun[node] = []
            pieces = self._begun.get(node, [])
            if len(pieces) != number - 1:  # one in between was lost: what is left of the line says nothing
                self._begun.pop(node, None)
                return None
            pieces.append(piece)
            if number == total:
                del self._begun[node]
                whole = json.loads("".join(pieces))
                return whole if isinstance(whole, dict) else None
        return None
