"""Standard Malay or English questions in the spelling of chats and forums."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator

# Said the same by nearly everyone: always put in.
_SURE = {
    "apakah": "apa", "siapakah": "siapa", "bilakah": "bila", "mengapakah": "kenapa", "mengapa": "kenapa",
    "bagaimanakah": "macam mana", "bagaimana": "macam mana", "berapakah": "berapa", "manakah": "mana",
    "ramaikah": "ramai", "banyakkah": "banyak", "adakah": "ada ke", "tidak": "tak", "tiada": "takde", "hendak": "nak",
    "ialah": "tu", "adalah": "tu", "telah": "dah", "sudah": "dah", "tersebut": "tu", "itu": "tu", "ini": "ni",
    "sahaja": "je", "mereka": "diorang", "mahu": "nak", "apabila": "bila", "sekiranya": "kalau", "jika": "kalau",
    "kerana": "sebab", "karena": "sebab", "oleh": "oleh", "hanya": "just", "merupakan": "tu",
}  # fmt: skip
# Shortened by some: put in with `_HABIT`, all of one kind or none, as one person writes.
_SHORT = {
    "yang": "yg", "untuk": "utk", "dengan": "dgn", "dalam": "dlm", "orang": "org", "kepada": "kpd", "daripada": "drpd",
    "boleh": "blh", "sangat": "sgt", "banyak": "byk", "juga": "jgk", "lagi": "lg", "semua": "smua", "seperti": "mcm",
    "macam": "mcm", "kenapa": "knp", "sebab": "sbb", "pasal": "psl", "bagi": "bg", "pada": "pd", "akan": "akn",
    "dapat": "dpt", "belum": "blm", "kalau": "klu", "bukan": "bkn", "dan": "n", "tempat": "tmpt", "malam": "mlm",
}  # fmt: skip
_ENGLISH = {
    "you": "u", "your": "ur", "please": "pls", "because": "coz", "people": "ppl", "between": "btw", "are": "r",
    "with": "w", "what is": "whats", "who is": "whos", "before": "b4", "through": "thru", "about": "abt",
}  # fmt: skip
_HABIT = 0.6
_MALAY_TAILS = ("", "", " ek", " eh", " ya", " weh", "? ada sape tau")
_ENGLISH_TAILS = ("", "", " ah", " ya", "? anyone knows")
_MALAY_HEADS = ("", "", "", "nak tanya ", "eh ", "korang ")
_WORD = re.compile(r"[A-Za-z][\w'’-]*")
_WHERE = re.compile(r"\bdi mana(?:kah)?\b", re.IGNORECASE)
_IS_WHAT = re.compile(r"^(apa|siapa) ([^?]{3,50})$")


def colloquial(question: str, language: str, generator: Generator) -> str | None:
    """The question as it is typed in a chat, or None where nothing in it would change.

    Args:
        question: standard Malay, Indonesian or English.
        language: its tag; other languages give None.
        generator: draws one writer's habits.
    """
    if language not in ("ms", "id", "en"):
        return None
    text = question.rstrip("?").strip()
    short = bool(generator.random() < _HABIT)
    if language == "en":
        text = _replace(text, _ENGLISH if short else {})
        tail = _ENGLISH_TAILS[int(generator.integers(len(_ENGLISH_TAILS)))]
        head = ""
    else:
        text = _WHERE.sub("kat mana", text)
        text = _replace(text, _SURE)
        if short:
            text = _replace(text, _SHORT)
        if (match := _IS_WHAT.match(text)) and len(text.split()) <= 7 and generator.random() < 0.5:
            text = f"{match[1]} tu {match[2]}"
        tail = _MALAY_TAILS[int(generator.integers(len(_MALAY_TAILS)))]
        head = _MALAY_HEADS[int(generator.integers(len(_MALAY_HEADS)))]
    text = f"{head}{text}"
    if generator.random() < 0.7:
        text = text.lower()
    mark = "" if generator.random() < 0.5 else "?"
    made = f"{text}{tail}{mark}"
    return made if made.lower().rstrip("?") != question.lower().rstrip("?") else None


def _replace(text: str, table: dict[str, str]) -> str:
    """Whole words by the table, read without case."""
    return _WORD.sub(lambda match: table.get(match.group().lower(), match.group()), text)
