"""The repair that every text goes through, whatever it was read from."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

# Invisible characters that survive repair: zero-width space, soft hyphen, word joiner, byte order mark, and the
# marks of writing direction. The joiners U+200C and U+200D stay: Tamil and emoji need them.
_INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SPACES = re.compile(r"[^\S\n]+")
_LINE_EDGES = re.compile(r" ?\n ?")
# All that a step of ftfy other than mojibake and NFC looks for (HTML entities, line breaks of every kind, controls,
# escapes, surrogates, annotations), and what _INVISIBLE removes.
_WORK = re.compile(
    "[&\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u206f\ud800-\udfff\ufeff\ufff9-\ufffc]"
)
# Beyond ASCII and these marks of punctuation (which NFC leaves alone) lies all that can make a text look like mojibake.
_UNUSUAL = re.compile("[^\x00-\x7f‘’“”–—…•]")
_UNEVEN = re.compile(r"[^\S\n ]|  | \n|\n ")


def text_cleaner() -> Callable[[str], str]:
    """The repair that every text goes through.

    Mojibake and lone surrogates are mended (ftfy), NFC, control and invisible characters removed, runs of spaces made
    one; line breaks, quotes and full-width punctuation (which Chinese needs) stay.
    """
    import ftfy
    from ftfy.badness import is_bad

    config = ftfy.TextFixerConfig(
        uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, normalization="NFC", explain=False
    )

    def clean(text: str) -> str:
        # Most texts need none of it, and to see that is several times as quick as to do it.
        usual = not _UNUSUAL.search(text) or (unicodedata.is_normalized("NFC", text) and not is_bad(text))
        if not usual or _WORK.search(text):
            text = _INVISIBLE.sub("", ftfy.fix_text(text, config))
        if _UNEVEN.search(text):
            text = _LINE_EDGES.sub("\n", _SPACES.sub(" ", text))
        return text.strip()

    return clean
