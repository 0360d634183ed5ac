"""`[mine]`: who embeds, what is searched, and the policy."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.embed.teacher import TeacherConfig
from data_prep.mine.policy import Policy
from data_prep.neighbors.search import Backend


class CrossEncoderConfig(Section):
    """`[mine.cross_encoder]`: a model that reads query and text together and vetoes negatives that it finds relevant.

    It reads only the few texts that were drawn (and as many spares), so it costs a forward pass each.
    """

    model: str
    """A Hugging Face id, a folder, or `package:NAME`, of a sentence-transformers cross-encoder with one output."""
    max_score: float = 0.5
    """A negative scores below this. Scores are as the model gives them, after its own activation (mostly 0 to 1)."""
    margin: Annotated[float, Field(ge=0)] = 0.0
    """… and at least this much below the query's best positive."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Pairs in one forward pass."""
    max_tokens: Annotated[int, Field(ge=8)] = 256
    """Cut longer pairs here; relevance mostly shows early, and cost grows with length."""


class MineConfig(Section):
    """`[mine]`: which texts are searched by whom; `[mine.policy]` says what is taken from what is found."""

    teacher: TeacherConfig = TeacherConfig()
    """The embedder (`[mine.teacher]`)."""
    second_teacher: TeacherConfig | None = None
    """Another embedder that must agree that a negative is none (`[mine.second_teacher]`)."""
    cross_encoder: CrossEncoderConfig | None = None
    """A reranker that must agree too (`[mine.cross_encoder]`)."""
    backend: Backend = "exact"
    """`exact` (blocked matrix product), `kdtree` (as arXiv 2402.03053; same result, slower) or `faiss` (an extra; its
    recall against `exact` is measured). Windows of percentiles, scores or distances are always counted exactly."""
    query: Literal["document", "first_line"] = "document"
    """What stands as the query: the whole document, or its first line (its title). First lines of one or two words
    ("Sumber:") are no queries, nor are those with nothing below them."""
    max_documents: Annotated[int, Field(ge=2)] | None = None
    """Search among at most this many documents, drawn by the seed; none takes all. Time grows with its square."""
    max_queries: Annotated[int, Field(ge=1)] = 50_000
    """Mine for at most this many documents, drawn by the seed."""
    neighbors: Annotated[int, Field(ge=1)] = 50
    """Positives are looked for among so many nearest."""
    audit_pairs: list[str] = Field(default_factory=list)
    """Files of labelled pairs (as in [pairs]) whose positives are known to be relevant: the audit counts how many of
    them the policy would take for negatives. Nothing is trained on them."""
    policy: Policy = Policy()
    """Which of them become positives, and which negatives (`[mine.policy]`)."""

    @model_validator(mode="after")
    def _query_fits_views(self) -> MineConfig:
        if self.policy.views and self.query == "first_line":
            raise ValueError('mine.policy.views mines whole documents: set mine.query = "document"')
        return self

    @property
    def depth(self) -> int:
        """How many nearest texts of any language are searched for."""
        wide = 2 if self.policy.hubness != "none" else 1
        ranks = self.policy.last_rank if self.policy.languages == "any" else 0
        return max(self.neighbors, self.policy.positive_last_rank or 0, ranks * wide)
