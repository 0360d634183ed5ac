"""[finetune] of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.blend import PRESETS, check_blend, stages_of
from train.objectives import ObjectiveName
from train.phase import PhaseConfig


class FinetuneConfig(PhaseConfig):
    """[finetune]: contrastive finetuning on a blend of pair shards."""

    HARMLESS: ClassVar[frozenset[str]] = PhaseConfig.HARMLESS | {
        "kept_chunks", "layout", "blend_preset", "eval_every_steps", "eval_queries", "eval_documents",
    }  # fmt: skip

    batch_pairs: Annotated[int, Field(gt=1)] = 64
    """Queries in one optimiser step, over all ranks; each sees the passages of all the others as negatives."""
    loss: ObjectiveName = "info_nce"
    """`info_nce` over the texts of all ranks; `margin` is the paper's pairwise loss and `triplet` compares a positive
    with each stored negative; `cosent` orders (query, passage) pairs by their teacher scores."""
    temperature: Annotated[float, Field(gt=0)] = 0.05
    """Divides the cosines of InfoNCE and CoSENT; the paper took 0.02."""
    margin: Annotated[float, Field(gt=0, le=2)] = 0.5
    """Cosine distance of `margin` and `triplet`; 0.5 as in the paper."""
    symmetric: bool = False
    """Also rank the queries for each positive, with half of the weight (InfoNCE only)."""
    query_negatives: bool = False
    """Other queries are negatives of a query too (InfoNCE only; Li et al., 2023)."""
    passage_negatives: bool = False
    """Other passages are negatives of the positive too (InfoNCE only; Li et al., 2023)."""
    positives: Annotated[int, Field(ge=1)] = 1
    """Positives of a query used in one step, where it has several; each counts for its share of the query."""
    hard_negatives: Annotated[int, Field(ge=0)] = 1
    """Stored negatives used for each query, drawn anew each epoch; rows with fewer use what they have."""
    negative_order: Literal["cycle", "easy-to-hard"] = "cycle"
    """`cycle` lets a row's negatives take turns; `easy-to-hard` goes from the lowest score to the highest as training
    goes on, for rows that were mined with the policy of that name."""
    false_negative_margin: Annotated[float, Field(ge=-1, le=2)] | None = None
    """Hide a negative whose cosine passes the positive's by more than this (InfoNCE only); Qwen3-Embedding took 0.1.
    Texts that are known to be positives, or of the same document, are always hidden, across all ranks."""
    matryoshka: list[Annotated[int, Field(gt=0)]] = []  # noqa: RUF012 - frozen by pydantic
    """Also train these shorter prefixes of the vector, e.g. [256, 64], with equal weights; empty: the whole only."""
    homogeneous: bool = False
    """Each batch holds pairs of one source, on all ranks at once: negatives are then of the same kind."""
    avoid_duplicates: bool = True
    """Move pairs that share a text with another of their batch to a batch nearby; each is still used once an epoch."""
    kept_chunks: Annotated[int, Field(ge=1)] | Literal["auto", "all"] = "auto"
    """Chunks of `micro_batch_tokens` whose autograd graph is kept; the others are encoded twice (GradCache). `auto`: as
    many as memory allows, `all`: the plain step, 1: least memory. It never changes the result."""
    layout: Literal["packed", "padded"] = "packed"
    """`packed` computes no padding; models that cannot be packed are padded, with a line in the log."""
    blend: dict[str, Annotated[float, Field(ge=0, le=1)]] = {"pairs": 1.0, "synth": 1.0, "mine": 0.3}  # noqa: RUF012 - frozen by pydantic
    """Share of each source that an epoch uses; 100 % synthetic and 30 % mined as in the paper; absent ones drop out.
    `"pairs:legal_*" = 0.5` is for sources inside a stage's pairs; the most specific entry wins, 0 leaves out."""
    blend_preset: Literal["paper"] | None = None
    """Writes `blend`: `paper` is 100 % synthetic and 30 % mined, and nothing else."""
    blend_cap: Annotated[int, Field(ge=1)] | None = None
    """Most rows that a source gives to an epoch (each value of the pairs' column `source` counts), so that a large one
    does not drown the rest; other rows each epoch."""
    blend_temperature: Annotated[float, Field(ge=1)] | None = None
    """T takes n^(1/T) rows of a source of n, times one factor for all, the largest that repeats no row: 1 as they are,
    2 by the square root; small sources then count for more. The smallest source sets the factor."""

    eval_every_steps: Annotated[int, Field(gt=0)] | None = None
    """Measure recall on a sample of the evaluation sets before the first step, after every so many, and after the last:
    a curve in the metrics. Nothing is chosen by it. Unset: never."""
    eval_queries: Annotated[int, Field(gt=0)] = 200
    """Queries of that sample, over all sets; each brings its relevant documents."""
    eval_documents: Annotated[int, Field(gt=0)] = 2000
    """Documents of that sample, over all sets."""

    @field_validator("blend")
    @classmethod
    def _blend_is_known(cls, blend: dict[str, float]) -> dict[str, float]:
        check_blend(blend)
        return blend

    @model_validator(mode="before")
    @classmethod
    def _preset_is_the_blend(cls, given: Any) -> Any:
        preset = given.get("blend_preset") if isinstance(given, dict) else None
        if not isinstance(preset, str) or preset not in PRESETS:
            return given
        if given.get("blend", PRESETS[preset]) != PRESETS[preset]:
            raise ValueError(
                f"finetune.blend_preset = {preset!r}: and finetune.blend say different things. Fix: remove one of them"
            )
        return {**given, "blend": PRESETS[preset]}

    @property
    def blended(self) -> set[str]:
        """The stages whose pairs the blend takes."""
        return stages_of(self.blend)

    def essentials(self) -> dict[str, Any]:
        """What the result depends on, as JSON values; what is unset is left out, as before it could be set."""
        found = super().essentials()
        return {k: v for k, v in found.items() if v is not None or k not in ("blend_cap", "blend_temperature")}

    @model_validator(mode="after")
    def _triplets_need_negatives(self) -> FinetuneConfig:
        if self.loss == "triplet" and not self.hard_negatives:
            raise ValueError(
                "finetune.loss = 'triplet': needs stored negatives. Fix: set finetune.hard_negatives to 1 or more"
            )
        return self
