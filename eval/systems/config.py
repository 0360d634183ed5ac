"""The fields of [eval] that switch on what is compared besides BM25, the stages of the run and published models."""

from __future__ import annotations

import re
from typing import Any

from pydantic import Field, field_validator

from data_prep.config import Section
from data_prep.embed.endpoint import EmbeddingEndpointConfig
from eval.systems.tfidf import TfidfTerms

_NAME = re.compile(r"[\w.@ -]{1,64}")


class EndpointSystemConfig(EmbeddingEndpointConfig):
    """`[[eval.endpoints]]`: an embedding model behind an OpenAI-compatible endpoint, as one more system.

    The key stays in the environment; `api_key_env` is the name of its variable.
    """

    name: str | None = None
    """What tables call it; unset: the last part of the model's name."""
    query_prefix: str = ""
    """Text put before every query, as the model's authors ask for it."""
    passage_prefix: str = ""
    """Text put before every document."""

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and (not _NAME.fullmatch(name) or not name.strip()):
            raise ValueError("must be 1 to 64 letters, digits, spaces or one of . _ @ -")
        return name

    @property
    def title(self) -> str:
        """What tables call it."""
        return self.name or self.model.rstrip("/").rsplit("/", 1)[-1]


class SystemsConfig(Section):
    """Fields of [eval]: further systems. All are off, so that tables stay as they were."""

    tfidf: bool = False
    """Measure TF-IDF (sparse, cosine), which needs no model either."""
    tfidf_terms: TfidfTerms = "both"
    """Words as BM25 sees them, character 3- to 5-grams, which forgive spelling, or the mean of the two cosines."""
    endpoints: list[EndpointSystemConfig] = Field(default=[])
    """Embedding models behind OpenAI-compatible endpoints, one `[[eval.endpoints]]` each; every text is sent there."""
    checkpoints: bool = False
    """Measure every checkpoint of the finetuning that is still there; `checkpoint.keep` says how many are."""
    published: bool = False
    """Put the figures of arXiv 2402.03053 into results.json, apart from what was measured: other sets, not rerun."""

    @field_validator("endpoints", mode="before")
    @classmethod
    def _are_a_list(cls, given: Any) -> Any:
        if isinstance(given, dict):
            raise ValueError("is a single table. Fix: write [[eval.endpoints]], in two brackets, before each of them")
        return given
