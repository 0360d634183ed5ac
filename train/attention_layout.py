"""Packed or padded: how a batch of sequences goes through a Hugging Face model, with the same states either way.

Packing is proved before it is used: two sequences in one stream must give the states that transformers itself gives
for each alone. An architecture that fails (its attention does not go through transformers' interface, or it knows
relative positions of its own) is padded instead, and the log says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

from train.attention import use_packed_attention
from train.packing import pack, padded

if TYPE_CHECKING:
    import torch

    from train.packing import Packed

Layout = Literal["packed", "padded"]

_log = logging.getLogger(__name__)


def attention_layout(model: Any, wanted: Layout) -> Layout:
    """Switch a base model to the wanted layout, or to `padded` where packing does not hold for it.

    Call it before an engine takes the model; it draws no random numbers. Returns the layout that holds.
    """
    own = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
    model.set_attn_implementation(own)
    if wanted == "padded":
        return wanted
    try:
        found = _difference(model, own)
        reason = "" if found < _tolerance(model) else f"packed states are {found:.1e} away from those of a text alone"
    except Exception as error:  # what cannot take a packed stream fails in a way of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if not reason:
        return "packed"
    model.set_attn_implementation(own)
    _log.warning("%s cannot be packed (%s): its batches are padded", type(model).__name__, reason)
    return "padded"


def token_states(model: Any, packed: Packed, layout: Layout) -> torch.Tensor:
    """The last hidden states [T, H] of a stream, in the order of its tokens; `model` is switched to `layout`."""
    inputs, kept = (packed.model_inputs(), 0) if layout == "packed" else padded(packed)
    inputs["position_ids"] = inputs["position_ids"] + first_position(model)
    return model(**inputs).last_hidden_state[kept]


def first_position(model: Any) -> int:
    """The number of a sequence's first position: 0, but RoBERTa counts from its padding id + 1.

    transformers counts so only where it is given no position ids.
    """
    embeddings: Any = getattr(model, "embeddings", None)
    return embeddings.padding_idx + 1 if hasattr(embeddings, "create_position_ids_from_input_ids") else 0


def learned_positions(model: Any) -> int | None:
    """How many positions a model has learned; None where they are computed and no length is refused."""
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    return None if table is None else table.num_embeddings - first_position(model)


def _difference(model: Any, own: str) -> float:
    """The largest relative difference between packed states and those of each sequence alone under `own` attention."""
    import torch

    words = model.get_input_embeddings().num_embeddings
    pad = model.config.pad_token_id
    # ids are spread over the vocabulary without a random number, and never the padding id, which RoBERTa counts by
    spread = [i for i in (7 + 13 * n for n in range(60)) if i % words != pad]
    sequences = [[i % words for i in spread[:9]], [i % words for i in spread[9:25]]]
    trained, device = model.training, model.get_input_embeddings().weight.device
    model.eval()
    try:
        with torch.no_grad():
            alone = [token_states(model, pack([s], device=device), "padded") for s in sequences]
            use_packed_attention(model)
            together = token_states(model, pack(sequences, device=device), "packed").split([9, 16])
    finally:
        model.train(trained)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(alone, together, strict=True))


def _tolerance(model: Any) -> float:
    import torch

    return 1e-4 if model.dtype == torch.float32 else 5e-2
