"""The base: a decoder made here from a seed, or a pretrained one that is named.

A named base is not copied: its folder or Hub id is written down, and train/truncate.py reads from there what it keeps.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import read_json, write_json

if TYPE_CHECKING:
    from data_prep.progress import Progress


class RandomBaseConfig(Section):
    """A Llama-architecture base made here from a seed: for the demo, for tests, and for training from nothing."""

    hidden: Annotated[int, Field(gt=0)] = 128
    """Width of the residual stream."""
    layers: Annotated[int, Field(gt=0)] = 8
    """Decoder layers before the cut."""
    heads: Annotated[int, Field(gt=0)] = 4
    """Attention heads; must divide `hidden`."""
    key_value_heads: Annotated[int, Field(gt=0)] = 2
    """Heads of keys and values (grouped queries); must divide `heads`."""
    feed_forward: Annotated[int, Field(gt=0)] = 352
    """Width of the gated feed-forward block; about 8/3 of `hidden` as in Llama."""
    max_positions: Annotated[int, Field(gt=0)] = 2048
    """Longest sequence that the rotary embedding is declared for, in tokens."""
    tie_embeddings: bool = False
    """Share one matrix between input embeddings and output head. Shared, our short demo runs stayed near chance when
    finetuned after pretraining; apart, they did not. Seen in a few runs, not studied further."""
    embedding_std: Annotated[float, Field(gt=0)] = 0.02
    """Spread of the initial embeddings, Llama's own."""
    norm_gain: Annotated[float, Field(gt=0)] = 0.1
    """Initial weight of the norms before each block, so that a fresh model is nearly a bag of words and its blocks fade
    in: with 1.0, short contrastive runs stay at chance."""

    @model_validator(mode="after")
    def _heads_divide(self) -> RandomBaseConfig:
        if self.hidden % self.heads or self.heads % self.key_value_heads:
            raise ValueError(
                f"hidden ({self.hidden}) must be a multiple of heads ({self.heads}), "
                f"and heads of key_value_heads ({self.key_value_heads})"
            )
        return self


class BaseConfig(Section):
    """[base]: where the decoder comes from. Give `model`, or a [base.random] table."""

    model: str | None = None
    """Hugging Face id or folder of a causal language model in safetensors, e.g. `meta-llama/Llama-2-7b-hf`."""
    revision: str | None = None
    """Branch, tag or commit of the Hub repository; pin a commit to make a run repeatable."""
    random: RandomBaseConfig | None = None
    """A small Llama made from the recipe's seed instead of a pretrained model."""

    @model_validator(mode="after")
    def _one_of_both(self) -> BaseConfig:
        if (self.model is None) == (self.random is None):
            raise ValueError("give either `model` or a [base.random] table, and not both")
        return self


def parameter_counts(model: Any) -> dict[str, int]:
    """`parameters` (all, tied ones once) and `trunk_parameters` (without input embedding and output head)."""
    everything = sum(p.numel() for p in model.parameters())
    outside = {
        id(m.weight): m.weight.numel()
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
        if m is not None
    }
    return {"parameters": everything, "trunk_parameters": everything - sum(outside.values())}


def make_base(
    config: BaseConfig, *, vocabulary: int | None, out: Path, seed: int, progress: Progress
) -> dict[str, int | float]:
    """Write the base: a seeded model folder, or `base.json` that names the pretrained one.

    Args:
        vocabulary: size of the tokenizer's vocabulary; needed for a random base.
        out: empty folder.
    """
    if config.random is None:
        write_json(out / "base.json", {"model": config.model, "revision": config.revision})
        return {}
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if vocabulary is None:
        raise ValueError("a random base needs the vocabulary size")
    shape = config.random
    with progress.work("prepare"):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=shape.hidden,
                intermediate_size=shape.feed_forward,
                num_hidden_layers=shape.layers,
                num_attention_heads=shape.heads,
                num_key_value_heads=shape.key_value_heads,
                max_position_embeddings=shape.max_positions,
                tie_word_embeddings=shape.tie_embeddings,
                pad_token_id=0,
                bos_token_id=1,
                eos_token_id=2,
            )
        )
        with torch.no_grad():
            model.get_input_embeddings().weight.normal_(std=shape.embedding_std)
            for layer in model.model.layers:
                layer.input_layernorm.weight.fill_(shape.norm_gain)
                layer.post_attention_layernorm.weight.fill_(shape.norm_gain)
        model.save_pretrained(out, safe_serialization=True)
    return {"layers": shape.layers, **parameter_counts(model)}


def base_reference(base: Path) -> tuple[str, str | None]:
    """(model id or folder, revision) of a base stage's folder."""
    named = base / "base.json"
    if not named.exists():
        return str(base), None
    reference = read_json(named)
    folder = Path(reference["model"]).expanduser()
    return (str(folder), None) if folder.is_dir() else (reference["model"], reference["revision"])


def read_model_config(model: str, revision: str | None) -> Any:
    """The transformers config of a model id or folder. Raises `UserError` where there is none."""
    from transformers import AutoConfig

    if model.startswith((".", "/", "~")) and not (Path(model).expanduser() / "config.json").is_file():
        raise UserError(
            f"base.model = {model!r}", "is not a folder with a config.json", "give a Hugging Face id or a model folder"
        )
    try:
        return AutoConfig.from_pretrained(model, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"base.model = {model!r}",
            f"cannot be loaded ({reason})",
            "check the id and your access (`hf auth login` for gated models), or give a local folder",
        ) from error


def copy_tokenizer(tokenizer: Path, model: Path) -> None:
    """Put the tokenizer's files beside the weights (`*.json`, `*.model`, `*.txt`, never a stage's own record)."""
    for file in sorted(tokenizer.iterdir()):
        if file.suffix in (".json", ".model", ".txt", ".jinja") and file.name not in ("stage.json", "config.json"):
            (model / file.name).write_bytes(file.read_bytes())
