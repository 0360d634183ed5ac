"""The repair that every text goes through, whatever it was read from."""

from __future__ import annotations

import re
from collections.abc import Callable

# Invisible characters that survive repair: zero-width space, soft hyphen, word joiner, byte order mark, and the
# marks of writing direction. The joiners U+200C and U+200D stay: Tamil and emoji need them.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SPACES = re.compile(r"[^\S\n]+")
_LINE_EDGES = re.compile(r" ?\n ?")


def text_cleaner() -> Callable[[str], str]:
    """The repair that every text goes through.

    Mojibake and lone surrogates are mended (ftfy), NFC, control and invisible characters removed, runs of spaces made
    one; line breaks, quotes and full-width punctuation (which Chinese needs) stay.
    """
    import ftfy

    config = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, normalization="NFC", explain=False
    )

    def clean(text: str) -> str:
        repaired = _INVISIBLE.sub("", ftfy.fix_text(text, config))
        return _LINE_EDGES.sub("\n", _SPACES.sub(" ", repaired)).strip()

    return clean
