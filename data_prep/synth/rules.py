"""The ways to read a question and its answer out of one document, without a model.

Invariant: a candidate's passage never contains its query (compared without case, white space collapsed), so a pair can
not be solved by finding the query's own line. Each rule is a pure function of the document and, where it draws, of the
generator it is given.

- title: a short first line → the text below it.
- question: a line that begins with `Soalan:`, `Tanya:`, `Q:` or `Question:` → the text without title and question
  lines.
- cloze: one sentence → the passage without it (the inverse cloze task, arXiv 1906.00300).
- keywords: the document's rarest words → its text, as people type into a search box.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy.random import Generator

STYLES = ("question", "title", "cloze", "keywords")
TITLE_MAX_WORDS = 20

_QUESTION = re.compile(r"^\W*(?:soalan|tanya|question|q)\s*\d*\s*:\s*", re.IGNORECASE)
# A line out of the middle of a list or a sentence is no title: "(b) bagi maksud", "3. Akta ini", "dan, jika perlu,".
_FRAGMENT = re.compile(r"^(?:\(\w{1,4}\)|\d+[.)]\s|\w\))|[,;:—–-]$")
_ANSWER = re.compile(r"^\W*(?:jawapan|jawab|answer|a)\s*\d*\s*:\s*", re.IGNORECASE)
# A sentence ends at . ! ? … (or their Chinese forms) and the space or line after them; a line break always ends one.
_SENTENCE = re.compile(r"[^\n]+?(?:[.!?…]+[\"'”’)\]]*(?=\s|$)|[。！？]|(?=\n)|$)")
_WORD = re.compile(r"\w[\w'’-]*\w")


@dataclass(frozen=True)
class Parts:
    """A document taken apart.

    Attributes:
        title: its first line where that is short and text follows, else None.
        questions: the texts of its question lines, without their label.
        body: what is left: no title, no question lines, no answer labels.
    """

    title: str | None
    questions: tuple[str, ...]
    body: str


def split_document(text: str) -> Parts:
    """Take a cleaned document (lines parted by newlines) apart."""
    lines = text.split("\n")
    title: str | None = None
    filled = [line for line in lines if line.strip()]
    if len(filled) > 1 and is_title(filled[0].strip()):
        title = filled[0].strip()
        lines = lines[lines.index(filled[0]) + 1 :]
    questions: list[str] = []
    body: list[str] = []
    label_alone = False
    for line in lines:
        label = _QUESTION.match(line)
        if label and line[label.end() :].strip():
            questions.append(line[label.end() :].strip())
        elif label:
            label_alone = True  # the question stands on the next line
            continue
        elif label_alone and line.strip():
            questions.append(line.strip())
        elif title is None or _flat(line) != _flat(title):  # some pages repeat their title
            body.append(_ANSWER.sub("", line))
        label_alone = label_alone and not line.strip()
    return Parts(title, tuple(questions), "\n".join(body).strip())


def is_title(line: str) -> bool:
    """Whether a document's first line, without white space around it, can be its title."""
    return len(line.split()) <= TITLE_MAX_WORDS and not _QUESTION.match(line) and not _FRAGMENT.search(line)


def _flat(text: str) -> str:
    return " ".join(text.lower().split())


def words(text: str) -> list[str]:
    """Lower-cased words of two or more letters or digits."""
    return [word.lower() for word in _WORD.findall(text)]


def contains(passage: str, query: str) -> bool:
    """Whether the passage holds the query verbatim, but for case and white space."""
    return _flat(query) in _flat(passage)


def cut_words(text: str, most: int) -> str:
    """The text up to its word number `most`; line breaks inside stay."""
    for number, match in enumerate(re.finditer(r"\S+", text), start=1):
        if number == most:
            return text[: match.end()]
    return text


def cloze(body: str, generator: Generator, *, min_words: int, max_words: int) -> tuple[str, str] | None:
    """(one sentence of fitting length, the body without it), or None where there is no such sentence."""
    spans = [match.span() for match in _SENTENCE.finditer(body)]
    fitting = [span for span in spans if min_words <= len(body[slice(*span)].split()) <= max_words]
    if len(spans) < 2 or not fitting:
        return None
    start, stop = fitting[int(generator.integers(len(fitting)))]
    before, after = body[:start].rstrip(), body[stop:].lstrip()
    # Where the sentence was a line of its own, the lines around it stay lines.
    broken = "\n" in body[len(before) : start] or body[stop : len(body) - len(after)].startswith("\n")
    rest = f"{before}{chr(10) if broken else ' '}{after}".strip()
    return body[start:stop].strip(), rest


def keywords(body: str, document_frequency: Mapping[str, int], *, count: int, min_documents: int = 2) -> str | None:
    """The body's `count` rarest words in their order in the text, or None where it has fewer.

    Words of fewer than `min_documents` documents are passed over (misspellings, serial numbers), as are numbers.
    """
    seen: dict[str, int] = {}
    for place, word in enumerate(words(body)):
        if not word.isnumeric() and document_frequency.get(word, 0) >= min_documents:
            seen.setdefault(word, place)
    if len(seen) < count:
        return None
    rarest = sorted(seen, key=lambda word: (document_frequency[word], word))[:count]
    return " ".join(sorted(rarest, key=seen.__getitem__))


def candidates(
    parts: Parts,
    style: str,
    generator: Generator,
    *,
    min_words: int,
    max_words: int,
    keyword_count: int,
    document_frequency: Mapping[str, int],
) -> Iterator[tuple[str, str]]:
    """(query, passage) of one style, before the limits on their lengths."""
    if not parts.body:
        return
    if style == "question":
        for question in parts.questions:
            yield question, parts.body
    elif style == "title" and parts.title:
        yield parts.title, parts.body
    elif style == "cloze":
        pair = cloze(parts.body, generator, min_words=min_words, max_words=max_words)
        if pair:
            yield pair
    elif style == "keywords":
        query = keywords(parts.body, document_frequency, count=keyword_count)
        if query:
            yield query, parts.body
