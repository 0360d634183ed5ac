"""Slips of the fingers: one in a share of the words of three or more Latin letters."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from eval.robustness.perturbation import Perturbation, pick, touch_words

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_SHIFTS = (0.0, 0.25, 0.75)
"""How far each row of the keyboard begins to the right of the first, in keys."""
_LEAST = 3


@cache
def neighbours() -> dict[str, str]:
    """Letter → the letters whose keys touch its key on a QWERTY keyboard, which Malaysia uses."""
    places = {
        letter: (column + shift, row)
        for row, (letters, shift) in enumerate(zip(_ROWS, _SHIFTS, strict=True))
        for column, letter in enumerate(letters)
    }
    return {
        a: "".join(sorted(b for b, (x2, y2) in places.items() if b != a and abs(x - x2) <= 1 and abs(y - y2) <= 1))
        for a, (x, y) in places.items()
    }


def _neighbour(letters: list[str], draws: NDArray[Any]) -> str:
    known = [i for i, letter in enumerate(letters) if letter.lower() in neighbours()]
    if not known:
        return "".join(letters)
    place = known[pick(draws[0], len(known))]
    near = neighbours()[letters[place].lower()]
    hit = near[pick(draws[1], len(near))]
    return "".join([*letters[:place], hit.upper() if letters[place].isupper() else hit, *letters[place + 1 :]])


def _swap(letters: list[str], draws: NDArray[Any]) -> str:
    places = [i for i in range(len(letters) - 1) if letters[i].lower() != letters[i + 1].lower()]
    if not places:
        return "".join(letters)
    i = places[pick(draws[0], len(places))]
    return "".join([*letters[:i], letters[i + 1], letters[i], *letters[i + 2 :]])


def _drop(letters: list[str], draws: NDArray[Any]) -> str:
    place = pick(draws[0], len(letters))
    return "".join([*letters[:place], *letters[place + 1 :]])


def _double(letters: list[str], draws: NDArray[Any]) -> str:
    place = pick(draws[0], len(letters))
    return "".join([*letters[: place + 1], *letters[place:]])


def typo_neighbour(text: str, strength: float, generator: Generator) -> str:
    """In a share of the words one letter becomes a letter of a key beside it."""
    return touch_words(text, strength, generator, _neighbour, least=_LEAST)


def typo_swap(text: str, strength: float, generator: Generator) -> str:
    """In a share of the words two letters that follow each other change places."""
    return touch_words(text, strength, generator, _swap, least=_LEAST)


def typo_drop(text: str, strength: float, generator: Generator) -> str:
    """In a share of the words one letter is left out."""
    return touch_words(text, strength, generator, _drop, least=_LEAST)


def typo_double(text: str, strength: float, generator: Generator) -> str:
    """In a share of the words one letter is typed twice."""
    return touch_words(text, strength, generator, _double, least=_LEAST)


KINDS = (
    Perturbation("typo_neighbour", "typos", "query", "a letter of the key beside it, in a share of the words",
                 typo_neighbour),
    Perturbation("typo_swap", "typos", "query", "two letters the wrong way round, in a share of the words", typo_swap),
    Perturbation("typo_drop", "typos", "query", "a letter left out, in a share of the words", typo_drop),
    Perturbation("typo_double", "typos", "query", "a letter typed twice, in a share of the words", typo_double),
)  # fmt: skip
