"""The words of the demo corpus: concepts that are said differently in formal Malay, colloquial Malay and English.

Invariant: a concept has at least one variant in each of the three registers, and every variant of a row means the same.
Sentence templates come in two sets that share no template, one for training text and one for evaluation text. The rows
live in `data/*.toml`, written for this project; nothing in them was taken from other text.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

Register = Literal["formal", "colloquial", "english"]
REGISTERS: tuple[Register, ...] = ("formal", "colloquial", "english")
Split = Literal["train", "eval"]
ROLES = ("title", "question", "event", "cause", "advice", "filler")
FOLDER = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Concept:
    """One thing and the ways to say it: register → variants."""

    variants: dict[Register, tuple[str, ...]]


@dataclass(frozen=True)
class Topic:
    """A theme whose concepts combine freely: any subject can have any problem for any cause.

    Attributes:
        key: file name of the topic, e.g. `food`.
        slots: slot letter (S subject, P problem, C cause, A advice, R agency) → its concepts.
    """

    key: str
    slots: dict[str, tuple[Concept, ...]]


@dataclass(frozen=True)
class Lexicon:
    """All topics, the concepts that they share, and the sentence templates.

    Attributes:
        topics: sorted by key.
        shared: slot letter (L place, T time, G group) → concepts that every topic uses.
        templates: (split, register, role) → templates with `{S}`-like slots.
    """

    topics: tuple[Topic, ...]
    shared: dict[str, tuple[Concept, ...]]
    templates: dict[tuple[Split, Register, str], tuple[str, ...]]

    def concepts(self, topic: int, slot: str) -> tuple[Concept, ...]:
        """The concepts that may fill `slot` in a fact of this topic."""
        return self.shared[slot] if slot in self.shared else self.topics[topic].slots[slot]


def _concepts(rows: list[list[str]]) -> tuple[Concept, ...]:
    return tuple(
        Concept({r: tuple(v.strip() for v in cell.split("/")) for r, cell in zip(REGISTERS, row, strict=True)})
        for row in rows
    )


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def load_lexicon() -> Lexicon:
    """Read `data/*.toml`. About 40 ms; the result is shared and must not be changed."""
    topics = []
    for path in sorted(FOLDER.glob("*.toml")):
        if path.stem == "shared" or path.stem.startswith("templates_"):
            continue
        rows = _read(path.stem)
        names = {"S": "subjects", "P": "problems", "C": "causes", "A": "advice", "R": "agencies"}
        topics.append(Topic(path.stem, {slot: _concepts(rows[name]) for slot, name in names.items()}))
    shared = _read("shared")
    templates: dict[tuple[Split, Register, str], tuple[str, ...]] = {}
    splits: tuple[Split, ...] = ("train", "eval")
    for register in REGISTERS:
        rows = _read(f"templates_{register}")
        for split in splits:
            for role in ROLES:
                templates[split, register, role] = tuple(rows[split][role])
    names = {"L": "places", "T": "times", "G": "groups"}
    return Lexicon(tuple(topics), {slot: _concepts(shared[name]) for slot, name in names.items()}, templates)
