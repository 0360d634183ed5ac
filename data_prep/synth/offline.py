"""The offline generator: questions by rules alone, no model and no network.

Invariant: what is made for an ask depends on the ask, the seed and the corpus's word counts alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from data_prep.progress import Progress
from data_prep.synth.colloquial import colloquial
from data_prep.synth.extract import Extracted, extract
from data_prep.synth.generator import Ask, Made
from data_prep.synth.rules import candidates, split_document

if TYPE_CHECKING:
    from numpy.random import Generator as Random

    from data_prep.synth.config import SynthConfig

TITLE_MARK = " › "
_BLANK = "_____"
_FIGURE = re.compile(
    r"\b(?:RM ?)?\d[\d.,]*\d(?: (?:juta|bilion|ribu|peratus|million|billion|per cent))?\b|"
    r"\b[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)+"
)


class OfflineGenerator:
    """Answers asks of `OFFLINE_STYLES` by rules.

    Args:
        config: limits on words.
        seed: draws sentences and spellings.
        document_frequency: in how many documents a word stands, for keywords.

    Attributes:
        name, counts: see `Generator`.
    """

    name = "offline"

    def __init__(self, config: SynthConfig, seed: int, document_frequency: Mapping[str, int]) -> None:
        self._config, self._seed, self._frequency = config, seed, document_frequency
        self.counts: dict[str, int | float] = {"asks": 0}

    def generate(self, asks: Sequence[Ask], *, progress: Progress) -> Iterator[tuple[Ask, list[Made]]]:
        """See `Generator.generate`; answers come in the order of the asks."""
        import numpy as np

        for ask in asks:
            self.counts["asks"] += 1
            yield ask, self._answer(ask, np.random.default_rng([self._seed, int(ask.id, 16)]))

    def _answer(self, ask: Ask, random: Random) -> list[Made]:
        if ask.style in ("question", "title", "cloze", "keywords"):
            found = candidates(
                split_document(ask.chunks[0]),
                ask.style,
                random,
                min_words=self._config.min_query_words,
                max_words=self._config.max_query_words,
                keyword_count=self._config.keyword_count,
                document_frequency=self._frequency,
            )
            return [Made(question, passage) for question, passage in found]
        if ask.style == "heading":
            return self._heading(ask)
        if ask.style == "multi_hop":
            return self._two_hops(ask)
        extracted = self._extract(ask.chunks[0], ask)
        if ask.style == "blank":
            return self._blanks(extracted, ask.count, random)
        picked = _spread(extracted, ask.count)
        body = split_document(ask.chunks[0]).body
        made = []
        for one in picked:
            typed = one.question if ask.style == "extractive" else colloquial(one.question, ask.language, random)
            if typed:  # a question that holds the title is not to be found by it
                made.append(Made(typed, body if one.kind == "study" else None))
        return made

    @staticmethod
    def _extract(chunk: str, ask: Ask) -> list[Extracted]:
        return _extracted(chunk, ask.language, ask.title.split(TITLE_MARK)[0])

    def _heading(self, ask: Ask) -> list[Made]:
        """The heading with its document's title before it; the passage is the chunk below the heading."""
        titles = ask.title.split(TITLE_MARK)
        heading, _, rest = ask.chunks[0].partition("\n")
        if len(titles) < 2 or heading.strip().lstrip("# ") != titles[-1] or not rest.strip():
            return []
        return [Made(f"{titles[0].rstrip('.: ')}: {titles[-1]}", rest.strip())]

    def _two_hops(self, ask: Ask) -> list[Made]:
        """One question out of each chunk, asked together, where each names a thing that both chunks name."""
        first, second = (self._extract(chunk, ask) for chunk in ask.chunks)
        shared = entities(ask.chunks[0]) & entities(ask.chunks[1])
        for one in first:
            for other in second:
                if one.question == other.question or "study" in (one.kind, other.kind):
                    continue
                if all(any(name in each.question.lower() for name in shared) for each in (one, other)):
                    joint = ", and " if ask.language == "en" else ", dan "
                    return [Made(f"{one.question.rstrip('?')}{joint}{_lower_first(other.question)}")]
        return []

    def _blanks(self, extracted: list[Extracted], count: int, random: Random) -> list[Made]:
        """The sentence with one figure or name left out; only sentences that stand by themselves."""
        made: list[Made] = []
        for one in extracted:
            sentence = " ".join(one.sentence.split())
            places = [match.span() for match in _FIGURE.finditer(sentence) if match.start() > 0]
            if places and len(made) < count:
                start, stop = places[int(random.integers(len(places)))]
                made.append(Made(f"{sentence[:start]}{_BLANK}{sentence[stop:]}"))
        return made


@functools.lru_cache(maxsize=64)
def _extracted(chunk: str, language: str, title: str) -> list[Extracted]:
    """The questions of a chunk; several styles ask for them one after another."""
    parts = split_document(chunk)
    return extract(parts.body, language, title or parts.title or "")


def _spread(extracted: list[Extracted], count: int) -> list[Extracted]:
    """At most `count` of them, of different kinds first, in their order in the text."""
    kinds: dict[str, int] = {}
    rank = []
    for place, one in enumerate(extracted):
        # Everybody names offices in passing; they are asked about where there is little else.
        rank.append((kinds.get(one.kind, 0) + 100 * (one.kind == "office"), place))
        kinds[one.kind] = kinds.get(one.kind, 0) + 1
    return [extracted[place] for place in sorted(place for _, place in sorted(rank)[:count])]


_ENTITY = re.compile(r"(?<=[\w,”\"')] )[A-Z][\w'’-]*\w(?: [A-Z][\w'’-]*\w)*")


def entities(text: str) -> frozenset[str]:
    """Runs of capitalised words that do not open the text: names of people, places, bodies; in lower case."""
    return frozenset(match.group().lower() for match in _ENTITY.finditer(text) if len(match.group()) > 2)


def _lower_first(text: str) -> str:
    return text[:1].lower() + text[1:]
