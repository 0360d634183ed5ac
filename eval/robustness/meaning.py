"""Small changes that turn the meaning: another number, a negation taken out or put in.

They make a counterfactual copy of a relevant passage. A system that reads the passage and not only its topic keeps the
true one above the copy. The strength is the share of the places that are turned, and any strength above 0 turns at
least one: a copy in which nothing is turned would be no distractor.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from eval.robustness.perturbation import Perturbation, in_case_of, known_words, pick, replace_spans

if TYPE_CHECKING:
    from numpy.random import Generator

# "satu", "se-" and "one" often only mean "a"; they are left alone.
NUMBER_WORDS = (
    ("dua", "tiga", "empat", "lima", "enam", "tujuh", "lapan", "sembilan", "sepuluh"),
    ("two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    ("puluh", "ratus", "ribu", "juta", "bilion"),
    ("hundred", "thousand", "million", "billion"),
)
_LISTS = {word: words for words in NUMBER_WORDS for word in words}
# What is said → what says the contrary. A negation is taken out, or a statement negated.
TURNED = {
    "tidak": "", "tak": "", "tidaklah": "", "bukan": "", "bukanlah": "", "tiada": "ada", "belum": "sudah",
    "boleh": "tidak boleh", "akan": "tidak akan", "dapat": "tidak dapat", "perlu": "tidak perlu", "mahu": "tidak mahu",
    "harus": "tidak harus", "mesti": "tidak mesti", "pernah": "tidak pernah", "adalah": "bukan", "ialah": "bukan",
    "merupakan": "bukan", "sudah": "belum", "telah": "belum",
    "not": "", "never": "", "cannot": "can", "without": "with", "is": "is not", "are": "are not", "was": "was not",
    "were": "were not", "can": "cannot", "will": "will not", "should": "should not", "must": "must not",
    "has": "has not", "have": "have not", "had": "had not",
    "isn't": "is", "aren't": "are", "wasn't": "was", "weren't": "were", "can't": "can", "won't": "will",
    "don't": "do", "doesn't": "does", "didn't": "did", "shouldn't": "should", "hasn't": "has", "haven't": "have",
} | {
    f"{negation} {word}": word
    for negation in ("tidak", "tak")
    for word in ("boleh", "akan", "dapat", "perlu", "mahu", "harus", "mesti", "pernah")
} | {
    f"{word} not": word
    for word in ("is", "are", "was", "were", "will", "should", "must", "has", "have", "had", "do", "does", "did")
}  # fmt: skip


@cache
def _number() -> Any:
    import regex

    # the digits of one number with its separators; RM50 and 5kg too, but not mati2, which says mati-mati
    money = r"(?<=(?<!\p{L})(?:RM|USD|SGD|Rp))"
    return regex.compile(rf"(?:(?<![\p{{L}}\p{{M}}\p{{N}}.,])|{money})\p{{Nd}}+(?:[.,]\p{{Nd}}+)*(?![\p{{M}}\p{{N}}])")


def _other_number(written: str, generator: Generator) -> str:
    """Another number of as many digits, with the same separators, in the same script."""
    draws = generator.integers(0, 10, size=len(written))
    places = [i for i, c in enumerate(written) if c.isdecimal()]
    free = places if len(places) == 1 else places[-2:] if len(places) == 4 else places[1:]
    made = list(written)
    for i in free:
        made[i] = _digit(written[i], int(draws[i]))
    if "".join(made) == written or all(int(c) == 0 for c in made if c.isdecimal()):
        last = places[-1]
        made[last] = _digit(written[last], int(written[last]) % 9 + 1)
    return "".join(made)


def _digit(model: str, value: int) -> str:
    """A digit in the script of another: the ten of a script follow each other."""
    return chr(ord(model) - int(model) + value)


def number(text: str, strength: float, generator: Generator) -> str:
    """A share of the numbers (digits of any script; Malay and English number words), at least one, becomes another.

    Of four digits the last two change, so that a year stays one; else all but the first.
    """
    spans = [(m.start(), m.end(), _other_number(m.group(), generator)) for m in _number().finditer(text)]
    for start, end, key in known_words(text, _LISTS):
        draw = generator.random()
        others = [word for word in _LISTS.get(key, ()) if word != key]
        if others:
            spans.append((start, end, in_case_of(text[start:end], others[pick(draw, len(others))])))
    return replace_spans(text, _chosen(sorted(spans), strength, generator))


def negation(text: str, strength: float, generator: Generator) -> str:
    """A share of the places that negate or could be negated (Malay, English), at least one, says the contrary."""
    spans = []
    for start, end, key in known_words(text, TURNED):
        if key not in TURNED:
            continue
        said = TURNED[key]
        if not said:  # the space after a word that goes goes with it
            end += len(text[end:]) - len(text[end:].lstrip(" "))
        spans.append((start, end, in_case_of(text[start : start + 1], said) if said else ""))
    return replace_spans(text, _chosen(spans, strength, generator))


def _chosen(spans: list[tuple[int, int, str]], strength: float, generator: Generator) -> list[tuple[int, int, str]]:
    if not spans:
        return []
    order = generator.permutation(len(spans))[: max(1, round(strength * len(spans)))]
    return [spans[i] for i in sorted(order)]


KINDS = (
    Perturbation("number_swap", "meaning", "distractor",
                 "beside each relevant document a copy with other numbers, a share of them, at least one", number),
    Perturbation("negation_swap", "meaning", "distractor",
                 "beside each relevant document a copy that says the contrary in a share of the places, at least one",
                 negation),
)  # fmt: skip
