"""Which questions are asked of which chunks.

Invariant: what is drawn for a document depends on the seed and the document's id. Asks stand in the order of the
documents, of their chunks, and of the styles in the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from data_prep.synth.chunks import Chunk, ChunksConfig, Ruler, cut
from data_prep.synth.generator import STYLES, Ask, ask_id
from data_prep.synth.offline import TITLE_MARK, entities
from data_prep.synth.rules import cut_words

if TYPE_CHECKING:
    from data_prep.synth.config import SynthConfig

_HELD = ("question", "title", "cloze", "keywords")
"""Offline styles that see the whole chunk; their passages are cut afterwards."""
_SAME = {"id": "ms"}


@dataclass(frozen=True)
class Question:
    """An ask with the chunks that it is about."""

    ask: Ask
    chunks: tuple[Chunk, ...]


class Asker:
    """Cuts documents and decides what to ask.

    Attributes:
        chunks: the chunks of the last block with their languages.
    """

    def __init__(self, config: SynthConfig, seed: int) -> None:
        self._config, self._seed = config, seed
        self._ruler = Ruler(config.chunks or ChunksConfig())
        self._shares = {style: float(getattr(config, f"{style}_share")) for style in config.styles}
        self.chunks: list[tuple[Chunk, str]] = []

    def questions(self, rows: list[dict[str, Any]]) -> list[Question]:
        """The questions to ask about some documents."""
        import numpy as np

        self.chunks = [(chunk, row["language"]) for row in rows for chunk in self._cut(row)]
        partners = self._partners() if "multi_hop" in self._shares else {}
        asked: list[Question] = []
        for number, (chunk, language) in enumerate(self.chunks):
            drawn = dict(
                zip(STYLES, np.random.default_rng([self._seed, _number(chunk.id)]).random(len(STYLES)), strict=True)
            )
            for style, share in self._shares.items():
                if drawn[style] >= share or not self._fits(style, chunk):
                    continue
                pair: tuple[Chunk, ...] = (chunk,)
                if style == "multi_hop":
                    if number not in partners:
                        continue
                    pair = (chunk, self.chunks[partners[number]][0])
                asked.append(Question(self._ask(style, pair, language), pair))
        return asked

    def _cut(self, row: dict[str, Any]) -> list[Chunk]:
        if self._config.chunks is None:
            text = row["text"]
            return [Chunk(row["id"], row["id"], 0, 0, len(text), text, ())]
        return cut(row["text"], self._config.chunks, self._ruler, document=row["id"])

    @staticmethod
    def _fits(style: str, chunk: Chunk) -> bool:
        if style == "title":
            return chunk.index == 0
        return style != "heading" or (chunk.index > 0 and len(chunk.titles) > 1)

    def _ask(self, style: str, chunks: tuple[Chunk, ...], language: str) -> Ask:
        target = language
        if style == "cross_lingual":
            own = _SAME.get(language, language)
            target = next((one for one in self._config.cross_languages if _SAME.get(one, one) != own), language)
        held = (style in _HELD and self._config.generator == "offline") or style in ("title", "cloze")
        texts = tuple(c.text if held else cut_words(c.text, self._config.max_passage_words) for c in chunks)
        return Ask(
            id=ask_id([chunk.id for chunk in chunks], style, target),
            style=style,
            chunks=texts,
            language=language,
            target_language=target,
            count=self._config.questions_per_ask,
            title=TITLE_MARK.join(chunks[0].titles),
        )

    def _partners(self) -> dict[int, int]:
        """Number of a chunk → number of the chunk that it is asked together with; each chunk is in one pair at most.

        Two chunks belong together where they name the same thing and little else in the block does: of the names that
        a chunk shares with another one, the rarest decides; chunks of one document come first, then nearer ones.
        """
        holders: dict[str, list[int]] = {}
        for number, (chunk, _) in enumerate(self.chunks):
            for name in sorted(entities(chunk.text)):
                holders.setdefault(name, []).append(number)
        wanted = []
        for name, found in holders.items():
            documents = len({self.chunks[number][0].document for number in found})
            if documents > _RARE:
                continue
            for one, other in pairwise(found):
                (first, tongue), (second, same) = self.chunks[one], self.chunks[other]
                if tongue == same and first.id != second.id:
                    wanted.append((first.document != second.document, documents, other - one, name, one, other))
        partners: dict[int, int] = {}
        taken: set[int] = set()
        for _, _, _, _, one, other in sorted(wanted):
            if not {one, other} & taken:
                partners[one] = other
                taken |= {one, other}
        return partners


_RARE = 4
"""A name in more documents of a block than this joins nothing: everybody writes of Malaysia."""


def _number(name: str) -> int:
    """An integer from an id; ids that are no content hashes are hashed."""
    from data_prep.files import content_id

    try:
        return int(name, 16)
    except ValueError:
        return int(content_id(name), 16)
