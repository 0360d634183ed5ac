"""Whether a Malay phrase can be asked about: it is understood alone, and is a noun phrase or a clause as needed."""

from __future__ import annotations

import re

from data_prep.synth.malay_words import NO_SUBJECT, POINTERS, VERB

_MAX_SUBJECT = 9
_HANGING = re.compile(
    r"\b(?:bukan|bukanlah|dek|adalah|ialah|oleh|atau|dan|yang|tidak|hanya|untuk|bagi|dengan|di|ke|dari|daripada|pada|"
    r"sebagai|adalah bagi|mungkin|sebahagiannya|terutama|khususnya|boleh|akan|telah|dapat|serta|tak|bukannya|perlu|"
    r"bermula|mulai|merupakan|hendaklah|mestilah|haruslah|kadangkala|sering|selalu|biasanya|pasti|mula|masih|terus|gagal|lebih|semakin|kurang|paling|sangat|amat|seperti)$"
)

# "Fasal 7" is the seventh clause of any bill.
_NUMBERED = re.compile(
    r"^(?:sub)?(?:fasal|seksyen|bahagian|jadual|perkara|perenggan|artikel|pasal) [\w()]+$", re.IGNORECASE
)


def verb_in(phrase: str) -> bool:
    """Whether a phrase holds a word with the prefix of a verb, outside a relative clause (yang …)."""
    return VERB.search(phrase.partition(" yang ")[0]) is not None


def inside(phrase: str) -> str:
    """A noun phrase as it stands inside a sentence: its first word is a name only where another name follows, or "
    "alone."""
    first, _, rest = phrase.partition(" ")
    return f"{first.lower()} {rest}" if rest and first.istitle() and rest.islower() else phrase


def is_subject(phrase: str, *, most: int = _MAX_SUBJECT) -> bool:
    """Whether a phrase of at most `most` words can stand as a subject that is understood alone."""
    parts = phrase.split()
    if not 1 <= len(parts) <= most or "," in phrase or parts[0].lower() in NO_SUBJECT or _HANGING.search(phrase):
        return False
    if POINTERS.search(phrase) or verb_in(phrase) or _NUMBERED.match(phrase):
        return False
    return any(len(part) > 2 for part in parts)


def is_clause(clause: str, *, most: int = 18) -> bool:
    """Whether a clause can be asked about: it names its subject, and says something of it."""
    parts = clause.split()
    if not 3 <= len(parts) <= most or "," in clause or parts[0].lower() in NO_SUBJECT or _HANGING.search(clause):
        return False
    if POINTERS.search(clause) or " yang " in clause or VERB.match(clause):
        return False
    # A name, a number or a long noun phrase tells which event is meant; "harga naik" does not.
    return any(part[0].isupper() for part in parts) or len(parts) >= 6


_EMPTY = re.compile(
    r"^(?:yang|boleh|dapat|perlu|sering|selalu|harus|wajar|akan|telah|patut|di\w+|ter\w+|utama|paling|lebih|oleh|"
    r"dengan|dalam|pada|untuk|bagi|dan|baik|besar|penting|khusus|perhatian|ketara|masalah|ibu|bapa|"
    r"berlaku|ada|wujud|lain|mata|kasar|setiap|individu)$"
)


def says_which(phrase: str) -> bool:
    """Whether "faktor yang menyebabkan …" says enough to be looked up; "cara yang terbaik" does not."""
    telling = [part for part in phrase.split()[1:] if not _EMPTY.match(part.lower())]
    return len(telling) >= (3 if " yang " in phrase else 1)
