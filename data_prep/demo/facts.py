"""The facts of the demo corpus and which of them training never sees.

A fact fixes one concept for each slot: topic, subject S, problem P, cause C, advice A, agency R, place L, time T and
group G. Invariant: training facts and evaluation facts share no (topic, subject, problem) combination, so no fact of
the evaluation exists in training in any wording, while every single concept does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data_prep.demo.lexicon import Lexicon

SLOTS = ("S", "P", "C", "A", "R", "L", "T", "G")


@dataclass(frozen=True)
class Fact:
    """One event: the topic's index, and for each slot the index of its concept, in the order of `SLOTS`."""

    topic: int
    values: tuple[int, ...]

    def __getitem__(self, slot: str) -> int:
        return self.values[SLOTS.index(slot)]

    def changed(self, **slots: int) -> Fact:
        """The same fact with other concepts in the given slots."""
        return replace(self, values=tuple(slots.get(s, v) for s, v in zip(SLOTS, self.values, strict=True)))

    def agrees(self, other: Fact, slots: tuple[str, ...]) -> bool:
        """Whether both are of one topic and have the same concepts in `slots`."""
        return self.topic == other.topic and all(self[s] == other[s] for s in slots)


Pair = tuple[int, int, int]
"""(topic, subject, problem): the combination that is held out."""


def held_out_pairs(lexicon: Lexicon, rng: np.random.Generator) -> list[Pair]:
    """Two problems of every subject, dealt in turn so that every problem of a topic also stays in training."""
    pairs: list[Pair] = []
    for topic, words in enumerate(lexicon.topics):
        problems = rng.permutation(len(words.slots["P"]))
        subjects = rng.permutation(len(words.slots["S"]))
        for i, s in enumerate(subjects):
            pairs += [(topic, int(s), int(problems[(2 * i + j) % len(problems)])) for j in range(2)]
    return pairs


def training_pairs(lexicon: Lexicon, held_out: list[Pair]) -> list[Pair]:
    """Every (topic, subject, problem) that is not held out."""
    refused = set(held_out)
    return [
        pair
        for topic, words in enumerate(lexicon.topics)
        for s in range(len(words.slots["S"]))
        for p in range(len(words.slots["P"]))
        if (pair := (topic, s, p)) not in refused
    ]


def draw_fact(lexicon: Lexicon, pairs: list[Pair], rng: np.random.Generator) -> Fact:
    """A random fact over one of `pairs`."""
    topic, s, p = pairs[int(rng.integers(len(pairs)))]
    rest = tuple(int(rng.integers(len(lexicon.concepts(topic, slot)))) for slot in SLOTS[2:])
    return Fact(topic, (s, p, *rest))


def near_miss(fact: Fact, lexicon: Lexicon, asked: tuple[str, ...], rng: np.random.Generator) -> Fact:
    """A distractor: `fact` with one of the `asked` slots (never S or P) changed, and the unasked ones drawn anew."""
    free = [slot for slot in asked if slot not in ("S", "P")]
    wrong = free[int(rng.integers(len(free)))]
    drawn = {
        slot: int(rng.integers(len(lexicon.concepts(fact.topic, slot)))) for slot in SLOTS[2:] if slot not in asked
    }
    size = len(lexicon.concepts(fact.topic, wrong))
    drawn[wrong] = (fact[wrong] + 1 + int(rng.integers(size - 1))) % size
    return fact.changed(**drawn)
