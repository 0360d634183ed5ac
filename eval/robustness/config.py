"""What the robustness of systems is measured on."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from data_prep.config import Section
from eval.robustness.kinds import KINDS, OUT_OF_DOMAIN

NAMES = [*KINDS, OUT_OF_DOMAIN]


class RobustnessConfig(Section):
    """[eval.robustness]: how much recall systems lose on damaged texts."""

    kinds: list[str] = Field(default=NAMES)
    """Kinds of damage, such as typo_swap or sms_spelling; all of them by default."""
    strengths: list[Annotated[float, Field(gt=0, le=1)]] = Field(default=[0.1, 0.3, 1.0])
    """Shares of the words that are damaged, rising: a slip now and then, a hasty writer, the whole text."""
    queries_per_set: Annotated[int, Field(ge=2)] = 200
    """Queries drawn from each set; with 200 an interval of recall is about 0.05 wide on each side."""
    systems: list[str] = Field(default=[])
    """Names of the systems to measure; none named: all that the evaluation compares. Each is asked some sixty times as
    many queries as were drawn, which an endpoint may charge for."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 2000
    """Resamplings behind each 95 % interval."""

    @field_validator("kinds")
    @classmethod
    def _known(cls, kinds: list[str]) -> list[str]:
        unknown = [kind for kind in kinds if kind not in NAMES]
        if unknown or not kinds or len(set(kinds)) < len(kinds):
            found = f"{unknown[0]!r} is no kind" if unknown else "must name at least one kind, and none twice"
            raise ValueError(f"{found}; the kinds are {', '.join(NAMES)}")
        return [name for name in NAMES if name in kinds]

    @field_validator("strengths")
    @classmethod
    def _rising(cls, strengths: list[float]) -> list[float]:
        if not strengths or sorted(set(strengths)) != strengths:
            raise ValueError("must be rising shares above 0 without repeats, such as [0.1, 0.3, 1.0]")
        return strengths
