"""A checkpoint as the model folder that training would write at that step.

Invariants: ranks and ZeRO stage of the checkpoint do not show; in fp32 the weights are those of training bit for bit,
and the file is the same byte for byte; nothing is loaded as a whole, and no process group is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors, sha256_file
from train.backbone import copy_tokenizer
from train.encoder import PROJECTION, EncoderConfig, has_pooler, save_encoder_config
from train.export.weights import Dtype, Entry, FolderSource, write_file, write_weights

if TYPE_CHECKING:
    import torch

    from train.history.checkpoint import Checkpoint

_ENCODER, _LANGUAGE_MODEL = "backbone.", "model."
"""What a parameter's name begins with inside the module that finetuning and pretraining hand to the engine."""
_PROJECTION = "projection.weight"


class CheckpointSource:
    """Some fp32 weights of a checkpoint under other names: `names` maps the published one to the checkpoint's."""

    def __init__(self, checkpoint: Checkpoint, names: Mapping[str, str]) -> None:
        self._checkpoint, self._names = checkpoint, names
        self.entries = {name: Entry("F32", checkpoint.parameters[own]) for name, own in names.items()}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a flattened weight."""
        return self._checkpoint.read(self._names[name], "weight", start, stop)

    def close(self) -> None:
        """Unmap the checkpoint's files."""
        self._checkpoint.close()


class _WithBuffers:
    """The weights of a checkpoint, and the buffers that only the model folder holds."""

    def __init__(self, weights: CheckpointSource, folder: FolderSource, buffers: Mapping[str, str]) -> None:
        self._weights, self._folder, self._buffers = weights, folder, buffers
        self.entries = {**weights.entries, **{name: folder.entries[own] for name, own in buffers.items()}}

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        if name in self._buffers:
            return self._folder.read(self._buffers[name], start, stop)
        return self._weights.read(name, start, stop)

    def close(self) -> None:
        self._weights.close()


def open_checkpoint(folder: Path, *, verify: bool = True) -> Checkpoint:
    """A checkpoint whose bytes are all what was written. Raises `UserError` where one is not.

    Args:
        verify: read all of it once, and compare checksums.
    """
    from train.history.checkpoint import Checkpoint
    from train.history.manifest import Damaged, NewerFormat

    fix = "export another step"
    try:
        checkpoint = Checkpoint(folder)
        for file in checkpoint.files if verify else []:
            path = folder / file["file"]
            if not path.is_file() or path.stat().st_size != file["bytes"] or sha256_file(path) != file["sha256"]:
                raise UserError(str(path), "is missing, or not what was written (its checksum differs)", fix)
    except NewerFormat as newer:
        raise UserError(
            str(folder), f"is of format {newer}, which this version does not know", "update rumpun"
        ) from newer
    except Damaged as damaged:
        raise UserError(str(folder), f"is damaged ({damaged})", fix) from damaged
    return checkpoint


def checkpoint_to_model(
    checkpoint_folder: Path,
    model_folder: Path,
    out: Path,
    *,
    dtype: Dtype = "fp32",
    shard_gb: float = 5.0,
    encoder: EncoderConfig | None = None,
    verify: bool = True,
) -> dict[str, int]:
    """Write a Hugging Face model folder with tokenizer from a checkpoint, tensor by tensor.

    Args:
        checkpoint_folder: `step-N` of a phase's history.
        model_folder: that the phase began with; config and tokenizer come from there, no weights.
        out: an empty folder.
        encoder: of a finetuning phase, as it was trained; None for a pretraining phase.
        verify: compare the checkpoint's checksums first, which reads all of it (12 bytes a parameter).

    Returns:
        `step`, `ranks` of the checkpoint, `parameters`, and what `write_weights` returns.

    Raises:
        UserError: the checkpoint is damaged or of another model; a value does not fit; the disk refuses.
    """
    checkpoint = open_checkpoint(checkpoint_folder, verify=verify)
    model = _empty_model(model_folder, encoder)
    prefix = _LANGUAGE_MODEL if encoder is None else _ENCODER
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    expected = {prefix + name: shape for name, shape in parameters.items()}
    if encoder is not None and encoder.projection is not None:
        expected[_PROJECTION] = (encoder.projection, model.config.hidden_size)
    checkpoint.check_model(expected)
    weights = CheckpointSource(checkpoint, {name: prefix + name for name in parameters})
    with disk_errors(out):
        _write_configs(model, model_folder, out, dtype)
        counts = write_weights(_with_buffers(weights, model, model_folder), out, dtype=dtype, shard_gb=shard_gb)
        copy_tokenizer(model_folder, out)
        if encoder is not None:
            save_encoder_config(encoder, out)
            if encoder.projection is not None:
                projection = CheckpointSource(checkpoint, {"weight": _PROJECTION})
                write_file(out / PROJECTION, projection, ["weight"], dtype="fp32")
    sizes = sum(entry.size for entry in weights.entries.values())
    return {"step": checkpoint.step, "ranks": checkpoint.ranks, "parameters": sizes, **counts}


def _empty_model(folder: Path, encoder: EncoderConfig | None) -> Any:
    """The model without memory for its weights, as its phase loads it."""
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.dtype = torch.float32
    with torch.device("meta"):
        if encoder is None:
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if encoder.bidirectional:
            config.is_causal = False
        bare = {"add_pooling_layer": False} if has_pooler(folder) else {}
        return AutoModel.from_config(config, dtype=torch.float32, **bare)


def _write_configs(model: Any, folder: Path, out: Path, dtype: Dtype) -> None:
    """config.json and generation_config.json as transformers writes them beside weights of this type."""
    from transformers import GenerationConfig

    model.config.dtype = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[dtype]
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(out)
    if model.can_generate():
        own = (folder / "generation_config.json").is_file()
        generation = GenerationConfig.from_pretrained(folder) if own else model.generation_config
        generation.save_pretrained(out)


def _with_buffers(weights: CheckpointSource, model: Any, folder: Path) -> CheckpointSource | _WithBuffers:
    """The weights and those buffers that belong to the model's file: checkpoints hold what is trained."""
    kept = set(model.state_dict())
    buffers = [name for name, _ in model.named_buffers() if name in kept]
    if not buffers:
        return weights
    source = FolderSource(folder)
    found = {}
    for name in buffers:
        spellings = [name, name.removeprefix(f"{model.base_model_prefix}."), f"{model.base_model_prefix}.{name}"]
        own = next((spelling for spelling in spellings if spelling in source.entries), None)
        if own is None:
            raise UserError(
                str(folder), f"lacks the buffer {name!r} of its model, and checkpoints hold parameters only",
                "give the model folder that the phase began with",
            )  # fmt: skip
        found[name] = own
    return _WithBuffers(weights, source, found)
