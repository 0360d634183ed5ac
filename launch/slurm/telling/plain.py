"""Text from logs and from the scheduler, made safe to show: nothing in it can drive a terminal."""

from __future__ import annotations

import re
import unicodedata

_SEQUENCES = re.compile(
    r"\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?"  # title and clipboard
    r"|[\x1b\x9b]\[?[0-?]*[ -/]*[@-~]?"  # colours, cursor, reports
)


def plain(text: object, most: int | None = None) -> str:
    """`text` on one line, terminal sequences left out and other control characters shown as escapes.

    Args:
        most: characters to keep; what is longer ends with an ellipsis.
    """
    cleaned = _SEQUENCES.sub("", str(text)).replace("\t", "    ")
    shown = "".join(c if unicodedata.category(c)[0] != "C" else c.encode("unicode_escape").decode() for c in cleaned)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 1]}…"


def first_line(text: object, most: int = 200) -> str:
    """The first line of a text that says something, made safe to show."""
    return next((plain(line.strip(), most) for line in str(text).splitlines() if line.strip()), "")
