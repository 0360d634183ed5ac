"""A finetuned model folder laid out for sentence-transformers, which then needs no code of ours.

config.json, model*.safetensors, tokenizer files         the Transformer module, as transformers reads it too
1_Pooling/, 2_Dense/ (with a projection), N_Normalize/    what follows it; modules.json lists them
config_sentence_transformers.json                         prompts by role, dimensions that may be cut to
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_prep.files import disk_errors, read_json, write_json
from train.encoder import PROJECTION, EncoderConfig, has_pooler, read_projection
from train.export.weights import Dtype, FolderSource, cast_entry, weight_files, write_weights

_TORCH = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def write_folder(
    model: Path, out: Path, *, dtype: Dtype = "fp32", shard_gb: float = 50.0, matryoshka: Sequence[int] = ()
) -> None:
    """Lay out a finetuned model folder for sentence-transformers.

    Weights that are of this type already, in files that are small enough, are copied byte for byte; others are cast
    tensor by tensor. The projection stays in fp32: sentence-transformers casts it to the model's type.

    Args:
        model: as finetuning wrote it, with `encoder.json`. out: empty, or not there.
        shard_gb: 10⁹ bytes, the most that a file of weights holds.
        matryoshka: shorter prefixes that were trained too; written down as `matryoshka_dims`. The vectors stay whole
            unless `truncate_dim` is asked for.

    Raises:
        UserError: a value does not fit the type; the disk refuses.
    """
    encoder = EncoderConfig(**read_json(model / "encoder.json"))
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        cast = _put_weights(model, out, dtype=dtype, shard_gb=shard_gb)
        weights = {file.name for file in weight_files(model)} | {"model.safetensors.index.json"}
        for file in sorted(model.iterdir()):
            if file.is_file() and file.name not in ("encoder.json", PROJECTION, *weights):
                shutil.copyfile(file, out / file.name)
        name_tokenizer_for_all(out)
        shape = read_json(model / "config.json")
        changed = {k: v for k, v in shape.items() if not cast or k != "torch_dtype"}
        changed |= {"dtype": _TORCH[dtype]} if cast else {}
        changed |= {"is_causal": False} if encoder.bidirectional else {}
        if cast or encoder.bidirectional:
            write_json(out / "config.json", changed)
        _write_modules(model, out, encoder, width=shape["hidden_size"], matryoshka=matryoshka)


def name_tokenizer_for_all(folder: Path) -> None:
    """Let releases before 5 of transformers load the tokenizer too, and cut texts as this one does.

    They do not know the class name that release 5 writes, and set a tokenizer's `add_prefix_space` to what
    tokenizer_config.json says, or to false. Release 5 reads the older name as the same class.
    """
    path = folder / "tokenizer_config.json"
    if not path.is_file() or not (folder / "tokenizer.json").is_file():
        return
    settings = read_json(path)
    if settings.get("tokenizer_class") != "TokenizersBackend":
        return
    before = read_json(folder / "tokenizer.json").get("pre_tokenizer") or {}
    prefix = {"add_prefix_space": before["add_prefix_space"]} if "add_prefix_space" in before else {}
    write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"} | prefix)


def _put_weights(model: Path, out: Path, *, dtype: Dtype, shard_gb: float) -> bool:
    """Copy or cast the weights. Returns whether they changed their type."""
    files = weight_files(model)
    source = FolderSource(model)
    cast = any(cast_entry(entry, dtype) != entry for entry in source.entries.values())
    if cast or any(file.stat().st_size > shard_gb * 1e9 for file in files):
        write_weights(source, out, dtype=dtype, shard_gb=shard_gb)
        return cast
    index = model / "model.safetensors.index.json"
    for file in [*files, *([index] if index.is_file() else [])]:
        shutil.copyfile(file, out / file.name)
    return False


def _write_modules(model: Path, out: Path, encoder: EncoderConfig, *, width: int, matryoshka: Sequence[int]) -> None:
    _write_module(out, "1_Pooling", _pooling(width, encoder))
    kinds = ["Transformer", "Pooling"]
    if encoder.projection is not None:
        state = read_projection(model, encoder)
        _write_dense(out, state["weight"])
        kinds.append("Dense")
    # git and the Hub keep no empty folder, and sentence-transformers looks for this one
    _write_module(out, f"{len(kinds)}_Normalize", {})
    kinds.append("Normalize")
    write_json(
        out / "modules.json",
        [
            {
                "idx": i,
                "name": str(i),
                "path": f"{i}_{kind}" if i else "",
                "type": f"sentence_transformers.models.{kind}",
            }
            for i, kind in enumerate(kinds)
        ],
    )
    bare = {"model_args": {"add_pooling_layer": False}} if has_pooler(model) else {}
    write_json(
        out / "sentence_bert_config.json", {"max_seq_length": encoder.max_tokens, "do_lower_case": False, **bare}
    )
    prefixes = {"matryoshka_dims": sorted(matryoshka, reverse=True)} if matryoshka else {}
    write_json(
        out / "config_sentence_transformers.json",
        {
            "prompts": {"query": encoder.query_prompt, "document": encoder.passage_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
            **prefixes,
        },
    )


def _write_module(out: Path, name: str, config: dict[str, Any]) -> None:
    (out / name).mkdir()
    write_json(out / name / "config.json", config)


def _pooling(width: int, encoder: EncoderConfig) -> dict[str, Any]:
    """The older spelling of sentence-transformers' pooling, which its releases 2 to 6 all read."""
    return {
        "word_embedding_dimension": width,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": encoder.pooling == "weighted_mean",
        "pooling_mode_lasttoken": encoder.pooling == "last",
        "include_prompt": not encoder.mask_prompts,
    }


def _write_dense(out: Path, weight: Any) -> None:
    """The projection [D, H] as sentence-transformers' Dense module, without bias and activation."""
    from safetensors.torch import save_file

    _write_module(
        out,
        "2_Dense",
        {
            "in_features": weight.shape[1],
            "out_features": weight.shape[0],
            "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    save_file({"linear.weight": weight}, out / "2_Dense" / "model.safetensors")
