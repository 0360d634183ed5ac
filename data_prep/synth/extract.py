"""Questions that one sentence of a text answers, turned round by rules of Malay, Indonesian and English.

Invariant: a question is read from a single sentence that stands by itself: it names its subject, has no pronoun and no
"itu", "tersebut", "this" that points elsewhere, and is not part of a quotation. A sentence that no rule surely
understands gives nothing: few questions that are right are worth more than many that are nearly right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from data_prep.synth import english, malay
from data_prep.synth.malay_facts import office
from data_prep.synth.sentences import sentences
from data_prep.synth.studies import about_study

_DATELINE = re.compile(r"^[A-Z][A-Z .,'()]{2,40}(?:\d{1,2} \w{3,9}\.?|:|\s[-–—])?\s?[-–—:]\s+")
_NOISE = re.compile(r"[\"“”«»<>{}\[\]|•_]|https?:|\.\.|\(\w{1,3}\)|\w/\w+/|^[-–—*(]|\d+\)|;|:\s")
# What pages put before their text: buttons for the size of letters, labels of speakers.
_FURNITURE = re.compile(r"^(?:A\+ A-\s+)?(?:[A-Z]{4,12}: )?")
_CLAUSE = re.compile(r"^\(?\d{1,3}[A-Z]?[.)]\s+(?:\(\d{1,3}\)\s+)?")
_LOWER = re.compile(r"\b[a-z][a-z'-]+\b")
# Nouns and verbs built with affixes are no names.
_DERIVED = re.compile(
    r"(?:pe[mnrl]\w+an|ke\w{3,}an|pe(?:ng|ny)\w+|me[mn]\w{4,}|se(?:orang|buah|ramai|banyak|jumlah)|(?:the|a|an)$)"
)
MIN_WORDS, MAX_WORDS = 4, 32
"""Of the sentence: shorter ones are labels, longer ones hold clauses that the rules do not see."""


@dataclass(frozen=True)
class Extracted:
    """A question with its answer.

    Attributes:
        question: ends with a question mark.
        sentence: the sentence that it was read from.
        kind: the rule: definition, date, place, number, reason, purpose, agent, penalty, study …
    """

    question: str
    sentence: str
    kind: str


def extract(text: str, language: str, title: str = "") -> list[Extracted]:
    """All questions of a text, in its order, at most one a sentence.

    Args:
        text: a chunk, without its title.
        language: ms, id, en; `mixed` and `und` are tried as Malay, then as English; others give nothing.
        title: of the document; questions of kind `study` hold it.
    """
    plain = lower_words(text)
    found: list[Extracted] = []
    seen: set[str] = set()
    for sentence in sentences(text):
        made = of_sentence(sentence, language, plain, title)
        if made and made.question.lower() not in seen:
            seen.add(made.question.lower())
            found.append(made)
    return found


def lower_words(text: str) -> frozenset[str]:
    """The words that a text writes in lower case: no names, whatever they look like at the head of a sentence."""
    return frozenset(_LOWER.findall(text))


def of_sentence(
    sentence: str, language: str, plain_words: frozenset[str] = frozenset(), title: str = ""
) -> Extracted | None:
    """The question that a sentence answers, or None. `plain_words`: see `lower_words`; `title`: see `extract`."""
    plain = " ".join(
        _CLAUSE.sub("", _DATELINE.sub("", _FURNITURE.sub("", sentence.replace("\n", " ").strip()))).split()
    )
    if plain[-1:] not in (".", "!", '"', "”"):
        return None  # a heading, a list entry, a question
    malay_like = language in ("ms", "id", "mixed", "und")
    made: tuple[str, str] | None = None
    for room in ([malay] if malay_like else []) + ([english] if language in ("en", "mixed", "und") else []):
        made = made or room.definition_in_quotes(plain)
    made = made or about_study(plain, title, language)
    words = len(plain.split())
    if made is None and MIN_WORDS <= words <= MAX_WORDS and plain[0].isupper() and not _NOISE.search(plain):
        bare = _cased(plain.rstrip(".!").strip(), plain_words)
        made = malay.question_of(bare, indonesian=language == "id") if malay_like else None
        if made is None and language in ("en", "mixed", "und"):
            made = english.question_of(bare)
    if made is None and malay_like and language != "id":
        made = office(plain)
    return Extracted(made[1], sentence, made[0]) if made else None


def _cased(sentence: str, plain_words: frozenset[str]) -> str:
    """The sentence with its first word as it would stand inside one; a word that may be a name keeps its capital."""
    first, _, rest = sentence.partition(" ")
    lower = first.lower()
    if not (lower in plain_words or _DERIVED.match(lower)) or (rest.split(" ")[0].isupper() and first.isupper()):
        return sentence
    return f"{lower} {rest}"
