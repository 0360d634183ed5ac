"""Activation checkpointing: layers that are computed again in the backward pass instead of being kept."""

from __future__ import annotations

from typing import Any


def recompute_layers(model: Any) -> None:
    """Switch activation checkpointing on; it works while the model is in training mode, as the engine leaves it."""
    # transformers renamed the method between 5.17 and 5.23 and warns about the old name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
