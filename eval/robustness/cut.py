"""Texts that end too early: the tail of a query or of every document is missing."""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

from eval.robustness.perturbation import Perturbation, graphemes

if TYPE_CHECKING:
    from numpy.random import Generator


@cache
def _patterns() -> tuple[Any, Any]:
    import regex

    unspaced = r"[\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Han}\p{Hiragana}\p{Katakana}]"
    return regex.compile(r"\S+"), regex.compile(unspaced)


def cut(text: str, strength: float, generator: Generator) -> str:
    """The text without the share `strength` at its end, at least its first word.

    What counts is the words; in scripts that write no spaces the graphemes. Nothing is drawn.
    """
    words, unspaced = _patterns()
    ends: list[int] = []
    for match in words.finditer(text):
        if unspaced.search(match.group()) is None:
            ends.append(match.end())
            continue
        at = match.start()
        for grapheme in graphemes(match.group()):
            at += len(grapheme)
            ends.append(at)
    kept = max(1, math.ceil(len(ends) * (1 - strength) - 1e-9))
    return _whole(text, ends[kept - 1])


def _whole(text: str, end: int) -> str:
    """The text up to `end`, or to the end of the grapheme that `end` stands in."""
    at = 0
    # a grapheme is short: looking a little further than the cut shows whether it ends there
    for grapheme in graphemes(text[: end + 64]):
        at += len(grapheme)
        if at >= end:
            break
    return text[:at]


KINDS = (
    Perturbation("cut_query", "cut", "query", "the query without a share of its words, from the end", cut),
    Perturbation(
        "cut_documents", "cut", "documents", "all documents without a share of their words, from the end", cut
    ),
)
