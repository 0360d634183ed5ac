"""The cut: an ordinary model folder with some of the layers of a base.

Invariant: embeddings, kept layers, final norm and output head are the base's own tensors, and what the config says of
each layer (attention kind, sliding window, own overrides) stays with its layer. So the state after a kept first layer
N is the base's state after layer N, and plain transformers loads the folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import read_json
from train.backbone import base_reference, copy_tokenizer, parameter_counts, read_model_config
from train.probe import ProbeConfig

if TYPE_CHECKING:
    import torch

    from data_prep.progress import Progress

Precision = Literal["fp32", "bf16"]

# `model.layers.7.mlp…`, `transformer.h.7.…`: the first number after one of these names is the layer's
_LAYER = re.compile(r"^((?:.*?\.)??(?:layers|layer|h|blocks)\.)(\d+)(\..*)$")
# config lists that hold layer numbers; every other list with `layer` in its name holds one value for each layer
_NUMBER_LISTS = ("mlp_only_layers",)


class TruncateConfig(Section):
    """[truncate]: how much of the base is kept."""

    layers: int | list[int] = 4
    """The first so many layers are kept (2 of Llama2-7B is the paper's 600M, 4 its 1B, 5 of Llama2-13B its 2B), or
    exactly those of a list of layer numbers, rising from 0."""
    probe: ProbeConfig | None = None

    @field_validator("layers", mode="before")
    @classmethod
    def _layers_rise(cls, layers: object) -> object:
        numbers: list[Any] = layers if isinstance(layers, list) else [layers]
        what = f"truncate.layers = {layers!r}"
        if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
            raise ValueError(
                f"{what}: must be a number of layers or a list of layer numbers. Fix: for example 4, or [0, 1, 2, 5]"
            )
        if not isinstance(layers, list):
            if numbers[0] < 1:
                raise ValueError(f"{what}: must keep at least one layer. Fix: set truncate.layers to 1 or more")
        elif not numbers:
            raise ValueError(f"{what}: must keep at least one layer. Fix: name one, for example [0]")
        elif numbers[0] < 0 or any(b <= a for a, b in pairwise(numbers)):
            rising = sorted({n for n in numbers if n >= 0}) or [0]
            raise ValueError(f"{what}: must be layer numbers that rise from 0, each once. Fix: for example {rising}")
        return layers


def kept_layers(layers: int | Sequence[int], deep: int) -> list[int]:
    """The numbers of the layers that `truncate.layers` keeps of a base with `deep` layers.

    Raises `UserError` where the base has fewer.
    """
    if isinstance(layers, int):
        if layers > deep:
            raise UserError(
                f"truncate.layers = {layers}",
                f"the base has only {deep} layers",
                f"set truncate.layers to {deep} or fewer",
            )
        return list(range(layers))
    if layers[-1] >= deep:
        raise UserError(
            f"truncate.layers = {list(layers)}",
            f"the base has no layer {layers[-1]}, only {deep} layers from 0 to {deep - 1}",
            f"name layers up to {deep - 1}",
        )
    return list(layers)


def base_depth(config: Any, *, name: str) -> int:
    """The number of layers of a base. Raises `UserError` for a base that is not one plain stack of its own weights."""
    deep = getattr(config, "num_hidden_layers", None)
    if not isinstance(deep, int) or getattr(config, "is_encoder_decoder", False):
        raise UserError(
            f"base.model = {name!r}",
            f"is a {config.model_type} model, not a plain decoder",
            "use a causal language model, such as a Llama, Mistral or Qwen",
        )
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(
            f"base.model = {name!r}", "holds quantised weights, which cannot be trained", "use the unquantised model"
        )
    return deep


def cut_config(config: Any, kept: Sequence[int]) -> Any:
    """A new config of the same class with the kept layers; what it says of each layer follows the layer.

    Args:
        config: of a base, left as it is. kept: rising layer numbers below its depth.
    """
    fields = config.to_dict()
    depth_field = type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")
    deep, place = fields[depth_field], {layer: i for i, layer in enumerate(kept)}
    for name, value in fields.items():
        if "layer" not in name:
            continue
        if name in _NUMBER_LISTS and isinstance(value, list):
            fields[name] = [place[n] for n in value if n in place]
        elif isinstance(value, (list, tuple)) and len(value) == deep:  # layer_types, no_rope_layers …
            fields[name] = [value[layer] for layer in kept]
        elif name == "per_layer_config" and isinstance(value, dict):  # overrides by layer number
            fields[name] = {str(place[int(n)]): v for n, v in value.items() if int(n) in place}
    fields[depth_field] = len(kept)
    kinds = fields.get("layer_types")
    if kinds and "max_window_layers" in fields:
        # Qwen: "full attention below this layer"; transformers reads layer_types, other readers of the folder this
        full = next((i for i, kind in enumerate(kinds) if kind != "full_attention"), len(kinds))
        if all(kind != "full_attention" for kind in kinds[full:]):
            fields["max_window_layers"] = full
    return type(config).from_dict(fields)


def read_layers(
    model: str, revision: str | None, config: Any, kept: Sequence[int], *, head: bool, dtype: torch.dtype
) -> Any:
    """The kept layers of a base as a model, in evaluation mode; no other layer is read from disk or fetched.

    Args:
        model, revision: folder or Hub id. config: of the base. head: with the output head, or the base model alone.

    Raises:
        UserError: no safetensors, a damaged file, or tensors that the cut model needs are not there.
    """
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    cut = cut_config(config, kept)
    with torch.device("meta"):  # only to learn the class
        auto: Any = AutoModelForCausalLM if head else AutoModel
        kind: Any = type(auto.from_config(cut))
    place = {layer: i for i, layer in enumerate(kept)}
    wanted: dict[str, dict[str, str]] = {}
    for name, file in _weight_map(model, revision).items():
        found = _LAYER.match(name)
        if (found and int(found[2]) not in place) or (not head and name.startswith("lm_head.")):
            continue
        wanted.setdefault(file, {})[name] = f"{found[1]}{place[int(found[2])]}{found[3]}" if found else name
    tensors = {}
    for file, names in wanted.items():
        tensors.update(_read_tensors(model, revision, file, names))
    loaded, info = kind.from_pretrained(None, config=cut, state_dict=tensors, dtype=dtype, output_loading_info=True)
    # a pooler over the first token is no part of any embedding here, and causal bases have none
    missing = sorted(k for k in info["missing_keys"] if not k.startswith("pooler."))
    if missing:
        raise UserError(
            f"base.model = {model!r}",
            f"lacks {len(missing)} tensors, such as {missing[0]!r}",
            "use a complete causal language model",
        )
    return loaded


def _weight_map(model: str, revision: str | None) -> dict[str, str]:
    """The file of each tensor."""
    from safetensors import safe_open

    try:
        single = _find(model, revision, "model.safetensors")
    except OSError:
        pass
    else:
        with _damage(single), safe_open(single, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), single.name)
    try:
        index = read_json(_find(model, revision, "model.safetensors.index.json"))
    except OSError as error:
        raise UserError(
            f"base.model = {model!r}",
            "has no model.safetensors (pickled weights are not read)",
            "give a model in safetensors, or convert it: load it in transformers and save_pretrained",
        ) from error
    files: dict[str, str] = index["weight_map"]
    return files


def _find(model: str, revision: str | None, file: str) -> Path:
    """A file of a model folder, or of a Hub repository, downloaded where needed. Raises OSError where there is none."""
    from transformers.utils import hub

    return Path(str(hub.cached_file(model, file, revision=revision)))


def _read_tensors(model: str, revision: str | None, file: str, names: dict[str, str]) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        path = _find(model, revision, file)
    except OSError as error:
        raise UserError(
            f"base.model = {model!r}", f"its index names {file}, which is not there", "download the model again"
        ) from error
    with _damage(path), safe_open(path, framework="pt") as tensors:
        return {renamed: tensors.get_tensor(name) for name, renamed in names.items()}


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turn what safetensors says of a damaged file into a `UserError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise UserError(str(path), f"is damaged ({error})", "download the model again") from error


def truncate(
    config: TruncateConfig, *, base: Path, tokenizer: Path, out: Path, precision: Precision, progress: Progress
) -> dict[str, int | float]:
    """Write `out/model`: the kept layers of the base, with the tokenizer beside them.

    Returns counts: base_layers, layers, parameters, trunk_parameters.

    Raises:
        UserError: layers that the base lacks, a base that cannot be read, or a tokenizer with more tokens than the
            base has embeddings.
    """
    import torch

    from data_prep.tokenizer import load_tokenizer

    name, revision = base_reference(base)
    shape = read_model_config(name, revision)
    deep = base_depth(shape, name=name)
    kept = kept_layers(config.layers, deep)
    with progress.work("prepare"):
        tokens = max(load_tokenizer(tokenizer).get_vocab().values()) + 1
        if tokens > shape.vocab_size:  # fewer is common: bases pad their vocabulary
            raise UserError(
                f"a tokenizer of {tokens:,} tokens",
                f"the base has only {shape.vocab_size:,} embeddings",
                'use the base\'s own: tokenizer.kind = "base" and tokenizer.model = base.model',
            )
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        model = read_layers(name, revision, shape, kept, head=True, dtype=dtype)
        model.save_pretrained(out / "model", safe_serialization=True)
        copy_tokenizer(tokenizer, out / "model")
    return {"base_layers": deep, "layers": len(kept), **parameter_counts(model)}


def disk_bytes(shape: Any, *, kept: Sequence[int], bytes_per_parameter: int) -> tuple[int, int]:
    """(parameters, bytes) of a cut model, counted on the meta device, without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        counts = parameter_counts(AutoModelForCausalLM.from_config(cut_config(shape, kept)))
    return counts["parameters"], counts["parameters"] * bytes_per_parameter
