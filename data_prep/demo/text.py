"""Facts put into words: titles, questions and short bodies in one register.

Invariant: a text says only what its fact says. The same fact in two registers shares almost no content word, which is
what makes word matching fail and gives an embedding something to learn.
"""

from __future__ import annotations

import re
from typing import Literal

import numpy as np

from data_prep.demo.facts import Fact
from data_prep.demo.lexicon import Lexicon, Register, Split

Voice = Literal["formal", "colloquial", "english", "mixed"]
VOICES: tuple[Voice, ...] = ("formal", "colloquial", "english", "mixed")
_COMMON = 0.6
"""How often the first variant is taken outright; else one is drawn, so of two the first is said 80 % of the time."""
_SLOT = re.compile(r"\{([A-Z])\}")
_ARTICLE = re.compile(r"^(the|an|a) ", re.IGNORECASE)


def slots_of(template: str) -> tuple[str, ...]:
    """The slot letters that a template names, in order."""
    return tuple(_SLOT.findall(template))


class Writer:
    """Writes sentences about facts from one template set.

    Args:
        split: which templates to use; training text and evaluation text share none.
        rng: draws templates and variants.
    """

    def __init__(self, lexicon: Lexicon, split: Split, rng: np.random.Generator) -> None:
        self.lexicon, self.split, self._rng = lexicon, split, rng

    def _pick(self, options: tuple[str, ...]) -> str:
        return options[int(self._rng.integers(len(options)))]

    def _usual(self, options: tuple[str, ...]) -> str:
        """Mostly the first option: one way to say a thing is common and the other is rare, as in real text."""
        return options[0] if self._rng.random() < _COMMON else self._pick(options)

    def templates(self, voice: Voice, role: str) -> tuple[str, ...]:
        """The templates of a role; `mixed` speech uses the colloquial frame."""
        return self.lexicon.templates[self.split, "colloquial" if voice == "mixed" else voice, role]

    def phrase(self, fact: Fact, slot: str, voice: Voice) -> str:
        """The words for one slot; `mixed` speech takes the English word, without its article, half of the time."""
        register: Register = "colloquial" if voice == "mixed" else voice
        switched = voice == "mixed" and slot != "L" and self._rng.random() < 0.5
        variants = self.lexicon.concepts(fact.topic, slot)[fact[slot]].variants
        words = self._usual(variants["english" if switched else register])
        return _ARTICLE.sub("", words) if switched else words

    def fill(self, template: str, fact: Fact, voice: Voice) -> str:
        """One sentence or heading; formal Malay and English begin with a capital letter."""
        text = _SLOT.sub(lambda m: self.phrase(fact, m.group(1), voice), template)
        return text if voice in ("colloquial", "mixed") else text[0].upper() + text[1:]

    def say(self, role: str, fact: Fact, voice: Voice) -> str:
        """A random sentence of this role about the fact."""
        return self.fill(self._pick(self.templates(voice, role)), fact, voice)

    def body(self, fact: Fact, voice: Voice, *, fillers: int) -> str:
        """A paragraph: the event, then cause and advice in any order, with `fillers` empty sentences."""
        empty = self.templates(voice, "filler")
        parts = [self.say(role, fact, voice) for role in ("cause", "advice")]
        parts += [self.fill(empty[int(i)], fact, voice) for i in self._rng.permutation(len(empty))[:fillers]]
        order = [parts[int(i)] for i in self._rng.permutation(len(parts))]
        return " ".join([self.say("event", fact, voice), *order])
