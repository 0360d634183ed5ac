"""What a document is built of: headings, clauses, paragraphs, sentences; and what it costs to cut before each.

Headings are found by their look, since cleaned text has no mark-up: Markdown signs, BAHAGIAN II, lines in capitals, and
short lines without a full stop that stand between whole sentences.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.synth.rules import is_title
from data_prep.synth.sentences import sentence_spans

if TYPE_CHECKING:
    from data_prep.synth.chunks import Measure

_MARKDOWN = re.compile(r"(#{1,6})\s+\S")
_PART = re.compile(
    r"(?:BAHAGIAN|Bahagian|PART|JADUAL|SCHEDULE|LAMPIRAN|APPENDIX)\s+(?:[IVXLC]+|\d+|[A-Z]|PERTAMA|KE\w+)\b"
)
_CHAPTER = re.compile(r"(?:BAB|Bab|CHAPTER|Chapter|PENGGAL|Penggal)\s+(?:[IVXLC]+|\d+)\b")
_POST = re.compile(r"(?:[-*=_]{3,}$|#\d+\b|\S+ (?:menulis|berkata|wrote|said)(?: pada| at| on)?\b.{0,40}:$)")
_CLAUSE = re.compile(r"\d{1,3}[A-Z]{0,2}\.\s")
_SUBCLAUSE = re.compile(r"\(\d{1,3}[A-Z]?\)\s")
_ITEM = re.compile(r"\n\s*(?=\((?:[a-z]{1,2}|[ivx]{1,5})\)\s)")
_BREATH = re.compile(r"(?<=[;,:—–])\s+|\n")
_FRAGMENT = re.compile(r"\(\w{1,4}\)|\d+[.)]\s|\w\)|[-•*–—·>\"“'‘]")
HEADING_WORDS = 14
"""A longer line is a sentence that lost its full stop."""


@dataclass(frozen=True)
class Unit:
    """A piece of text that is never cut; it goes on to where the next begins.

    Attributes:
        start: its place in the text.
        price: what it costs to begin a chunk here.
        titles: the title and headings that it stands under, itself included where it is one.
    """

    start: int
    price: float
    titles: tuple[str, ...]


def heading_level(line: str, before: str, after: str) -> int | None:
    """1 (outermost) to 9 for a heading, None for another line.

    Args:
        line: one line without white space around it.
        before, after: the nearest filled lines above and below; empty at the ends.
    """
    if not line or not after:
        return None
    if match := _MARKDOWN.match(line):
        return len(match.group(1))
    if len(line.split()) > HEADING_WORDS or line[-1] in ".!?…,;:—–-":
        return None
    if _PART.match(line):
        return 2
    if _CHAPTER.match(line):
        return 3
    if _FRAGMENT.match(line) or not any(char.isalpha() for char in line):
        return None
    if line.isupper() and len(line) > 3:
        return 4
    # Wrapped lines of a page are short as well, but what stands above them is no whole sentence.
    whole = not before or before[-1] in '.!?…"”)' or heading_level(before, "", line) is not None
    longer = len(after.split()) > len(line.split()) and (after[0].isupper() or after[0].isdigit() or after[0] in '"“(')
    return 5 if line[0].isupper() and whole and longer and len(line.split()) <= 10 else None


def units_of(text: str, measure: Measure, most: float) -> list[Unit]:
    """The text's units in order, the first at 0; none weighs more than `most` tokens where it can be helped."""
    levels = _heading_lines(text)
    stack: list[tuple[int, str]] = []
    units: list[Unit] = []
    after_heading = False
    for start, stop in sentence_spans(text):
        line = text[start:stop].strip()
        level = levels.get(start + len(text[start:stop]) - len(text[start:stop].lstrip()))
        if level is not None:
            stack = [entry for entry in stack if entry[0] < level] + [(level, line.lstrip("# "))]
        titles = tuple(title for _, title in stack)
        if after_heading and level is None:
            price = 20.0  # a heading belongs to what follows
        elif after_heading:
            price = 5.0
        else:
            price = _price(text, start, line, level)
        units.append(Unit(start, price, titles))
        units += [Unit(place, cost, titles) for place, cost in _inside(text, start, stop, measure, most)]
        after_heading = level is not None
    return units


def _heading_lines(text: str) -> dict[int, int]:
    """Place of the first letter of every heading → its level; a short first line is the title, level 0."""
    lines: list[tuple[int, str]] = []
    place = 0
    for raw in text.split("\n"):
        if raw.strip():
            lines.append((place + len(raw) - len(raw.lstrip()), raw.strip()))
        place += len(raw) + 1
    levels: dict[int, int] = {}
    for number, (start, line) in enumerate(lines):
        before = lines[number - 1][1] if number else ""
        after = lines[number + 1][1] if number + 1 < len(lines) else ""
        if number == 0 and after and is_title(line):
            levels[start] = 0
        elif (
            level := heading_level(line, "" if number - 1 == 0 and lines[0][0] in levels else before, after)
        ) is not None:
            levels[start] = level
    return levels


def _price(text: str, start: int, line: str, level: int | None) -> float:
    if start == 0:
        return 0.0
    if level is not None:
        return 0.02 * level
    gap = text[len(text[:start].rstrip()) : start]
    if _POST.match(line):
        return 0.05
    if _CLAUSE.match(line):
        return 0.15
    if "\n" in gap:
        return 0.3 if _SUBCLAUSE.match(line) else 0.15 if gap.count("\n") > 1 else 0.25
    return 0.6


def _inside(text: str, start: int, stop: int, measure: Measure, most: float) -> list[tuple[int, float]]:
    """Further places to cut in one sentence that is too long: at list items, else at breaths, else between words."""
    if measure.size(start, stop) <= most:
        return []
    for pattern, price in ((_ITEM, 1.0), (_BREATH, 1.5)):
        places = [match.end() for match in pattern.finditer(text, start, stop) if start < match.end() < stop]
        if places:
            found: list[tuple[int, float]] = []
            for begin, end in zip([start, *places], [*places, stop], strict=True):
                found += [(begin, price)] if begin > start else []
                found += _inside(text, begin, end, measure, most) if (begin, end) != (start, stop) else []
            return found
    first, last = bisect_span(measure, start, stop)
    step = max(1, int(most / measure.factor))
    parts = -(-(last - first) // step)
    picked = sorted({first + (last - first) * part // parts for part in range(1, parts)})
    return [(measure.starts[number], 3.0) for number in picked if start < measure.starts[number] < stop]


def bisect_span(measure: Measure, start: int, stop: int) -> tuple[int, int]:
    """Numbers [first, last) of the tokens that begin in [start, stop)."""
    from bisect import bisect_left

    return bisect_left(measure.starts, start), bisect_left(measure.starts, stop)
