"""What a perturbation is, and the pieces of text that perturbations work on.

Invariant: a perturbation is a pure function of (text, strength, generator). At strength 0 it gives the text back; it
never gives a text without a visible character for one that had some; it changes whole graphemes, so that a letter and
its marks stay together; and rules for Latin letters leave every other script as it is. Draws do not depend on the
strength: what is changed at a low strength is changed at every higher one too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from eval.metrics import generator

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

Target = Literal["query", "documents", "distractor"]
Change = Callable[[list[str], "NDArray[Any]"], str]


@dataclass(frozen=True)
class Perturbed:
    """A text after a perturbation, and whether it is another one than before."""

    text: str
    changed: bool


@dataclass(frozen=True)
class Perturbation:
    """One kind of damage.

    Attributes:
        name: of the kind, as recipes and results write it.
        family: its file in this room.
        target: what is changed: every query, every document, or a copy of the relevant document that is put beside it.
        about: one line for readers.
        rule: (text, strength above 0, generator) → text.
    """

    name: str
    family: str
    target: Target
    about: str
    rule: Callable[[str, float, Generator], str]

    def __call__(self, text: str, strength: float, *, seed: int, key: str) -> Perturbed:
        """The text, damaged.

        Args:
            text: any text; one without a visible character comes back as it is.
            strength: 0 to 1; the share of the places where the rule could act (see `about`).
            seed: of the evaluation.
            key: id of the text; together with seed and kind it decides all draws, whatever other texts there are.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength} is not between 0 and 1")
        if strength == 0 or not text.strip():
            return Perturbed(text, False)
        made = self.rule(text, strength, generator(seed, "robustness", self.name, key))
        if not made.strip():
            made = text
        return Perturbed(made, made != text)


@cache
def _patterns() -> tuple[Any, Any]:
    import regex

    return regex.compile(r"\X"), regex.compile(r"\p{Latin}")


def graphemes(text: str) -> list[str]:
    """The characters that a reader sees: letters with their marks, flags and families of emoji whole."""
    found: list[str] = _patterns()[0].findall(text)
    return found


def latin_pieces(text: str) -> list[tuple[bool, list[str]]]:
    """The text cut into runs of graphemes; True marks a run of Latin letters (a word, or a half of mati-matian)."""
    latin = _patterns()[1]
    pieces: list[tuple[bool, list[str]]] = []
    for grapheme in graphemes(text):
        letter = latin.match(grapheme) is not None
        if pieces and pieces[-1][0] == letter:
            pieces[-1][1].append(grapheme)
        else:
            pieces.append((letter, [grapheme]))
    return pieces


def touch_words(text: str, strength: float, generator: Generator, change: Change, *, least: int = 1) -> str:
    """The text with `change` done to a share `strength` of its words of at least `least` Latin letters.

    Args:
        change: (graphemes of the word, as many numbers of [0, 1) and one more) → the new word.
    """
    made = []
    for letter, piece in latin_pieces(text):
        word = "".join(piece)
        if letter and len(piece) >= least:
            draws = generator.random(len(piece) + 2)
            if draws[0] < strength:
                word = change(piece, draws[1:])
        made.append(word)
    return "".join(made)


def touch_tokens(text: str, strength: float, generator: Generator, change: Callable[[str, NDArray[Any]], str]) -> str:
    """The text with `change` done to a share `strength` of what stands between its spaces; spaces stay.

    Args:
        change: (the token, two numbers of [0, 1)) → the new token.
    """
    import regex

    def replace(match: Any) -> str:
        draws = generator.random(3)
        return change(match.group(), draws[1:]) if draws[0] < strength else match.group()

    return str(regex.sub(r"\S+", replace, text))


_EDGE = r"[\p{L}\p{M}\p{N}\u200c\u200d]"


@cache
def _vocabulary(words: tuple[str, ...]) -> Any:
    import regex

    longest = sorted(words, key=lambda word: (-len(word), word))
    body = "|".join(regex.escape(word).replace(r"\ ", r"\s+") for word in longest)
    return regex.compile(rf"(?<!{_EDGE})(?:{body})(?!{_EDGE})", regex.IGNORECASE)


def known_words(text: str, table: Mapping[str, object]) -> list[tuple[int, int, str]]:
    """Where words or phrases of the table stand in the text: (start, end, its key), longest first, none over another.

    Args:
        table: keys in lower case; words of a phrase with one space between them.
    """
    if not table:
        return []
    found = _vocabulary(tuple(table)).finditer(text)
    return [(m.start(), m.end(), " ".join(m.group().lower().split())) for m in found]


def replace_words(text: str, strength: float, generator: Generator, table: Mapping[str, str]) -> str:
    """A share `strength` of the words that the table knows, replaced; their case is kept."""
    found = [
        (start, end, in_case_of(text[start:end], table.get(key, text[start:end])))
        for start, end, key in known_words(text, table)
    ]
    return replace_spans(text, [span for span in found if generator.random() < strength])


def replace_spans(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """The text with (start, end, new text) put in; spans rise and do not overlap."""
    made, at = [], 0
    for start, end, new in spans:
        made += [text[at:start], new]
        at = end
    return "".join([*made, text[at:]])


def in_case_of(model: str, word: str) -> str:
    """The word in capitals, with a capital, or as it is, as the model is written."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def pick(draw: float, count: int) -> int:
    """A number of [0, 1) as one of `count` places."""
    return min(int(draw * count), count - 1)
