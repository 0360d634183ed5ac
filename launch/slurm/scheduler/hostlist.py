"""`node[1-3,07],login1` as single names, in the scheduler's order, without asking it."""

from __future__ import annotations

import re
from itertools import product


def expand(text: str) -> list[str]:
    """The names in a node list; a list that is cut off or malformed gives what can be read of it."""
    names: list[str] = []
    for item in _split(text.strip()):
        pieces = [_choices(piece) for piece in re.split(r"(\[[^\]]*\])", item) if piece]
        names += ["".join(parts) for parts in product(*pieces)] if pieces else []
    return names


def _split(text: str) -> list[str]:
    """Cut at the commas outside brackets."""
    return [item for item in re.split(r",(?![^\[]*\])", text) if item]


def _choices(piece: str) -> list[str]:
    """`[1-3,07]` as 1, 2, 3, 07; a piece without brackets as itself. Zeros in front are kept."""
    if not piece.startswith("["):
        return [piece]
    found = []
    for part in piece.strip("[]").split(","):
        first, dash, last = part.partition("-")
        if dash and first.isdigit() and last.isdigit() and len(last) <= 6:
            found += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        elif part:
            found.append(part)
    return found
