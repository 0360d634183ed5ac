"""Which texts are too poor to learn from: one small named rule for each kind of poverty, with its threshold.

A rule answers whether a text stays. Rules are asked in the order of `RULES`; the first that says no names the reason.
They look at what Gopher's filters look at (arXiv 2112.11446, appendix A), with thresholds that keep Malay tweets and
forum posts: what is short is judged less, and no rule asks for the words of one language.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Annotated

from pydantic import Field

from data_prep.config import Section

Share = Annotated[float, Field(ge=0, le=1)]


class QualityConfig(Section):
    """`[corpus.quality]`: what a text must be to be kept; a threshold at its harmless end switches its rule off."""

    enabled: bool = True
    """Apply the rules below."""
    max_chars: Annotated[int, Field(ge=1)] | None = 1_000_000
    """More characters are a dump, not a document; none keeps all."""
    min_letter_share: Share = 0.5
    """Share of letters (with their marks, in any script) in what is not white space. 0.5 keeps posts full of emoji and
    prices; tables of numbers and markup fall."""
    max_digit_share: Share = 0.35
    """Share of digits in what is not white space: result lists, bank statements, timetables."""
    max_symbol_share: Share = 0.3
    """Share of what is neither letter, digit nor common punctuation: ASCII art, code, rows of emoji or hashtags."""
    max_placeholder_share: Share = 0.5
    """Share of words that are placeholders of personal data: lists of handles or links."""
    min_mean_word_chars: Annotated[float, Field(ge=0)] = 1.5
    """Mean letters of a word, of texts in scripts with spaces, from five words on: below are spelled-out letters and
    lists of points."""
    max_mean_word_chars: Annotated[float, Field(ge=1)] = 14.0
    """Above are addresses, hashes and text that lost its spaces. Malay has about 6, legal text up to 8."""
    max_repeated_line_share: Share = 0.3
    """Share of the characters that stands in lines that stood before; judged from four lines on."""
    max_top_ngram_share: Share = 0.3
    """Share of the characters that the most frequent two, three or four words in a row take; from 20 words and four
    repeats on."""
    max_repeated_ngram_share: Share = 0.6
    """Share of runs of five words that stood before; from 40 words on. Templates and stuck keys, not refrains."""
    drop_phrases: list[str] = Field(default_factory=list)
    """A text that holds one of these phrases (in any case) is dropped: boilerplate of a crawl."""


_PLACEHOLDER = re.compile(r"<(?:URL|EMAIL|IC|PHONE|USER)>")
_NOT_LETTER = bytes(c for c in range(128) if not chr(c).isalpha())
_NOT_DIGIT = bytes(c for c in range(128) if not chr(c).isdigit())
_SPACE = b" \t\n\r\x0b\x0c"
_COMMON = ".,;:!?'\"()-/…’‘“”–—。，、！？：；（）「」《》%"
_NOT_COMMON = bytes(c for c in range(128) if chr(c) not in _COMMON)
_OTHER_COMMON = re.compile("[…’‘“”–—。，、！？：；（）「」《》]")
_LETTERS_BEYOND = re.compile(r"[^\W\d_]")
_DIGITS_BEYOND = re.compile(r"\d")
_MARKS = re.compile(
    "[\u0300-\u036f\u0900-\u0903\u093a-\u094f\u0b82\u0bbe-\u0bcd\u0bd7\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\ufe0f\u200d]"
)
_FEW_WORDS, _MANY_TIMES = 5, 4
_NO_SPACES = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U000323af]")


class TextFacts:
    """What the rules ask of a text, counted once. Characters are those that are not white space.

    Attributes:
        text: the text. words: its runs between white space, placeholders included.
        placeholders: how many words stand for personal data; they count for nothing below.
        visible: characters, at least 1. letters: of any script, with their marks. digits: of any script.
        symbols: what is neither letter, digit nor common punctuation.
        spaced: whether most letters are of a script that puts spaces between words.
    """

    def __init__(self, text: str) -> None:
        self.text, self.words = text, text.split()
        self.placeholders = len(_PLACEHOLDER.findall(text)) if "<" in text else 0
        plain = _PLACEHOLDER.sub("", text) if self.placeholders else text
        data = plain.encode("ascii", "ignore")
        self.letters = len(data.translate(None, _NOT_LETTER))
        self.digits = len(data.translate(None, _NOT_DIGIT))
        self.visible = len(data.translate(None, _SPACE))
        common = len(data.translate(None, _NOT_COMMON))
        self.spaced = True
        if len(data) < len(plain):
            beyond = _beyond_ascii(plain)
            self.visible += len(beyond)
            self.letters += len(_LETTERS_BEYOND.findall(beyond)) + len(_MARKS.findall(beyond))
            self.digits += len(_DIGITS_BEYOND.findall(beyond))
            common += len(_OTHER_COMMON.findall(beyond))
            self.spaced = 2 * len(_NO_SPACES.findall(beyond)) < max(1, self.letters)
        self.symbols = self.visible - self.letters - self.digits - common
        self.visible = max(1, self.visible)


def _beyond_ascii(text: str) -> str:
    return "".join(c for c in text if c > "\x7f" and not c.isspace())


def _short_enough(facts: TextFacts, config: QualityConfig) -> bool:
    return config.max_chars is None or len(facts.text) <= config.max_chars


def _enough_letters(facts: TextFacts, config: QualityConfig) -> bool:
    return facts.letters >= config.min_letter_share * facts.visible


def _few_digits(facts: TextFacts, config: QualityConfig) -> bool:
    return facts.digits <= config.max_digit_share * facts.visible


def _few_symbols(facts: TextFacts, config: QualityConfig) -> bool:
    return facts.symbols <= config.max_symbol_share * facts.visible


def _few_placeholders(facts: TextFacts, config: QualityConfig) -> bool:
    return not facts.placeholders or facts.placeholders <= config.max_placeholder_share * len(facts.words)


def _words_of_usual_length(facts: TextFacts, config: QualityConfig) -> bool:
    words = len(facts.words) - facts.placeholders
    if not facts.spaced or words < _FEW_WORDS:
        return True
    return config.min_mean_word_chars <= facts.letters / words <= config.max_mean_word_chars


def _lines_differ(facts: TextFacts, config: QualityConfig) -> bool:
    if facts.text.count("\n") < 3 or config.max_repeated_line_share == 1:
        return True
    lines = [line for line in map(str.strip, facts.text.split("\n")) if line]
    distinct = set(lines)
    if len(lines) == len(distinct):
        return True
    total = sum(map(len, lines))
    return total - sum(map(len, distinct)) <= config.max_repeated_line_share * total


def _no_ngram_reigns(facts: TextFacts, config: QualityConfig) -> bool:
    words = facts.words
    if len(words) < 20 or config.max_top_ngram_share == 1 or not facts.spaced:
        return True
    total = sum(map(len, words))
    # the most frequent word of a run of words bounds how often the run can stand there
    most = Counter(words).most_common(1)[0][1]
    longest = max(map(len, words))
    for n in (2, 3, 4):
        if min(most, len(words) // n) * n * longest <= config.max_top_ngram_share * total:
            continue
        gram, count = Counter(zip(*(words[i:] for i in range(n)), strict=False)).most_common(1)[0]
        if count >= _MANY_TIMES and count * sum(map(len, gram)) > config.max_top_ngram_share * total:
            return False
    return True


def _ngrams_differ(facts: TextFacts, config: QualityConfig) -> bool:
    words = facts.words
    if len(words) < 40 or config.max_repeated_ngram_share == 1 or not facts.spaced:
        return True
    if len(set(words)) >= (1 - config.max_repeated_ngram_share) * len(words):
        return True  # every new word begins a new run, so too many runs are new
    grams = list(zip(*(words[i:] for i in range(5)), strict=False))
    return len(grams) - len(set(grams)) <= config.max_repeated_ngram_share * len(grams)


def _no_dropped_phrase(facts: TextFacts, config: QualityConfig) -> bool:
    if not config.drop_phrases:
        return True
    lowered = facts.text.casefold()
    return not any(phrase.casefold() in lowered for phrase in config.drop_phrases)


Rule = Callable[[TextFacts, QualityConfig], bool]
RULES: dict[str, Rule] = {
    "too_long": _short_enough,
    "few_letters": _enough_letters,
    "many_digits": _few_digits,
    "many_symbols": _few_symbols,
    "many_placeholders": _few_placeholders,
    "word_length": _words_of_usual_length,
    "repeated_lines": _lines_differ,
    "frequent_words": _no_ngram_reigns,
    "repeated_words": _ngrams_differ,
    "dropped_phrase": _no_dropped_phrase,
}


def failed_rule(text: str, config: QualityConfig) -> str | None:
    """The name of the first rule that a text breaks, None where it is good enough (or the rules are off)."""
    if not config.enabled:
        return None
    facts = TextFacts(text)
    return next((name for name, stays in RULES.items() if not stays(facts, config)), None)
