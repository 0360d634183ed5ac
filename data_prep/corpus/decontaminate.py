"""No evaluation text in training: which training text repeats a query or a document of an evaluation set.

A training text overlaps an evaluation text (its query, its document, or the document without its title line) where

- exact: the two are the same;
- normalised: they are the same letters and digits in NFKC and lower case, whatever the spacing and punctuation;
- ngram: runs of `ngram_words` words that both hold cover `ngram_share` of the evaluation text's words (runs that stand
  in more than `ngram_common` evaluation documents are formulas and do not count), or the training
  text holds all of a shorter evaluation text (of at least `inside_words` words) in a row;
- near: the two are the same but for edits (a word replaced, added or left out) to at most 1 - `near` of the evaluation
  text's words. An evaluation text of `ngram_words` words or more is sought inside longer training texts as well, a
  shorter one (of at least `whole_words` words) is compared with the whole training text.

Evaluation texts of fewer than `whole_words` words count as whole only (exact, normalised): a query such as "terima
kasih" must not empty a corpus. The search is exact: candidates come from counting words and pairs of words, and nothing
that satisfies a rule is missed. (MinHash would miss: a copy with every fifth word changed and its original share a
quarter of their shingles of three words, less than any usual threshold.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.corpus.keys import text_key
from data_prep.corpus.words import Words, words_of
from data_prep.errors import UserError
from data_prep.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OverlapKind = Literal["exact", "normalised", "ngram", "near"]
EvaluationText = tuple[str, Literal["query", "document"], str]
"""Set, part, id."""
_SHOWN_CHARACTERS = 120
_SHORT_CHARACTERS = 500
"""A longer line has more words than any evaluation text that is compared with whole texts only."""


class DecontaminateConfig(Section):
    """`[corpus.decontaminate]`: what counts as a text of an evaluation set, and what happens to it."""

    on_overlap: Literal["fail", "remove"] = "fail"
    """`fail` stops the run and names the first overlapping texts: whoever trains should know. `remove` leaves them out,
    counts them and shows samples; crawls always hold some. Before training all text is checked once more, and what is
    found then always fails."""
    ngram_words: Annotated[int, Field(ge=5, le=50)] = 13
    """Length of a shared run of words that counts, in words; 13 as is usual."""
    ngram_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.2
    """Share of an evaluation text's words that such runs must cover. 0 takes any single run, which in law and news is
    mostly the name of an act or an office."""
    ngram_common: Annotated[int, Field(ge=1)] = 3
    """Runs that stand in more evaluation documents than this are formulas, as statutes have them, and do not count."""
    near: Annotated[float, Field(ge=0.7, le=1.0)] = 0.75
    """Share of an evaluation text's words that must be left unedited. 0.75 finds copies with every fifth word changed,
    also where a short text rounds it up."""
    whole_words: Annotated[int, Field(ge=5)] = 5
    """Evaluation texts of fewer words count only where the whole training text is the same."""
    inside_words: Annotated[int, Field(ge=5)] = 8
    """Least words of an evaluation text that counts where a longer training text holds it word for word."""


@dataclass(frozen=True)
class Overlap:
    """What a training text shares with an evaluation set.

    Attributes:
        kind: how (see the module).
        set, part, id: the evaluation set, `query` or `document`, and its id there.
        similarity: 1 for exact and normalised; the share of the evaluation text's words that shared runs cover (ngram)
            or that are unedited (near).
        words: the beginning of what the training text shares.
    """

    kind: OverlapKind
    set: str
    part: Literal["query", "document"]
    id: str
    similarity: float
    words: str

    def __str__(self) -> str:
        """One phrase that names the evaluation text."""
        return f"{self.part} {self.id} of {self.set} ({self.kind}, {self.similarity:.2f}): “{self.words}”"


@dataclass(frozen=True)
class _Entry:
    """One form of one evaluation text."""

    set: str
    part: Literal["query", "document"]
    id: str
    text: str


class Gate:
    """All texts of some evaluation sets, indexed; `find` says whether a training text repeats one.

    Args:
        sets: folders in BEIR layout; none finds nothing.
        clean: what training texts went through (repair, placeholders): evaluation texts are also sought in that form.

    Not for several threads at once: `find` writes to scratch tables. Memory: about 100 bytes a word of the sets.

    Raises:
        UserError: a folder is not an evaluation set.
    """

    def __init__(
        self, sets: list[Path], config: DecontaminateConfig | None = None, *, clean: Callable[[str], str] | None = None
    ) -> None:
        import numpy as np

        from data_prep.corpus.overlap_index import pair_table, run_table

        self.config = config or DecontaminateConfig()
        self._entries: list[_Entry] = []
        self._letters: dict[int, int] = {}
        self._keys: dict[str, int] = {}
        hashes: list[NDArray[np.uint64]] = []
        self._names: list[list[EvaluationText]] = []  # of every entry, whose text it is
        self._numbers: dict[EvaluationText, list[int]] = {}  # entries of every evaluation text
        for entry in _entries(sets, clean, self.config.whole_words):
            words = words_of(entry.text)
            known: dict[int, int] | dict[str, int] = self._letters if words.letters else self._keys
            key = words.letters or text_key(entry.text)
            if key not in known:
                known[key] = len(hashes)  # type: ignore[index]
                self._entries.append(entry)
                self._names.append([])
                hashes.append(words.hashes)
            name, number = (entry.set, entry.part, entry.id), known[key]  # type: ignore[index]
            self._names[number].append(name)
            self._numbers.setdefault(name, []).append(number)
        first_of = {name: number for number, name in enumerate(self._numbers)}
        documents = [first_of[names[0]] for names in self._names]
        lengths = [len(h) for h in hashes]
        self._words = np.concatenate([*hashes, np.empty(0, np.uint64)])
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
        edits = [self._edits(n) if n >= self.config.whole_words else -1 for n in lengths]
        inside = [self._edits_inside(n) for n in lengths]
        self._edits_whole, self._edits_in = np.array(edits, np.int32), np.array(inside, np.int32)
        self._runs = run_table(hashes, documents, self.config.ngram_words, self.config.ngram_common)
        self._pairs = pair_table(hashes, edits)
        self._seen, self._counts = np.zeros((2, len(hashes)), np.int64), np.zeros((2, len(hashes)), np.int32)
        self._first, self._end = np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.int64)
        self._forgotten = np.zeros(len(hashes), np.bool_)
        self._covered = np.zeros(len(self._words), np.int64)
        self._number = 0

    def _edits(self, words: int) -> int:
        return math.floor((1 - self.config.near) * words + 1e-9)

    def _edits_inside(self, words: int) -> int:
        if words >= self.config.ngram_words:
            return self._edits(words)
        return 0 if words >= max(self.config.inside_words, self.config.whole_words) else -1

    def __len__(self) -> int:
        """The number of distinct evaluation texts."""
        return len(self._entries)

    def find(self, text: str) -> Overlap | None:
        """The evaluation text that a training text repeats, None where it repeats none.

        The first rule in the order exact, normalised, ngram, near that holds; within it the highest similarity. The
        first line and what follows it are also compared as texts of their own where they are short (but not of one word
        or two, as "Sumber:"): a title may become a query.
        """
        if not self._entries:
            return None
        words = words_of(text)
        found = self._same(text, words) or self._shared(words) or self._near(words)
        if found is None and "\n" in (text := text.strip()):
            for part in text.split("\n", 1):
                if found is None and len(part) <= _SHORT_CHARACTERS:
                    words = words_of(part)
                    found = (self._same(part, words) or self._near(words)) if len(words.hashes) >= 3 else None
        return found

    def _same(self, text: str, words: Words) -> Overlap | None:
        number = self._letters.get(words.letters) if words.letters else self._keys.get(text_key(text))
        if number is None or self._forgotten[number]:
            return None
        same = self._entries[number].text.strip() == text.strip()
        return self._overlap("exact" if same else "normalised", number, 1.0, " ".join(text.split()))

    def forget(self, overlap: Overlap) -> list[EvaluationText]:
        """Seek no form of this evaluation text any longer.

        Returns:
            The evaluation texts that lost a form: this one, and those that are the same as one of its forms.
        """
        lost: dict[EvaluationText, None] = {}
        for number in self._numbers[overlap.set, overlap.part, overlap.id]:
            self._forgotten[number] = True
            lost.update(dict.fromkeys(self._names[number]))
        return list(lost)

    def remember(self) -> None:
        """Seek all texts again."""
        self._forgotten[:] = False

    def _shared(self, words: Words) -> Overlap | None:
        from data_prep.corpus.overlap_kernels import covered_text
        from data_prep.corpus.word_kernels import grams

        self._number += 1
        entry, count, first, end = covered_text(
            words.hashes,
            grams(words.hashes, self.config.ngram_words),
            self.config.ngram_words,
            self._number,
            *self._runs,
            self._words,
            self._starts,
            self._forgotten,
            self._seen[0],
            self._counts[0],
            self._covered,
            self._first,
            self._end,
        )
        share = count / (self._starts[entry + 1] - self._starts[entry]) if entry >= 0 else -1.0
        if entry < 0 or share < self.config.ngram_share:
            return None
        return self._overlap("ngram", entry, float(share), words.shown(first, end))

    def _near(self, words: Words) -> Overlap | None:
        from data_prep.corpus.overlap_kernels import near_text
        from data_prep.corpus.word_kernels import grams

        self._number += 1
        entry, edits, first, end = near_text(
            words.hashes,
            grams(words.hashes, 2),
            self._number,
            *self._pairs[:4],
            self._words,
            self._starts,
            self._forgotten,
            self._edits_whole,
            self._edits_in,
            self._pairs.need,
            self._seen,
            self._counts,
        )
        if entry < 0:
            return None
        length = int(self._starts[entry + 1] - self._starts[entry])
        return self._overlap("near" if edits else "ngram", entry, 1 - edits / length, words.shown(first, end))

    def _overlap(self, kind: OverlapKind, number: int, similarity: float, words: str) -> Overlap:
        entry = self._entries[number]
        cut = words if len(words) <= _SHOWN_CHARACTERS else words[: _SHOWN_CHARACTERS - 1].rstrip() + "…"
        return Overlap(kind, entry.set, entry.part, entry.id, similarity, cut)


def _entries(sets: list[Path], clean: Callable[[str], str] | None, whole_words: int) -> Iterator[_Entry]:
    """Every form of every text of the sets; queries come first, so that the name of a query wins over its copies.

    A body of fewer than `whole_words` words is no form of its document.
    """
    from data_prep.evaluation_sets import load_set

    loaded = [load_set(folder) for folder in sets]
    for one in loaded:
        for ident, query in zip(one.query_ids, one.queries, strict=True):
            yield from _forms(one.name, "query", ident, [query], clean)
    for one in loaded:
        for ident, document in zip(one.document_ids, one.documents, strict=True):
            body = document.partition("\n")[2]
            forms = [document, body] if len(words_of(body).hashes) >= whole_words else [document]
            yield from _forms(one.name, "document", ident, forms, clean)


def _forms(
    name: str, part: Literal["query", "document"], ident: str, texts: list[str], clean: Callable[[str], str] | None
) -> Iterator[_Entry]:
    for text in texts:
        yield _Entry(name, part, ident, text)
        if clean is not None and (cleaned := clean(text)) != text:
            yield _Entry(name, part, ident, cleaned)


def check_training_text(
    texts: Iterable[tuple[str, str]], gate: Gate, *, shown: int = 5, progress: Progress | None = None
) -> int:
    """Make sure that no training text repeats an evaluation text, whatever stage made it.

    Args:
        texts: (where it stands, text), e.g. `("pairs row 12, positive 1", …)`; see `training_texts`.
        shown: how many overlapping texts the error names.

    Returns:
        The number of texts.

    Raises:
        UserError: at least one overlaps; names the first `shown`, what they repeat, and how many there are.
    """
    found: list[str] = []
    overlapping = checked = 0
    clean: set[int] = set()  # negatives repeat: a text that passed is not searched again
    for place, text in texts:
        checked += 1
        if progress is not None:
            progress.advance(1)
        key = hash(text)
        if key in clean:
            continue
        overlap = gate.find(text)
        if overlap is None:
            if len(clean) < 1_000_000:
                clean.add(key)
            continue
        overlapping += 1
        if len(found) < shown:
            found.append(f"{place} repeats {overlap}")
    if overlapping:
        more = f"; and {overlapping - len(found)} more" if overlapping > len(found) else ""
        raise UserError(
            "; ".join(found) + more,
            f"{overlapping} of {checked} training texts repeat evaluation texts",
            'take them out of the training files, or set on_overlap = "remove" in the `decontaminate` table of what '
            "made them, or take the set out of eval.sets",
        )
    return checked


def training_texts(folder: Path, kind: Literal["documents", "pairs"], name: str) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of every text in a shard folder, for `check_training_text`.

    Args:
        name: what to call the folder in messages.
    """
    from data_prep.shards import Shards

    return texts_of(Shards(folder, kind, verify=False), kind, name)


def texts_of(
    rows: Iterable[dict[str, Any]], kind: Literal["documents", "pairs"], name: str, *, first_row: int = 0
) -> Iterator[tuple[str, str]]:
    """(where it stands, text) of every text of some shard rows; `first_row` is the number of the first of them."""
    for number, row in enumerate(rows, start=first_row):
        place = f"{name} row {number} (source {row['source']})"
        if kind == "documents":
            yield place, row["text"]
            continue
        yield f"{place}, query", row["query"]
        for field in ("positives", "negatives"):
            for i, text in enumerate(row[field] or ()):
                yield f"{place}, {field[:-1]} {i}", text
