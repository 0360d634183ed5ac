"""Long documents → chunks that can be asked about.

Invariant: the chunks' spans [start, stop) tile the document: joined they are its text, character by character. No cut
lies inside a sentence unless the sentence alone is longer than a chunk may be, and no heading is a chunk's last line.

Every place where the document may be cut has a price by what begins there (a heading costs least, the middle of a long
sentence most), every chunk one by how far it is from the target; the cheapest cutting is found by dynamic programming.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.files import content_id
from data_prep.synth.structure import Unit, units_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# A piece of text that weighs about as much as a word: one character where words are not parted by spaces, else a run of
# at most 24 characters (a URL, a table row of dots is more than one).
_PIECE = re.compile(
    r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]|[\u0e00-\u0eff]{1,4}|[^\s\u2e80-\u9fff\uac00-\ud7af]{1,24}"
)


class ChunksConfig(Section):
    """`[synth.chunks]`: how long documents are cut; without this table they stay whole."""

    tokenizer: str | None = None
    """A Hugging Face tokenizer folder (tokenizer.json) that counts tokens; none counts words × `tokens_per_word`."""
    tokens_per_word: Annotated[float, Field(gt=0)] = 1.5
    """Without a tokenizer: tokens of a word. 1.5 is what a 32k vocabulary needs for Malay; an English one needs 2."""
    target_tokens: Annotated[int, Field(ge=1)] = 256
    """Chunks come as near to this as the text's structure lets them."""
    max_tokens: Annotated[int, Field(ge=1)] = 512
    """No chunk is longer, its overlap and title included."""
    min_tokens: Annotated[int, Field(ge=0)] = 32
    """A shorter chunk is joined to a neighbour wherever the maximum lets it."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 0
    """Repeat whole sentences of the chunk before, up to so many tokens; 0 repeats nothing."""
    prefix_title: bool = False
    """Put the document's title and the headings above a chunk before its text, as a line of their own."""
    title_tokens: Annotated[int, Field(ge=1)] = 64
    """Room kept for that line; a longer one is cut."""

    @model_validator(mode="after")
    def _sizes_fit(self) -> ChunksConfig:
        room = self.max_tokens - self.overlap_tokens - (self.title_tokens if self.prefix_title else 0)
        if not self.min_tokens <= self.target_tokens <= room:
            raise ValueError(
                f"synth.chunks: min_tokens ({self.min_tokens}) <= target_tokens ({self.target_tokens}) <= max_tokens "
                f"less overlap and title ({room}) must hold"
            )
        return self


@dataclass(frozen=True)
class Chunk:
    """One piece of a document.

    Attributes:
        id: 32 hex digits; the document's own id where it is one chunk.
        document: the id of the row that it was cut from.
        index: its number in the document, from 0.
        start, stop: its place in the document's text.
        text: what it says, with its overlap, without white space around it.
        titles: the document's title and the headings that it stands under, outermost first.
        prefix: `titles` in one line with its line break where the config asks for it, else empty.
    """

    id: str
    document: str
    index: int
    start: int
    stop: int
    text: str
    titles: tuple[str, ...]
    prefix: str = ""


class Ruler:
    """Counts tokens, at any place of one text after another.

    Raises:
        UserError: the tokenizer folder holds none.
    """

    def __init__(self, config: ChunksConfig) -> None:
        self._factor = config.tokens_per_word
        self._tokenizer: PreTrainedTokenizerFast | None = None
        if config.tokenizer is not None:
            from data_prep.tokenizer import load_tokenizer

            self._tokenizer, self._factor = load_tokenizer(Path(config.tokenizer)), 1.0

    def lay(self, text: str) -> Measure:
        """Measure a text once, then ask for the size of any part."""
        if self._tokenizer is None:
            return Measure([match.start() for match in _PIECE.finditer(text)], self._factor)
        found = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        # Several tokens of one character (bytes) begin at the same place and stay together.
        return Measure([start for start, stop in found["offset_mapping"] if stop > start], 1.0)


@dataclass(frozen=True)
class Measure:
    """Where a text's tokens begin, and how much each weighs."""

    starts: list[int]
    factor: float

    def size(self, start: int, stop: int) -> float:
        """Tokens that begin in [start, stop)."""
        return (bisect_left(self.starts, stop) - bisect_left(self.starts, start)) * self.factor


def cut(text: str, config: ChunksConfig, ruler: Ruler, *, document: str) -> list[Chunk]:
    """Cut one document.

    Args:
        text: the document, lines parted by newlines.
        ruler: of the same config.
        document: its id, a content hash; with the place it makes the chunks' ids.

    Returns:
        The chunks in order; none for a text of white space alone.
    """
    if not text.strip():
        return []
    measure = ruler.lay(text)
    room = config.max_tokens - config.overlap_tokens - (config.title_tokens if config.prefix_title else 0)
    units = units_of(text, measure, room)
    places = [units[number].start for number in _cheapest(units, measure, len(text), config, room)] + [len(text)]
    chunks = []
    for index, (start, stop) in enumerate(pairwise(places)):
        whole = len(places) == 2
        first = next(unit for unit in units if unit.start == start)
        begin = _overlap(units, measure, start, config.overlap_tokens) if index else start
        chunks.append(
            Chunk(
                id=document if whole else content_id(f"{document} {start} {stop}"),
                document=document,
                index=index,
                start=start,
                stop=stop,
                text=text[begin:stop].strip(),
                titles=first.titles,
                prefix=_prefix(first.titles, ruler, config) if config.prefix_title and index else "",
            )
        )
    return chunks


def _cheapest(units: list[Unit], measure: Measure, length: int, config: ChunksConfig, room: int) -> list[int]:
    """Numbers of the units that begin a chunk."""
    places = [bisect_left(measure.starts, unit.start) for unit in units]
    places.append(bisect_left(measure.starts, length))
    # So large that one chunk fewer below the minimum outweighs every other price.
    small = 1000.0 + 10 * (room / config.target_tokens) ** 2
    best = [0.0] + [float("inf")] * len(units)
    back = [0] * (len(units) + 1)
    for stop in range(1, len(units) + 1):
        for start in range(stop - 1, -1, -1):
            size = (places[stop] - places[start]) * measure.factor
            if size > room and start < stop - 1:
                break
            price = best[start] + units[start].price + (size / config.target_tokens - 1) ** 2
            price += small if size < config.min_tokens else 0.0
            if price < best[stop]:
                best[stop], back[stop] = price, start
    numbers: list[int] = []
    stop = len(units)
    while stop:
        stop = back[stop]
        numbers.append(stop)
    return numbers[::-1]


def _overlap(units: list[Unit], measure: Measure, start: int, tokens: int) -> int:
    """Where the repeated sentences begin: as many whole units before `start` as fit."""
    begin = start
    for unit in reversed(units):
        if unit.start >= start:
            continue
        if measure.size(unit.start, start) > tokens:
            break
        begin = unit.start
    return begin


def _prefix(titles: tuple[str, ...], ruler: Ruler, config: ChunksConfig) -> str:
    line = " › ".join(titles)
    measure = ruler.lay(line)
    if measure.size(0, len(line)) > config.title_tokens:
        line = line[: measure.starts[int(config.title_tokens / measure.factor)]].rstrip()
    return f"{line}\n" if line else ""
