"""What asks for questions and what answers: one interface for rules (`offline.py`) and for a language model (`llm.py`).

Invariant: an `Ask` is self-contained and its id is a hash of everything that decides the answer, so that an answer may
be stored under that id and an ask that was answered once is never put again.

| style | asks for | offline | llm |
|---|---|---|---|
| question | offline: the text's own question lines; llm: a question as one types it to an assistant | x | x |
| keywords | a few words as one types them into a search box | x | x |
| colloquial | a question in everyday chat spelling | x | x |
| multi_hop | a question that needs both chunks | x | x |
| cross_lingual | a question in another language than the chunk's | | x |
| extractive | a question that one sentence of the text answers, turned round by rules | x | |
| blank | a sentence with its number, date or name left out | x | |
| cloze | a sentence; the passage is the text without it | x | |
| title | the document's first line | x | |
| heading | the heading that the chunk stands under | x | |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from data_prep.files import content_id
from data_prep.progress import Progress

OFFLINE_STYLES = (
    "question", "title", "cloze", "keywords", "heading", "extractive", "blank", "colloquial", "multi_hop",
)  # fmt: skip
"""Styles that rules can write."""
TEXT_STYLES = ("question", "title", "cloze", "keywords", "heading", "blank")
"""Offline styles whose question is the document's own words: nothing was written that a filter could doubt."""
LLM_STYLES = ("question", "keywords", "colloquial", "cross_lingual", "multi_hop")
"""Styles that a language model can be asked for."""
STYLES = (*OFFLINE_STYLES, "cross_lingual")


@dataclass(frozen=True)
class Ask:
    """One request: `count` questions of one style about one chunk (multi_hop: two).

    Attributes:
        id: 32 hex digits, see `ask_id`.
        style: one of `STYLES`.
        chunks: the texts to ask about: one, or two for multi_hop.
        language: tag of the chunks' language (ms, en, id, zh, ta, mixed …).
        target_language: tag of the language to write the questions in.
        count: how many questions, at least 1.
        title: the document's title and the headings above the chunk, joined by " › "; empty where there is none. It is
            context: a question may not be about the title alone.
    """

    id: str
    style: str
    chunks: tuple[str, ...]
    language: str
    target_language: str
    count: int
    title: str = ""


def ask_id(chunk_ids: Sequence[str], style: str, target_language: str) -> str:
    """32 hex digits that name an ask: a hash of the chunks' ids, the style and the target language."""
    return content_id("\n".join([*chunk_ids, style, target_language]))


@dataclass(frozen=True)
class Made:
    """One question that a generator wrote.

    Attributes:
        question: the question as it shall stand in the pair.
        passage: the text that answers it, where that is not the chunk itself (a sentence was taken out, a title or a
            question line is not part of it); None: the chunks as they were asked about. A language model leaves it out.
    """

    question: str
    passage: str | None = None


class Generator(Protocol):
    """Anything that answers asks.

    Attributes:
        name: what the report calls it, e.g. `offline` or the model's name.
        counts: what it counted so far: requests, tokens, cost …; any keys, numbers only.
    """

    name: str
    counts: dict[str, int | float]

    def generate(self, asks: Sequence[Ask], *, progress: Progress) -> Iterator[tuple[Ask, list[Made]]]:
        """Answer every ask exactly once, in any order; an ask that failed yields an empty list.

        Called once a block of asks (some hundreds to thousands). The caller does not depend on the order of answers.
        """
        ...
