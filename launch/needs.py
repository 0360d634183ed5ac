"""What a recipe needs before it can run: data, base model, disk, GPU memory. Counted, not guessed, where it can be."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from launch.recipe import Recipe
from train.history.forecast import bytes_of_checkpoint

GIB = 1 << 30


def _llama_shape(hidden: int, feed_forward: int, layers: int, heads: int, key_value_heads: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": feed_forward,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "vocab_size": 32_000,
    }


# shapes of the bases that the recipes use, so that a check needs neither network nor licence; from published configs
KNOWN_BASES: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-2-7b-hf": _llama_shape(4096, 11008, 32, 32, 32),
    "meta-llama/Llama-2-13b-hf": _llama_shape(5120, 13824, 40, 40, 40),
    "mistralai/Mistral-7B-v0.1": _llama_shape(4096, 14336, 32, 32, 8),
}


def base_shape(recipe: Recipe) -> Any | None:
    """The transformers config of the recipe's base, None where it is neither known, local nor reachable."""
    from transformers import LlamaConfig

    base = recipe.base
    if base.random:
        return LlamaConfig(
            vocab_size=recipe.tokenizer.vocab_size, hidden_size=base.random.hidden,
            intermediate_size=base.random.feed_forward,
            num_hidden_layers=base.random.layers, num_attention_heads=base.random.heads,
            num_key_value_heads=base.random.key_value_heads, tie_word_embeddings=base.random.tie_embeddings,
        )  # fmt: skip
    assert base.model is not None
    if base.model in KNOWN_BASES:
        return LlamaConfig(**KNOWN_BASES[base.model], tie_word_embeddings=False)
    from train.backbone import read_model_config

    try:
        return read_model_config(base.model, base.revision)
    except UserError:
        return None


def needs_of(recipe: Recipe, *, data: Path | None) -> Iterator[str]:
    """Lines `name: value` for data, base, size, disk and GPU memory.

    Raises `UserError` where truncate.layers exceeds the base's.
    """
    from train.truncate import base_depth, disk_bytes, kept_layers

    base = recipe.base
    yield from _data_lines(recipe, data)
    yield f"base:  {'made here from the seed' if base.random else base.model}" + _base_note(base.model)
    shape = base_shape(recipe)
    if shape is None:
        yield "size:  unknown (the base's config cannot be read here: no network, no access, or a wrong id)"
        return
    deep = base_depth(shape, name=base.model or "random")
    kept = kept_layers(recipe.truncate.layers, deep)
    parameters, weights = disk_bytes(shape, kept=kept, bytes_per_parameter=4)
    named = "" if kept == list(range(len(kept))) else f" ({', '.join(map(str, kept))})"
    yield f"size:  {len(kept)} of {deep} layers{named}, {parameters / 1e6:,.1f} M parameters with output head"
    whole = 0 if base.random else disk_bytes(shape, kept=range(deep), bytes_per_parameter=2)[1]
    head = 0 if shape.tie_word_embeddings else shape.vocab_size * shape.hidden_size
    trained = {"pretrain": parameters, "finetune": parameters - head}
    # both phases keep theirs; one more is there while it is written
    sizes = [*trained.values()] * recipe.checkpoint.keep + [parameters]
    checkpoints = sum(map(bytes_of_checkpoint, sizes))
    # cut, pretrained, finetuned and exported weights stay in the run folder, in fp32 after training
    yield (
        f"disk:  {(4 * weights + checkpoints) / GIB:,.1f} GiB in the run folder, "
        f"{checkpoints / GIB:,.1f} of it checkpoints"
        + (f"; {whole / GIB:,.0f} GiB for the base's download" if whole else "")
    )
    if recipe.checkpoint.background:
        copied = bytes_of_checkpoint(parameters) / GIB
        yield f"host:  {copied:,.1f} GiB of memory over all processes for saving while training goes on"
    yield from _probe_lines(recipe, shape, deep)
    yield from _memory_lines(recipe, trained)


def _base_note(model: str | None) -> str:
    if not model or Path(model).expanduser().is_dir():
        return ""
    return " (downloaded from the Hub; or give a local folder: --set base.model=PATH)"


def _data_lines(recipe: Recipe, data: Path | None) -> Iterator[str]:
    if recipe.generate:
        yield "data:  generated here"
        return
    patterns = [*recipe.corpus.files, *(recipe.pairs.files if recipe.pairs else []), *recipe.eval.sets]
    for pattern in patterns:
        if pattern.startswith("datasets:"):
            yield f"data:  {pattern}   (from the Hub, unless its cache has it)"
            continue
        if "{data}" in pattern and data is None:
            yield f"data:  {pattern}   (give --data DIR)"
            continue
        path = pattern.replace("{data}", str(data))
        found = len(glob.glob(path))
        yield f"data:  {path}   ({found} found)" if found else f"data:  {path}   (MISSING)"


def _probe_lines(recipe: Recipe, shape: Any, deep: int) -> Iterator[str]:
    from train.truncate import disk_bytes

    if probe := recipe.truncate.probe:
        depth = min(probe.layers or deep, deep)
        parameters = disk_bytes(shape, kept=range(depth), bytes_per_parameter=2)[0]
        yield (
            f"probe: {depth} of {deep} layers, {2 * parameters / GIB:,.1f} GiB of memory for the weights on a GPU "
            f"(bf16), {4 * parameters / GIB:,.1f} GiB on a CPU"
        )


def _memory_lines(recipe: Recipe, parameters: dict[str, int]) -> Iterator[str]:
    """Training state per process: weights, gradients and AdamW's two moments, sharded as the ZeRO stage shards them.

    Args:
        parameters: of each phase; finetuning leaves the output head behind.
    """
    n = recipe.launch.nproc
    for name, phase in (("pretrain", recipe.pretrain), ("finetune", recipe.finetune)):
        low = 2 if phase.precision == "bf16" else 4
        master = 12 if phase.precision == "bf16" else 8
        stage = phase.zero_stage
        each = (
            low / (n if stage >= 3 else 1)
            + low / (n if stage >= 2 else 1)
            + (0 if phase.offload else master / (n if stage >= 1 else 1))
        )
        gib = parameters[name] * each / GIB
        device = (
            f"{max(1, math.ceil(gib * 1.5 / 8) * 8)} GiB or more a GPU"
            if phase.precision == "bf16"
            else "a CPU will do"
        )
        yield (
            f"{name}: {n} processes, ZeRO {stage}, {phase.precision}: {gib:,.1f} GiB of training state in each, "
            f"activations on top ({device})"
        )
