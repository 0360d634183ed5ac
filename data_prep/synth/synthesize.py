"""Documents → question–passage pairs, offline: by rules alone, no model and no network.

Invariant: a pair's passage never contains its query, its source is `synth:STYLE`, and what is drawn for a document
depends on the seed and the document's id. The rules are in `rules.py`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from data_prep.config import Section
from data_prep.corpus.keys import text_key
from data_prep.errors import UserError
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.synth.rules import STYLES, Parts, candidates, contains, cut_words, split_document, words

Share = Annotated[float, Field(ge=0, le=1)]


class SynthConfig(Section):
    """`[synth]`: which questions to read out of documents."""

    styles: list[str] = Field(default=["question", "title", "cloze"], min_length=1)
    """Any of question, title, cloze, keywords; earlier ones are tried first where a document may give only a few."""
    question_share: Share = 1.0
    """Share of the documents (0 to 1) asked for question pairs."""
    title_share: Share = 1.0
    """Share of the documents asked for a title pair."""
    cloze_share: Share = 0.5
    """Share of the documents asked for a cloze pair: half, since a sentence is not how people search."""
    keywords_share: Share = 0.25
    """Share of the documents asked for a keyword pair."""
    max_documents: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many documents, drawn by the seed; none reads all."""
    max_pairs_per_document: Annotated[int, Field(ge=1)] = 3
    """So that a long list of questions does not outweigh a hundred articles."""
    min_query_words: Annotated[int, Field(ge=1)] = 2
    """Shorter queries are too vague to have one answer."""
    max_query_words: Annotated[int, Field(ge=1)] = 64
    """Longer queries are dropped."""
    min_passage_words: Annotated[int, Field(ge=1)] = 8
    """Shorter passages hold no answer."""
    max_passage_words: Annotated[int, Field(ge=1)] = 400
    """Longer passages are cut here: about 600 tokens, what the published evaluation chunks hold."""
    max_documents_per_title: Annotated[int, Field(ge=1)] = 3
    """A first line that more documents share is a heading (Pengenalan, Naskhah Sahih), not a title."""
    keyword_count: Annotated[int, Field(ge=2)] = 4
    """Words in a keyword query."""

    @field_validator("styles")
    @classmethod
    def _known_styles(cls, styles: list[str]) -> list[str]:
        unknown = [style for style in styles if style not in STYLES]
        if unknown or len(set(styles)) < len(styles):
            raise ValueError(f"synth.styles = {styles} must be distinct and among {', '.join(STYLES)}")
        return styles


def synthesize_pairs(
    config: SynthConfig, *, documents: Path, out: Path, seed: int, progress: Progress
) -> dict[str, int | float]:
    """Read pairs out of documents; write a shard folder of kind `pairs` to `out`.

    Args:
        documents: a shard folder of kind `documents`.
        seed: draws documents, styles and sentences.

    Returns:
        Counts: documents, pairs, one count a style of `STYLES`, and candidates refused_query_length,
        refused_passage_length, refused_query_in_passage, refused_common_title, duplicates; documents_without_pair.

    Raises:
        UserError: no pair at all.
    """
    import numpy as np

    shards = Shards(documents, "documents")
    order = np.arange(len(shards))
    if config.max_documents is not None and config.max_documents < len(shards):
        order = np.sort(np.random.default_rng([seed, 3]).choice(len(shards), config.max_documents, replace=False))
    with progress.work("synthesise"):
        rows = shards.take(order.tolist())
        maker = _Maker(config, seed, rows, progress)
        progress.begin("synthesise", len(rows), "documents")
        with ShardWriter(out, "pairs") as writer:
            for row in rows:
                made = maker.pairs(row)
                writer.extend(made)
                maker.counts["documents_without_pair"] += not made
                progress.advance(1)
            if not maker.counts["pairs"]:
                raise UserError(
                    f"synth.styles = {config.styles}",
                    f"finds no pair in {len(rows)} documents (" + maker.reasons() + ")",
                    "add styles (cloze needs only sentences), raise their shares, or loosen the limits on words",
                )
    return {"documents": len(rows), **maker.counts}


_REFUSED = ("refused_query_length", "refused_passage_length", "refused_query_in_passage", "refused_common_title")


class _Maker:
    """Makes the pairs of one document after another, and counts.

    Attributes:
        counts: see `synthesize_pairs`.
    """

    def __init__(self, config: SynthConfig, seed: int, rows: list[dict[str, Any]], progress: Progress) -> None:
        self._config, self._seed = config, seed
        self.counts = dict.fromkeys(("pairs", *STYLES, *_REFUSED, "duplicates", "documents_without_pair"), 0)
        self._seen: set[tuple[str, str]] = set()
        self._shares = {style: float(getattr(config, f"{style}_share")) for style in config.styles}
        self._titles = Counter(text_key(row["text"].partition("\n")[0]) for row in rows if "\n" in row["text"])
        self._frequency: Counter[str] = Counter()
        if "keywords" in config.styles:
            progress.begin("count words", len(rows), "documents")
            for row in rows:
                self._frequency.update(set(words(row["text"])))
                progress.advance(1)

    def reasons(self) -> str:
        """The refusals, for an error message."""
        return ", ".join(f"{name} {self.counts[name]}" for name in (*_REFUSED, "duplicates"))

    def pairs(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The pair rows of one document, at most `max_pairs_per_document`."""
        import numpy as np

        config = self._config
        generator = np.random.default_rng([self._seed, int(row["id"], 16)])
        drawn = dict(zip(STYLES, generator.random(len(STYLES)), strict=True))
        parts = split_document(row["text"])
        made: list[dict[str, Any]] = []
        for style in config.styles:
            if drawn[style] >= self._shares[style]:
                continue
            found = candidates(
                parts,
                style,
                generator,
                min_words=config.min_query_words,
                max_words=config.max_query_words,
                keyword_count=config.keyword_count,
                document_frequency=self._frequency,
            )
            for query, passage in found:
                if len(made) == config.max_pairs_per_document:
                    return made
                passage = cut_words(passage, config.max_passage_words)
                reason = self._refuse(style, query, passage, parts)
                if reason:
                    self.counts[reason] += 1
                    continue
                made.append(
                    pair_row(
                        query, [passage], [], f"synth:{style}", row["language"],
                        query_document=row["id"], positive_documents=[row["id"]],
                    )
                )  # fmt: skip
                self.counts["pairs"] += 1
                self.counts[style] += 1
        return made

    def _refuse(self, style: str, query: str, passage: str, parts: Parts) -> str | None:
        """The count under which the candidate is refused, or None; one that passes is remembered."""
        config = self._config
        if not config.min_query_words <= len(query.split()) <= config.max_query_words:
            return "refused_query_length"
        if len(passage.split()) < config.min_passage_words:
            return "refused_passage_length"
        if contains(passage, query):
            return "refused_query_in_passage"
        if style == "title" and self._titles[text_key(parts.title or "")] > config.max_documents_per_title:
            return "refused_common_title"
        key = (text_key(query), text_key(passage))
        if key in self._seen:
            return "duplicates"
        self._seen.add(key)
        return None
