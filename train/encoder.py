"""From token states to one unit vector a text; the same module in training, evaluation and export.

Embeddings do not depend on what else is in the batch: sequences are packed, attention is isolated, pooling is per
sequence and in fp32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from data_prep.config import Section
from data_prep.errors import UserError
from data_prep.files import read_json, write_json
from train.packing import pack, token_chunks

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from data_prep.progress import Progress
    from train.packing import Packed

Role = Literal["query", "passage"]


class EncoderConfig(Section):
    """[encoder]: how a text becomes a vector. Saved with the weights; export and evaluation read it from there."""

    pooling: Literal["mean", "last"] = "mean"
    """Mean of the token states, or the state of the last token (the end-of-text mark)."""
    bidirectional: bool = False
    """Let every token see the whole text. Off: causal, as the decoder was pretrained and as the paper kept it."""
    max_tokens: Annotated[int, Field(gt=2)] = 512
    """Longest text in tokens, marks included; the rest is cut off. The paper's test texts have a median of 15 words."""
    query_prompt: str = ""
    """Text put before every query."""
    passage_prompt: str = ""
    """Text put before every passage."""


def make_encoder(backbone: Any, config: EncoderConfig) -> torch.nn.Module:
    """A module that maps a `Packed` stream of n sequences to [n, H] fp32 unit rows.

    Args:
        backbone: a Hugging Face base model (no output head), switched to packed attention.
    """
    import torch
    import torch.nn.functional as F

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, packed: Packed) -> torch.Tensor:
            states = self.backbone(**packed.model_inputs()).last_hidden_state[0].float()
            ends = packed.boundaries[1:].long()
            if config.pooling == "last":
                pooled = states[ends - 1]
            else:
                rows = torch.repeat_interleave(
                    torch.arange(len(packed.lengths), device=states.device),
                    torch.diff(packed.boundaries).long(),
                )
                sums = states.new_zeros(len(packed.lengths), states.shape[1]).index_add(0, rows, states)
                pooled = sums / torch.diff(packed.boundaries)[:, None]
            return F.normalize(pooled, dim=-1)

    return Encoder()


def load_backbone(folder: Path, *, bidirectional: bool, precision: Literal["fp32", "bf16"]) -> Any:
    """The base model of a folder, without output head, on packed attention."""
    import torch
    from transformers import AutoModel

    from train.attention import use_packed_attention

    model = AutoModel.from_pretrained(
        folder,
        dtype=torch.float32 if precision == "fp32" else torch.bfloat16,
        use_safetensors=True,
        local_files_only=True,
    )
    if bidirectional:
        model.config.is_causal = False
    use_packed_attention(model)
    return model


def tokenise(tokenizer: Any, texts: Sequence[str], config: EncoderConfig, role: Role) -> list[list[int]]:
    """Token ids of each text with its role's prompt, marks included, cut to `config.max_tokens`."""
    prompt = config.query_prompt if role == "query" else config.passage_prompt
    encoded: list[list[int]] = tokenizer(
        [prompt + t for t in texts], truncation=True, max_length=config.max_tokens, return_attention_mask=False
    )["input_ids"]
    return encoded


def save_encoder_config(config: EncoderConfig, folder: Path) -> None:
    """Write `encoder.json` beside the weights."""
    write_json(folder / "encoder.json", config.model_dump())


class TextEncoder:
    """A trained (or untrained) model as an `Embedder`.

    Args:
        folder: a model folder with tokenizer; its `encoder.json` rules pooling and prompts.
        config: overrides `encoder.json`; needed for folders that have none (base and pretrained models).
        budget_tokens: tokens in one forward pass.
    """

    def __init__(self, folder: Path, *, config: EncoderConfig | None = None, budget_tokens: int = 8192) -> None:
        import torch
        from transformers import AutoTokenizer

        if config is None:
            if not (folder / "encoder.json").exists():
                raise UserError(str(folder), "has no encoder.json", "give the folder of a finetuned model")
            config = EncoderConfig(**read_json(folder / "encoder.json"))
        self.name, self.config, self._budget = folder.parent.name, config, budget_tokens
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        backbone = load_backbone(folder, bidirectional=config.bidirectional, precision="fp32")
        self.dimension: int = backbone.config.hidden_size
        self._module = make_encoder(backbone, config).to(self._device).eval()

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> NDArray[np.float32]:
        """Unit vectors [len(texts), dimension] in the order of the texts."""
        import numpy as np
        import torch

        tokens = tokenise(self._tokenizer, texts, self.config, role) if texts else []
        vectors = np.zeros((len(tokens), self.dimension), dtype=np.float32)
        with torch.inference_mode():
            for rows in token_chunks([len(t) for t in tokens], self._budget):
                packed = pack([tokens[r] for r in rows], device=self._device)
                vectors[rows] = self._module(packed).cpu().numpy()
                if progress is not None:
                    progress.advance(len(rows))
        return vectors


def load_encoder(folder: Path, *, config: EncoderConfig | None = None) -> TextEncoder:
    """Load a model folder as an embedder; see `TextEncoder`."""
    return TextEncoder(folder, config=config)
