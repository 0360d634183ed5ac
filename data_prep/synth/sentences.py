"""Where sentences begin, in Malay and English text as it really is: abbreviations, datelines, lists of clauses.

Invariant: the spans tile the text: they begin at 0, end at its length and touch, so that nothing is lost between them.
A sentence keeps the white space that follows it.
"""

from __future__ import annotations

import re

# Titles, months and forms of address that end with a point inside a sentence; compared in lower case.
_SHORT = """
dr prof mohd md muhd mohamad hj hjh en pn cik tn ir ts ust ustaz dato datuk sdn bhd bd jln kg sg bt tmn no nos bil hlm
ms ruj spt cth dll dsb dkk dgn yg utk pd sdr sr jr mr mrs st vs etc eg ie al et fig vol pp art inc ltd co jan feb mac
mar apr jun jul ogos ogo aug sept sep okt oct nov dis dec
"""
_ABBREVIATIONS = frozenset(_SHORT.split())
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s|$)|(?<=[a-z]{3})[.!?]+[\"”’]?(?=[\"“‘]?[A-Z][a-z])|[。！？][”』」]*|\n")
_WORD_BEFORE = re.compile(r"[\w'-]+$")
_ITEM = re.compile(r"\((?:[a-zA-Z]{1,2}|[ivxIVX]{1,5}|\d{1,3}[A-Z]?)\)")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """[start, stop) of every sentence; headings and list lines count as sentences, white space alone does not.

    A line break ends a sentence unless the line plainly goes on: it ends with a comma, semicolon or dash, or without a
    full stop before a line that begins in lower case or with (a), (i), (2).
    """
    spans: list[tuple[int, int]] = []
    start = 0
    for match in _END.finditer(text):
        stop = match.end()
        if stop <= start:
            continue
        if not _ends(text, start, match):
            continue
        while stop < len(text) and text[stop].isspace():
            stop += 1
        if not text[start:stop].strip():
            continue  # leading white space goes to the first sentence
        spans.append((start, stop))
        start = stop
    if start < len(text):
        if text[start:].strip() or not spans:
            spans.append((start, len(text)))
        else:
            spans[-1] = (spans[-1][0], len(text))
    return spans


def sentences(text: str) -> list[str]:
    """The sentences without the white space around them."""
    return [text[start:stop].strip() for start, stop in sentence_spans(text) if text[start:stop].strip()]


def _ends(text: str, start: int, match: re.Match[str]) -> bool:
    """Whether a sentence that began at `start` ends with this mark."""
    mark, after = match.group(), _next(text, match.end())
    if mark == "\n":
        return _line_ends(text, match.start(), after)
    if mark[0] != ".":
        # "Apa?" tanya dia: a closed quotation may go on; a bare mark ends even noisy text.
        return not (after[:1].islower() and mark[-1] in "\"'”’»")
    if mark.startswith("..") or mark[0] == "…":
        return not after[:1].islower()
    if after[:1].islower() or after[:1] in "-–—,;":
        return False
    before = _WORD_BEFORE.search(text, max(start, match.start() - 24), match.start())
    word = before.group() if before else ""
    if word.lower() in _ABBREVIATIONS or (len(word) == 1 and word.isupper()):
        return False
    # "3." at the beginning of a line numbers a clause.
    return not (len(word) <= 4 and word[:1].isdigit() and _opens_line(text, match.start() - len(word)))


def _line_ends(text: str, place: int, after: str) -> bool:
    gap = text[place : len(text) - len(text[place:].lstrip())]
    if not after or gap.count("\n") > 1:
        return True
    before = text[:place].rstrip(" \t")[-1:]
    if before in '.!?…。！？"”)':
        return True
    if before in ",;—–-":
        return False
    return not (after[:1].islower() or _ITEM.match(after))


def _next(text: str, place: int) -> str:
    """A few characters from the next one that is no white space."""
    while place < len(text) and text[place].isspace():
        place += 1
    return text[place : place + 12]


def _opens_line(text: str, place: int) -> bool:
    return not text[text.rfind("\n", 0, place) + 1 : place].strip()
