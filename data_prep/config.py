"""The base of every recipe table: strict types, no unknown keys, a reason beside each field.

A config class lives beside the code that it configures and is composed in `launch/recipe.py`. The docstring under a
field is its one-line reason (effect, unit, why this default); `rumpun recipe show` prints it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One table of a recipe. Frozen, strict (an int is not a string), and unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, validate_default=True
    )
