"""The losses, one a file, as pure functions of tensors.

Invariant: a contrastive objective is called with the embeddings and the `Relations` of the whole global batch and
returns a share of its loss; the shares add up to the loss that one process would compute. No objective knows of ranks.
"""

from __future__ import annotations

from typing import Literal, get_args

ObjectiveName = Literal["info_nce", "margin", "triplet", "cosent"]
"""How a recipe names a contrastive objective; `matryoshka` wraps any of them."""

OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
