"""English sentences turned into questions.

English inverts and conjugates, so a rule asks only where an auxiliary stands ready to be moved ("was founded in 1957" →
"When was … founded?") or the sentence defines something. Every rule takes a sentence without its full stop and gives
(kind, question) or None.
"""

from __future__ import annotations

import re

_POINTERS = re.compile(
    r"\b(?:he|she|it|its|they|them|their|theirs|his|her|him|this|that|these|those|we|us|our|i|my|me|you|your|here|"
    r"there|"
    r"such|said|former|latter|above|below|following|yesterday|today|tomorrow|tonight|now|then|also|however|another|"
    r"other|same|who|whom|which|whose|when|where|while|because|since|although|if|but)\b",
    re.IGNORECASE,
)
_OPENERS = """
and or but so if when while after before since because although though as at by for from in into of on to under with
without within during through there here what who why how which where not no one some most many all both each every
any among between besides according meanwhile moreover furthermore first second third next finally thus hence
therefore using based given despite unlike like having being let please only even just once until unless
"""
_NO_SUBJECT = frozenset(_OPENERS.split())
_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    r"Jan|Feb|Aug|Sept|Oct|Nov|Dec)"
)
_DATE = (
    rf"(?:{_MONTH} \d{{1,2}},? \d{{4}}|\d{{1,2}} {_MONTH}(?:,? \d{{4}})?|{_MONTH},? \d{{4}}|{_MONTH} \d{{1,2}}|"
    r"(?:the )?(?:1[5-9]|20)\d\ds?)"
)
_IS = re.compile(r"^(?P<subject>.{2,90}?) (?P<verb>is|are|was|were) (?P<rest>(?:a|an|the|one of) .+)$")
_MEANS = re.compile(
    r"^(?P<subject>.{2,60}?) (?:refers? to|means?|is defined as|are defined as|is known as|denotes?) (?P<rest>.+)$"
)
_PASSIVE = re.compile(
    r"^(?P<subject>.{2,90}?) (?P<verb>is|are|was|were) "
    r"(?P<participle>\w+(?:ed|en|ilt|eld|ung|ade|et|ound|un|orn|ught|own))"
    r"(?P<middle>(?: [\w'’-]+){0,8}?) (?P<how>in|on|by|at) (?P<answer>.+)$"
)
_SETTLED = frozenset(["located", "held", "situated", "based", "built", "born", "established", "founded", "buried"])
_PLACE = re.compile(r"^(?:the )?[A-Z][\w'’-]+(?:,? (?:[A-Z][\w'’-]+|of|and|the))*$")
_WHO = re.compile(r"^(?:the )?[A-Z][\w'’.-]+(?: [A-Z][\w'’.-]+)*$")
_HUMAN = re.compile(
    r"^(?:a|an|the|one of(?: the)?) (?:\w+ ){0,3}(?:analyst|lecturer|activist|lawyer|coach|actor|actress|singer|"
    r"politician|minister|president|founder|writer|"
    r"author|player|leader|scholar|king|queen|sultan|poet|director|scientist|teacher|professor|chief|chairman|"
    r"officer)\b",
    re.IGNORECASE,
)
# Praise, comparison and examples define nothing.
_OPINION = re.compile(
    r"^(?:the |an? )?(?:most|best|key|only|main|reason|outcome|result|same|must|attempt|serious|example|one|once|"
    r"bigger|"
    r"promising|great|good|important|major|big|first|second|last)\b|^one of|^the \w+(?:s|ing)? of (?:the|his|her|"
    r"their)\b"
)
_PURPOSE = re.compile(
    r"^[Tt]he (?P<what>(?:main |primary |key )?(?:purpose|aim|goal|objective|role|function)) of (?P<subject>.{4,80}?) "
    r"(?P<verb>is|was) (?P<rest>(?:to|a|an|the) .+)$"
)
_WHY = re.compile(
    r"^(?P<subject>.{2,80}?) (?P<verb>is|are|was|were|has|have|had|can|could|will|would|must|should) (?P<rest>.+?) "
    r"because(?: of)? (?P<reason>.+)$"
)
_QUOTED = re.compile(r"^[\"“](?P<term>[^\"”]{2,60})[\"”],? (?:means|includes|has the (?:same )?meaning|refers to)\b")
_MAX_SUBJECT = 9


def definition_in_quotes(sentence: str) -> tuple[str, str] | None:
    """("definition", question) of a definition as laws write it: "share" means …"""
    match = _QUOTED.match(sentence)
    return ("definition", f'What is the meaning of "{match["term"].strip()}"?') if match else None


def question_of(sentence: str) -> tuple[str, str] | None:
    """(kind, question) of a sentence without its full stop, or None."""
    for rule in (_purpose, _why, _passive, _means, _is):
        made = rule(sentence)
        if made:
            return made
    return None


def _subject(phrase: str, *, most: int = _MAX_SUBJECT) -> bool:
    words = phrase.split()
    if not 1 <= len(words) <= most or "," in phrase or words[0].lower() in _NO_SUBJECT or _POINTERS.search(phrase):
        return False
    if words[-1].lower() in ("of", "in", "and", "or", "to", "the") or re.search(
        r"\b(?:is|are|was|were|has|have)\b", phrase
    ):
        return False
    # "the proposal" is known from the text alone; "the Quran" is known.
    return not (words[0].lower() == "the" and len(words) <= 3 and phrase[4:].islower())


def _is(sentence: str) -> tuple[str, str] | None:
    match = _IS.match(sentence)
    if not match or not _subject(match["subject"]):
        return None
    subject, verb = match["subject"], match["verb"]
    if _HUMAN.match(match["rest"]):
        named = all(word[0].isupper() for word in subject.split())
        return ("person", f"Who {verb} {subject}?") if named else None
    if (
        verb in ("was", "were") or _OPINION.match(match["rest"]) or re.match(r"(?:Dr|Prof|Mr|Mrs)\b", subject)
    ):  # "the result was a surprise" answers nothing that one would look up
        return None
    return "definition", f"What {verb} {subject}?"


def _means(sentence: str) -> tuple[str, str] | None:
    match = _MEANS.match(sentence)
    if not match or not _subject(match["subject"], most=6):
        return None
    return "definition", f"What is the meaning of {match['subject']}?"


def _passive(sentence: str) -> tuple[str, str] | None:
    match = _PASSIVE.match(sentence)
    if not match or not _subject(match["subject"]) or _POINTERS.search(match["middle"]) or "," in match["middle"]:
        return None
    subject, answer, how = match["subject"], match["answer"], match["how"]
    words = subject.split()
    # "The meeting was held in 1957" does not tell which meeting.
    if not any(word[0].isupper() for word in words[1:]) and len(words) < 3 and words[0].lower() in ("the", "a", "an"):
        return None
    event = f"{match['verb']} {subject} {match['participle']}{match['middle']}"
    if how in ("in", "on") and re.match(
        rf"^{_DATE}(?:$|,| (?:in|by|at|and|with|to|for|after|before|as|near)\b)", answer
    ):
        return "date", f"When {event}?"
    if how in ("in", "at") and match["participle"] in _SETTLED and _PLACE.match(answer):
        return "place", f"Where {event}?"
    if how == "by" and _WHO.match(re.split(" in | on | at ", answer)[0]):
        return "agent", f"By whom {event}?"
    return None


def _purpose(sentence: str) -> tuple[str, str] | None:
    match = _PURPOSE.match(sentence)
    if not match or _POINTERS.search(match["subject"]):
        return None
    if re.search(r"\b(?:paper|study|article|research)\b", match["subject"]):
        return None
    return "purpose", f"What {match['verb']} the {match['what']} of {match['subject']}?"


def _why(sentence: str) -> tuple[str, str] | None:
    match = _WHY.match(sentence)
    if not match or not _subject(match["subject"]) or _POINTERS.search(match["rest"]) or "," in match["rest"]:
        return None
    if not 1 <= len(match["rest"].split()) <= 14 or len(match["reason"].split()) < 3:
        return None
    return "reason", f"Why {match['verb']} {match['subject']} {match['rest']}?"
