"""What an embedding model leaves behind: the output head or pooler that its base model folder still holds."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

# weight, gradient, master copy and two AdamW moments: 2 + 2 + 4 + 4 + 4 in bf16, and 4 + 4 + 4 + 4 in fp32,
# where the weight is its own master copy
TRAINING_BYTES = 16


class UnusedParameters(NamedTuple):
    """Parameters that a contrastive phase does not load.

    Attributes:
        parameters: how many; 0 where the head is tied to the embeddings.
        training_bytes: memory that they would take over all ranks, without sharding and activations.
    """

    parameters: int
    training_bytes: int

    def __str__(self) -> str:
        if not self.parameters:
            return "no output head to leave out"
        megabytes = self.training_bytes / 1e6
        return f"output head left out: {self.parameters / 1e6:.1f} M parameters, {megabytes:,.0f} MB in training"


def unused_parameters(folder: Path) -> UnusedParameters:
    """Count the parameters of a model folder's safetensors that the base model has no place for; reads headers only."""
    import math

    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModel

    from train.encoder import has_pooler

    shape = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        bare = {"add_pooling_layer": False} if has_pooler(folder) else {}
        model = AutoModel.from_config(shape, **bare)
    used = set(model.state_dict())
    prefix = f"{model.base_model_prefix}."
    count = 0
    for file in sorted(folder.glob("model*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping
                if name not in used and name.removeprefix(prefix) not in used and not _buffer(name):
                    count += math.prod(tensors.get_slice(name).get_shape())
    return UnusedParameters(count, count * TRAINING_BYTES)


def _buffer(name: str) -> bool:
    """Tables that older checkpoints stored beside their parameters."""
    return name.endswith((".position_ids", ".token_type_ids", ".inv_freq"))
