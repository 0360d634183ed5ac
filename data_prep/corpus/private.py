"""Personal data in running text → placeholders: web addresses, e-mail, MyKad numbers, phone numbers, handles.

Every kind is a pattern plus, for numbers, a check that ordinary numbers fail: a MyKad number holds a date and a known
place of birth, a phone number has the length that its area code asks for. Of 4,000 numbers that the library
phonenumbers calls valid in Malaysia and writes in three ways, 99.2 % are found (not: toll-free ones, which name no
person). What is removed is counted, and shown masked.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from data_prep.config import Section

Kind = Literal["url", "email", "ic", "phone", "user"]
KINDS: tuple[Kind, ...] = ("url", "email", "ic", "phone", "user")

_TOP = r"(?:com|net|org|info|biz|edu|gov|mil|co|ac|or|go|web|sch)"
_COUNTRY = r"(?:my|sg|id|bn|th|uk|au|us|in|cn|jp|tw|hk|io|me|ly|tv|gl|be|gd|la|cc)"
_URL = re.compile(
    # with a scheme or www; or a bare name that ends as names of hosts do and does not go on as a word
    rf"(?:https?://|ftp://|(?<![\w.@-])www\.)[^\s<>\"“”]+"
    rf"|(?<![\w.@/-])(?:[a-z0-9][a-z0-9-]{{0,62}}\.){{1,4}}"
    rf"(?:(?:{_TOP}\.{_COUNTRY}|com|net|org|info|biz)(?![\w-]|\.\w|@)(?:/[^\s<>\"“”]*)?|{_COUNTRY}/[^\s<>\"“”]+)",
    re.IGNORECASE,
)
_URL_END = ".,;:!?'’…)]}*_"
_EMAIL = re.compile(r"(?<![\w.+-])[\w+-](?:[\w.+-]{0,63})@(?:[\w-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![\w-])")
_USER = re.compile(
    r"(?<![\w@./#&=+-])@(?=[\w.]*[A-Za-z_])(?!\d{1,4}(?:am|pm)\b)[A-Za-z0-9_](?:[\w.]{0,28}\w)(?!\w|@)", re.A
)
_IC = re.compile(r"(?<![\w.,/+-])(\d{2})(\d{2})(\d{2})([- ]?)(\d{2})\4(\d{4})(?![\w/-]|[.,]\d)")
_PHONE = re.compile(
    r"(?<![\w.,/@#$%=-])"  # not inside a longer number, a price, an amount or a path
    r"(?:(?P<abroad>\+(?!60)\d{1,3}[ -]?(?:\(\d{1,4}\)[ -]?)?\d{1,4}(?:[ -]?\d{2,4}){2,4})"
    r"|(?:(?P<home>\+?60)[ -]?(?:\(0\)[ -]?)?|\(?0)"
    r"(?:(?P<mobile>1\d)\)?(?P<gap>[ -]{0,3})(?P<mobile_rest>"
    r"\d{3,4}[ -]?\d{4}|\d{3}[ -]?\d{2}[ -]?\d{2,3}|\d[ -]\d{3}[ -]?\d{4})"
    r"|(?P<area>[34-79]|8[2-9])\)?(?P<area_gap>[ -]{0,3})(?P<area_rest>\d{3,4}[ -]?\d{3,4})))"
    r"(?![\w@/]|-\d|[.,]\d)"
)
_NUMBER_WORDS = re.compile(
    r"(?:isbn|issn|rm|usd|no\.? ?(?:akaun|acc\w*|resit|siri|rujukan)|akaun|acc\w*)[\s.:#-]{0,3}$", re.I
)
# Old and present codes of the states (01-59) and those of other countries; 00, 17-20, 69, 70, 73, 80, 81 and 94-97 are
# not given out.
_PLACES = frozenset(range(1, 17)) | frozenset(range(21, 60)) | frozenset(range(60, 69)) | frozenset((71, 72))
_PLACES |= frozenset(range(74, 80)) | frozenset(range(82, 94)) | frozenset((98, 99))
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_MOBILE_DIGITS = {"11": (8,), "15": (8,), "19": (7, 8)}
_AREA_DIGITS = {"3": (8,), "4": (7,), "5": (7,), "6": (7,), "7": (7,), "9": (7,)}


class PrivateConfig(Section):
    """`[corpus.private]`: which personal data become placeholders."""

    enabled: bool = True
    """Replace personal data. On: social text is full of it, models repeat what they read, and no task here needs it."""
    kinds: list[Kind] = Field(default_factory=lambda: list(KINDS))
    """Which kinds: `url` → <URL>, `email` → <EMAIL>, `ic` (MyKad number) → <IC>, `phone` → <PHONE>, `user` (a handle)
    → <USER>."""


@dataclass(frozen=True)
class Removed:
    """One thing that was replaced.

    Attributes:
        kind: what it was. shown: it and the words around it, all but its first characters masked.
    """

    kind: Kind
    shown: str


class Scrubber:
    """Replaces personal data in texts. Placeholders of an earlier pass stay as they are."""

    def __init__(self, config: PrivateConfig | None = None) -> None:
        config = config or PrivateConfig()
        chosen = config.kinds if config.enabled else []
        self._steps: list[tuple[Kind, re.Pattern[str], Callable[[re.Match[str]], int], re.Pattern[str]]] = [
            (kind, *_STEPS[kind]) for kind in KINDS if kind in chosen
        ]

    def __call__(self, text: str) -> tuple[str, list[Removed]]:
        """The text with placeholders, and what they stand for in order of kinds."""
        removed: list[Removed] = []
        for kind, pattern, length, needed in self._steps:
            if not needed.search(text):  # most texts hold nothing of a kind, and this is much quicker to see
                continue
            pieces, done = [], 0
            for match in pattern.finditer(text):
                taken = length(match)
                if not taken:
                    continue
                start, stop = match.start(), match.start() + taken
                pieces += [text[done:start], f"<{kind.upper()}>"]
                removed.append(Removed(kind, _shown(text, start, stop)))
                done = stop
            if done:
                text = "".join(pieces) + text[done:]
        return text, removed


def _shown(text: str, start: int, stop: int) -> str:
    """The found text among its neighbours, on one line; letters and digits after its first four are masked."""
    found = text[start:stop]
    masked = found[:4] + "".join("•" if c.isalnum() else c for c in found[4:])
    return " ".join(f"{text[max(0, start - 30) : start]}[{masked}]{text[stop : stop + 30]}".split())


def _whole(match: re.Match[str]) -> int:
    return match.end() - match.start()


def _url_length(match: re.Match[str]) -> int:
    """The address without the punctuation of the sentence around it."""
    found = match.group()
    while found and found[-1] in _URL_END:
        if found[-1] == ")" and found.count("(") >= found.count(")"):
            break
        found = found[:-1]
    return len(found)


def _ic_length(match: re.Match[str]) -> int:
    """The whole number where its date exists and its place of birth has a code, else 0."""
    year, month, day, gap, place, _ = match.groups()
    date = 1 <= int(month) <= 12 and 1 <= int(day) <= _DAYS[int(month) - 1]
    if not date or int(place) not in _PLACES:
        return 0
    if gap:
        return _whole(match)
    # in one run it may be a company's number, 2001 to 2012 and a kind from 01 to 06: nobody born in 2020 writes here
    company = year == "20" and int(day) <= 6
    return 0 if company or _after_a_number_word(match) else _whole(match)


def _phone_length(match: re.Match[str]) -> int:
    """The whole number where its digits are as many as its kind has, else 0."""
    if match["abroad"]:
        return _whole(match) if 9 <= sum(c.isdigit() for c in match["abroad"]) <= 15 else 0
    if _after_a_number_word(match):
        return 0
    if match["mobile"]:
        digits = sum(c.isdigit() for c in match["mobile_rest"])
        return _whole(match) if digits in _MOBILE_DIGITS.get(match["mobile"], (7,)) else 0
    digits = sum(c.isdigit() for c in match["area_rest"])
    if digits not in _AREA_DIGITS.get(match["area"], (6,)):
        return 0
    # a landline that is written in one run looks like any other number: it needs a gap, a bracket or +60
    told_apart = match["area_gap"] or match.group().startswith("(") or (match["home"] or "").startswith("+")
    return _whole(match) if told_apart and match["area_rest"][0] not in "01" else 0


def _after_a_number_word(match: re.Match[str]) -> bool:
    return _NUMBER_WORDS.search(match.string, max(0, match.start() - 16), match.start()) is not None


_HOST = re.compile(rf"://|www\.|\.(?:{_TOP}|{_COUNTRY})\b", re.IGNORECASE)
_STEPS: dict[Kind, tuple[re.Pattern[str], Callable[[re.Match[str]], int], re.Pattern[str]]] = {
    "url": (_URL, _url_length, _HOST),
    "email": (_EMAIL, _whole, re.compile("@")),
    "ic": (_IC, _ic_length, re.compile(r"\d{6}")),
    "phone": (_PHONE, _phone_length, re.compile(r"\d{3}")),
    "user": (_USER, _whole, re.compile("@")),
}
"""For each kind its pattern, how much of a match it takes (0: none), and what no text with one can do without."""
