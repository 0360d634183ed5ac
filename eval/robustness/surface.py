"""Noise on the surface: case, emoji, marks, look-alike and invisible characters, punctuation. The words stay."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

from eval.robustness.perturbation import Perturbation, pick, touch_tokens, touch_words

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

EMOJI = ("😂", "😭", "🙏", "❤️", "🔥", "👍", "😅", "🤔", "😍", "🙄", "🇲🇾", "🤦‍♀️", "👏🏽", "🥺")
LOOK_ALIKE = dict(zip("aceijopsxyABCEHIKMOPSTXY", "асеіјорѕхуАВСЕНІКМОРЅТХУ", strict=True))
"""Latin letter → the Cyrillic one that looks the same."""
_INVISIBLE = ("\u200b", "\u200c", "\u2060")
_MARKS = ("\u0301", "\u0300", "\u0302", "\u0308")
_MARKED = frozenset("aeiouAEIOU")
_ENDS = (",", "..", "!!", "??", "…")
_PUNCTUATION = ".,!?;:…"


def _lower(letters: list[str], draws: NDArray[Any]) -> str:
    return "".join(letters).lower()


def _upper(letters: list[str], draws: NDArray[Any]) -> str:
    return "".join(letters).upper()


def _random_case(letters: list[str], draws: NDArray[Any]) -> str:
    return "".join(x.upper() if d < 0.5 else x.lower() for x, d in zip(letters, draws, strict=False))


def _marked(letters: list[str], draws: NDArray[Any]) -> str:
    places = [i for i, letter in enumerate(letters) if letter in _MARKED]
    if not places:
        return "".join(letters)
    place, mark = places[pick(draws[0], len(places))], _MARKS[pick(draws[1], len(_MARKS))]
    made = unicodedata.normalize("NFC", letters[place] + mark)
    return "".join([*letters[:place], made, *letters[place + 1 :]])


def _look_alike(letters: list[str], draws: NDArray[Any]) -> str:
    places = [i for i, letter in enumerate(letters) if letter in LOOK_ALIKE]
    if not places:
        return "".join(letters)
    place = places[pick(draws[0], len(places))]
    return "".join([*letters[:place], LOOK_ALIKE[letters[place]], *letters[place + 1 :]])


def _invisible(letters: list[str], draws: NDArray[Any]) -> str:
    place = 1 + pick(draws[0], len(letters) - 1)
    return "".join([*letters[:place], _INVISIBLE[pick(draws[1], len(_INVISIBLE))], *letters[place:]])


def _wide(letters: list[str], draws: NDArray[Any]) -> str:
    return "".join(chr(ord(x) + 0xFEE0) if len(x) == 1 and "!" <= x <= "~" else x for x in letters)


def _with_emoji(token: str, draws: NDArray[Any]) -> str:
    return f"{token} {EMOJI[pick(draws[0], len(EMOJI))]}"


def _punctuated(token: str, draws: NDArray[Any]) -> str:
    bare = token.rstrip(_PUNCTUATION)
    if bare and bare != token:
        return bare
    return token + _ENDS[pick(draws[0], len(_ENDS))]


def case_lower(text: str, strength: float, generator: Generator) -> str:
    """A share of the words without capitals."""
    return touch_words(text, strength, generator, _lower)


def case_upper(text: str, strength: float, generator: Generator) -> str:
    """A share of the words in capitals."""
    return touch_words(text, strength, generator, _upper)


def case_random(text: str, strength: float, generator: Generator) -> str:
    """In a share of the words each letter is a capital or not by chance."""
    return touch_words(text, strength, generator, _random_case)


def emoji(text: str, strength: float, generator: Generator) -> str:
    """An emoji after a share of the words (of what stands between spaces)."""
    return touch_tokens(text, strength, generator, _with_emoji)


def diacritics(text: str, strength: float, generator: Generator) -> str:
    """A mark on one vowel in a share of the words."""
    return touch_words(text, strength, generator, _marked)


def homoglyphs(text: str, strength: float, generator: Generator) -> str:
    """One letter in a share of the words is the Cyrillic letter that looks the same."""
    return touch_words(text, strength, generator, _look_alike)


def zero_width(text: str, strength: float, generator: Generator) -> str:
    """An invisible character inside a share of the words."""
    return touch_words(text, strength, generator, _invisible, least=2)


def full_width(text: str, strength: float, generator: Generator) -> str:
    """A share of the words in the full-width letters of East Asian typing."""
    return touch_words(text, strength, generator, _wide)


def punctuation(text: str, strength: float, generator: Generator) -> str:
    """After a share of the words punctuation is left out, or put where there was none."""
    return touch_tokens(text, strength, generator, _punctuated)


KINDS = (
    Perturbation("case_lower", "surface", "query", "no capitals, in a share of the words", case_lower),
    Perturbation("case_upper", "surface", "query", "capitals only, in a share of the words", case_upper),
    Perturbation("case_random", "surface", "query", "capitals by chance, in a share of the words", case_random),
    Perturbation("emoji", "surface", "query", "an emoji after a share of the words", emoji),
    Perturbation("diacritics", "surface", "query", "a mark on a vowel, in a share of the words", diacritics),
    Perturbation("homoglyphs", "surface", "query", "a Cyrillic look-alike, in a share of the words", homoglyphs),
    Perturbation("zero_width", "surface", "query", "an invisible character, in a share of the words", zero_width),
    Perturbation("full_width", "surface", "query", "full-width letters, in a share of the words", full_width),
    Perturbation("punctuation", "surface", "query", "punctuation left out or added after a share of the words",
                 punctuation),
)  # fmt: skip
