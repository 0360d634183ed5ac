"""From texts to unit vectors; the same module in training, evaluation and export.

Embeddings do not depend on what else is in the batch: attention stays inside a sequence whether the batch is packed or
padded, and pooling is per sequence and in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from train.attention_layout import Layout, attention_layout, learned_positions, token_states
from train.flops import Flops, Work
from train.host_linear import use_host_linear
from train.meter import Meter
from train.packing import pack, token_chunks
from train.pooling import PoolingKind, pool

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from data_prep.progress import Progress
    from train.packing import Packed

Role = Literal["query", "passage"]
PROJECTION = "projection.safetensors"


class EncoderConfig(Section):
    """[encoder]: how a text becomes a vector. Saved with the weights; export and evaluation read it from there."""

    pooling: PoolingKind = "mean"
    """Mean of the token states, `weighted_mean` with later tokens weighing more, or the state of the `last` token."""
    projection: Annotated[int, Field(gt=0)] | None = None
    """Width of the vectors, by a trained matrix after pooling; absent keeps the width of the model."""
    bidirectional: bool = False
    """Let every token of a decoder see the whole text. Off: causal, as it was pretrained and as the paper kept it.
    Models that are encoders by birth (BERT, RoBERTa) see the whole text either way."""
    max_tokens: Annotated[int, Field(gt=2)] = 512
    """Longest text in tokens, marks included; the rest is cut off. The paper's test texts have a median of 15 words."""
    query_prompt: str = ""
    """Text put before every query."""
    passage_prompt: str = ""
    """Text put before every passage."""
    mask_prompts: bool = False
    """Leave the tokens of a prompt (and the begin mark before it) out of pooling; attention sees them all the same."""


@dataclass(frozen=True)
class Tokenised:
    """Texts as token ids.

    Attributes:
        ids: token ids of each text, prompt and marks included.
        skip: leading tokens of each text that pooling leaves out; all 0 without `mask_prompts`.
        truncated: how many of the texts were longer than `max_tokens`.
    """

    ids: list[list[int]]
    skip: list[int]
    truncated: int


def tokenise(tokenizer: Any, texts: Sequence[str], config: EncoderConfig, role: Role) -> Tokenised:
    """Token ids of each text with its role's prompt, marks included, cut to `config.max_tokens`.

    Raises `UserError` for a prompt that leaves no room for a text.
    """
    prompt = config.query_prompt if role == "query" else config.passage_prompt
    skip = 0
    if prompt:
        skip = prompt_tokens(tokenizer, prompt)
        if skip >= config.max_tokens - 1:
            raise UserError(
                f"encoder.{role}_prompt",
                f"takes {skip} tokens of encoder.max_tokens = {config.max_tokens} and leaves none for the text",
                "shorten the prompt or raise encoder.max_tokens",
            )
    if not texts:
        return Tokenised([], [], 0)
    written = [prompt + t for t in texts] if prompt else list(texts)
    encoded = tokenizer(written, truncation=True, max_length=config.max_tokens, return_attention_mask=False)
    ids: list[list[int]] = encoded["input_ids"]
    full = [i for i, row in enumerate(ids) if len(row) == config.max_tokens]
    if encoded.encodings is not None:  # a fast tokenizer keeps what it cut off
        truncated = sum(bool(encoded.encodings[i].overflowing) for i in full)
    else:
        whole = tokenizer([written[i] for i in full], verbose=False)["input_ids"] if full else []
        truncated = sum(len(row) > config.max_tokens for row in whole)
    return Tokenised(ids, [min(skip, len(row) - 1) if config.mask_prompts else 0 for row in ids], truncated)


def prompt_tokens(tokenizer: Any, prompt: str) -> int:
    """Tokens before the text, as sentence-transformers counts them: those of the prompt alone without an end mark."""
    ids: list[int] = tokenizer(prompt)["input_ids"]
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def make_encoder(backbone: Any, config: EncoderConfig, layout: Layout = "packed") -> torch.nn.Module:
    """A module that maps a `Packed` stream of n sequences to [n, D] fp32 unit rows.

    Args:
        backbone: a Hugging Face base model (no output head), switched to `layout` by `attention_layout`.
        layout: `packed` runs the stream as it is; `padded` lays it out as a right-padded batch with a mask.

    The projection, where there is one, is made from torch's random state: seed it first, alike on all ranks.
    Raises `UserError` where the model knows fewer positions than `config.max_tokens`.
    """
    import torch
    import torch.nn.functional as F

    room = learned_positions(backbone)
    if room is not None and config.max_tokens > room:
        raise UserError(
            f"encoder.max_tokens = {config.max_tokens}",
            f"the model has {room} learned positions",
            f"set encoder.max_tokens to {room} or fewer",
        )
    width = backbone.config.hidden_size

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone
            self.projection = torch.nn.Linear(width, config.projection, bias=False) if config.projection else None

        def forward(self, packed: Packed) -> torch.Tensor:
            states = token_states(self.backbone, packed, layout)
            pooled = pool(states.float(), packed, config.pooling)
            if self.projection is not None:
                pooled = F.linear(pooled, self.projection.weight.float())
            return F.normalize(pooled, dim=-1)

    return Encoder()


def load_backbone(folder: Path, *, bidirectional: bool, precision: Literal["fp32", "bf16"]) -> Any:
    """The base model of a folder, without output head or pooler, on packed attention.

    Raises `UserError` where the folder lacks a tensor of the base model.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging

    from train.attention import use_packed_attention

    # BERT's pooler would train nothing and cost memory; decoders do not know the argument
    bare = {"add_pooling_layer": False} if has_pooler(folder) else {}
    told = logging.get_verbosity()
    logging.set_verbosity_error()  # a head that is left behind on purpose is no news
    try:
        loaded: Any = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **bare,
        )
    finally:
        logging.set_verbosity(told)
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(
            str(folder),
            f"lacks {len(info['missing_keys'])} tensors of its model, such as {min(info['missing_keys'])!r}",
            "give a complete model folder",
        )
    if bidirectional:
        model.config.is_causal = False
    use_packed_attention(model)
    use_host_linear(model)
    return model


def has_pooler(folder: Path) -> bool:
    """Whether the base class of a model folder builds a pooler unless told not to (BERT and its kin)."""
    import inspect

    from transformers import MODEL_MAPPING, AutoConfig

    kind: Any = MODEL_MAPPING.get(type(AutoConfig.from_pretrained(folder, local_files_only=True)), None)
    return inspect.isclass(kind) and "add_pooling_layer" in inspect.signature(kind.__init__).parameters


def save_encoder_config(config: EncoderConfig, folder: Path) -> None:
    """Write `encoder.json` beside the weights."""
    write_json(folder / "encoder.json", config.model_dump())


class TextEncoder:
    """A trained (or untrained) model as an `Embedder`.

    Args:
        folder: a model folder with tokenizer; its `encoder.json` rules pooling and prompts.
        config: overrides `encoder.json`; needed for folders that have none (base and pretrained models).
        budget_tokens: tokens in one forward pass.
        precision: `bf16` halves memory and is several times faster on CUDA; vectors then differ by about 1e-2.
    """

    def __init__(
        self,
        folder: Path,
        *,
        config: EncoderConfig | None = None,
        budget_tokens: int = 8192,
        precision: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        import torch
        from transformers import AutoTokenizer

        if config is None:
            if not (folder / "encoder.json").exists():
                raise UserError(str(folder), "has no encoder.json", "give the folder of a finetuned model")
            config = EncoderConfig(**read_json(folder / "encoder.json"))
        self.name, self.config, self._budget = folder.parent.name, config, budget_tokens
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        backbone = load_backbone(folder, bidirectional=config.bidirectional, precision=precision)
        layout = attention_layout(backbone, "packed")
        module: Any = make_encoder(backbone, config, layout)
        if module.projection is not None:
            module.projection.load_state_dict(read_projection(folder, config))
        self.dimension: int = config.projection or backbone.config.hidden_size
        self.truncated = 0
        self._module = module.to(self._device).eval()
        flops = Flops.of(backbone.config, bidirectional=config.bidirectional)
        self._meter = Meter(None, flops=flops, device=self._device, precision=precision, training=False)
        self._layout = layout

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """Unit vectors [len(texts), dimension] in the order of the texts; counts those cut short in `truncated`."""
        import numpy as np
        import torch

        self._meter.begin_step()
        with self._meter.waiting():
            tokens = tokenise(self._tokenizer, texts, self.config, role)
        self.truncated += tokens.truncated
        vectors = np.zeros((len(tokens.ids), self.dimension), dtype=np.float32)
        lengths = [len(t) for t in tokens.ids]
        computed: list[int] = []
        with torch.inference_mode():
            for rows in token_chunks(lengths, self._budget):
                longest = max(lengths[r] for r in rows)
                computed += [longest if self._layout == "padded" else lengths[r] for r in rows]
                packed = pack(
                    [tokens.ids[r] for r in rows],
                    skip=[tokens.skip[r] for r in rows] if self.config.mask_prompts else None,
                    device=self._device,
                )
                vectors[rows] = self._module(packed).cpu().numpy()
                if progress is not None:
                    progress.advance(len(rows))
        self._meter.end_step(work=Work.of(lengths, computed=computed))
        return vectors

    def speed(self) -> dict[str, Any]:
        """What the meter says of all texts embedded so far: tokens, rates, padding, tokenising (`data_wait`), MFU."""
        return self._meter.totals()


def read_projection(folder: Path, config: EncoderConfig) -> dict[str, torch.Tensor]:
    """The projection's `weight` [D, H] of a folder. Raises `UserError` where it is missing or of another width."""
    from safetensors.torch import load_file

    path = folder / PROJECTION
    if not path.is_file():
        raise UserError(
            str(path),
            f"is missing, and encoder.projection = {config.projection} needs it",
            "give the folder of a model that was finetuned with a projection",
        )
    state = load_file(path)
    if list(state) != ["weight"] or len(state["weight"]) != config.projection:
        raise UserError(
            str(path),
            f"holds { {name: list(x.shape) for name, x in state.items()} }, not a weight of {config.projection} rows",
            "take encoder.json and the weights from the same model",
        )
    return state


def load_encoder(folder: Path, *, config: EncoderConfig | None = None) -> TextEncoder:
    """Load a model folder as an embedder; see `TextEncoder`."""
    return TextEncoder(folder, config=config)
