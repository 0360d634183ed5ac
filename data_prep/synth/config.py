"""`[synth]`: which questions to make of documents, how, and which to keep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.config import Section
from data_prep.embed.teacher import TeacherConfig
from data_prep.mine.policy import Policy
from data_prep.synth.chunks import ChunksConfig
from data_prep.synth.filters import FiltersConfig
from data_prep.synth.generator import OFFLINE_STYLES, STYLES
from data_prep.synth.llm import LlmConfig

Share = Annotated[float, Field(ge=0, le=1)]


class SynthConfig(Section):
    """`[synth]`: which questions to make of documents."""

    generator: Literal["offline", "llm"] = "offline"
    """`offline` needs no model: rules ask. `llm` asks the chat endpoint of [synth.llm] for the styles question,
    keywords, colloquial, cross_lingual and multi_hop; the others are the text's own words and come by rules as well."""
    styles: list[str] = Field(default=["question", "title", "cloze"], min_length=1)
    """Any of question, title, cloze, keywords, heading, extractive, blank, colloquial, multi_hop, and with `llm` also
    cross_lingual. Earlier ones are tried first where a text may give only a few."""
    question_share: Share = 1.0
    """Share of the documents (of the chunks, where documents are cut; 0 to 1) asked for question pairs."""
    title_share: Share = 1.0
    """Share of the documents asked for a title pair; of a cut document only the first chunk is asked."""
    cloze_share: Share = 0.5
    """Share of the documents asked for a cloze pair: half, since a sentence is not how people search."""
    keywords_share: Share = 0.25
    """Share of the documents asked for a keyword pair."""
    heading_share: Share = 1.0
    """Share of the chunks that begin with a heading asked for it; needs [synth.chunks]."""
    extractive_share: Share = 1.0
    """Share of the documents whose sentences are turned into questions."""
    blank_share: Share = 0.25
    """Share of the documents asked for a sentence with a figure or name left out; it shares all words with its text."""
    colloquial_share: Share = 0.5
    """Share of the documents asked for questions in chat spelling."""
    multi_hop_share: Share = 0.5
    """Share of the chunks asked together with another one for a question that needs both."""
    cross_lingual_share: Share = 0.5
    """Share of the documents asked for questions in another language."""
    questions_per_ask: Annotated[int, Field(ge=1, le=20)] = 2
    """Questions wanted of one style about one chunk; what the text itself holds (question lines) all counts."""
    cross_languages: list[Literal["ms", "id", "en", "zh", "ta"]] = Field(default=["en", "ms"], min_length=1)
    """Languages of cross-lingual questions: the first that is not the chunk's own (Malay and Indonesian are one)."""
    max_documents: Annotated[int, Field(ge=1)] | None = None
    """Read at most this many documents, drawn by the seed; none reads all."""
    max_pairs_per_document: Annotated[int, Field(ge=1)] = 3
    """So that a long list of questions does not outweigh a hundred articles; a chunk counts as a document."""
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
    """Words in an offline keyword query."""
    chunks: ChunksConfig | None = None
    """Cut long documents by their structure; without this table they stay whole and passages are cut by words."""
    filters: FiltersConfig = FiltersConfig()
    """Which written questions are kept."""
    teacher: TeacherConfig = TeacherConfig(reduction="random", dimension=2048, min_documents=1)
    """Who judges the round trip, and mines negatives. TF-IDF needs no model, and rules ask with words of their passage.
    Over 42,000 real chunks 1,024 dimensions keep 2,250 of 3,273 questions, 4,096 keep 2,405: the noise of a projection
    loses short questions."""

    llm: LlmConfig | None = None
    """The chat endpoint of `generator = "llm"`."""
    negatives: Policy | None = None
    """Mine hard negatives for the pairs by this policy; without this table they get none (their batch gives them
    others)."""

    @field_validator("styles")
    @classmethod
    def _known_styles(cls, styles: list[str]) -> list[str]:
        unknown = [style for style in styles if style not in STYLES]
        if unknown or len(set(styles)) < len(styles):
            raise ValueError(f"synth.styles = {styles} must be distinct and among {', '.join(STYLES)}")
        return styles

    @model_validator(mode="after")
    def _generator_knows_styles(self) -> SynthConfig:
        if self.generator == "offline":
            for style in self.styles:
                if style not in OFFLINE_STYLES:
                    raise ValueError(
                        f'synth.styles = {self.styles}: {style!r} needs generator = "llm" (rules do not translate); '
                        f"offline: {', '.join(OFFLINE_STYLES)}"
                    )
        if self.generator == "llm" and self.llm is None:
            raise ValueError('synth.generator = "llm" needs [synth.llm] with base_url and model')
        if self.generator == "offline" and self.llm is not None:
            raise ValueError(
                '[synth.llm] is given, but synth.generator = "offline". Fix: set it to "llm", or remove the table'
            )
        if "heading" in self.styles and self.chunks is None:
            raise ValueError("synth.styles: 'heading' needs documents that are cut. Fix: add [synth.chunks]")
        return self
