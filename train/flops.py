"""What a step computed, in floating point operations, and how fast this device could at best have done it.

Convention (printed with every summary): a multiply and an add are two operations. The trunk alone counts: the linear
maps of the layers and the two products of attention over Σ length² (half of it where attention is causal; a sliding
window is not taken off). Training counts three forward passes (the backward pass is two). Embedding look-ups, norms,
the output head, padding and second forward passes are no model work: the last three appear in `hfu` only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

CONVENTION = (
    "trunk_mfu = FLOPs of the layers (matmuls + attention, causal counted half, sliding windows ignored; backward = 2 "
    "forwards) on real tokens / (seconds x processes x dense peak of the device at this precision). Not counted: "
    "embeddings, output head, padding, second forwards; hfu adds the last three."
)


@dataclass(frozen=True)
class Work:
    """What was computed; every field is a sum over the global batch, so works add up over ranks and over steps.

    Attributes:
        tokens: real tokens, each once. sequences: their sequences. pairs: (query, positive) rows they served.
        squared_tokens: Σ length² over the sequences.
        computed_tokens, computed_squared: the same two with padding; equal to them where nothing is padded.
        again_tokens, again_squared: of second forward passes (GradCache, activation checkpointing), with padding.
        head_tokens: tokens whose logits were computed.
    """

    tokens: int = 0
    sequences: int = 0
    pairs: int = 0
    squared_tokens: int = 0
    computed_tokens: int = 0
    computed_squared: int = 0
    again_tokens: int = 0
    again_squared: int = 0
    head_tokens: int = 0

    @classmethod
    def of(
        cls,
        lengths: Iterable[int],
        *,
        pairs: int = 0,
        computed: Iterable[int] | None = None,
        again: Iterable[int] = (),
        head_tokens: int = 0,
    ) -> Work:
        """The work of sequences of these lengths.

        Args:
            computed: the lengths that were computed (the padded ones); unset where nothing is padded.
            again: computed lengths of the sequences that went forward a second time.
        """
        real = list(lengths)
        padded = real if computed is None else list(computed)
        twice = list(again)
        return cls(
            tokens=sum(real),
            sequences=len(real),
            pairs=pairs,
            squared_tokens=_squares(real),
            computed_tokens=sum(padded),
            computed_squared=_squares(padded),
            again_tokens=sum(twice),
            again_squared=_squares(twice),
            head_tokens=head_tokens,
        )

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> list[int]:
        """The fields in order: `Work(*values)` is the way back, after a sum over ranks."""
        return [getattr(self, f.name) for f in fields(self)]


def _squares(lengths: Sequence[int]) -> int:
    return sum(n * n for n in lengths)


@dataclass(frozen=True)
class Flops:
    """Forward operations of a network.

    Attributes:
        per_token: of the trunk's linear maps. per_squared_token: of its attention, times Σ length².
        head_per_token: of the output projection to the vocabulary.
    """

    per_token: float
    per_squared_token: float
    head_per_token: float

    @classmethod
    def of(cls, config: Any, *, bidirectional: bool) -> Flops | None:
        """Count from a Hugging Face configuration, by building the network without storage.

        Returns None where a token does not pass all weights (mixtures of experts): then no MFU is claimed.
        """
        import torch
        from transformers import AutoModel
        from transformers.pytorch_utils import Conv1D

        told = config.to_dict()
        if any(told.get(key) for key in ("num_experts", "num_local_experts", "n_routed_experts")):
            return None
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        linear = sum(
            m.weight.numel()
            for name, m in model.named_modules()
            if isinstance(m, (torch.nn.Linear, Conv1D)) and not name.startswith("pooler")
        )
        width = config.hidden_size
        heads = config.num_attention_heads
        attention = 4 * config.num_hidden_layers * heads * (getattr(config, "head_dim", None) or width // heads)
        return cls(
            per_token=2.0 * linear,
            per_squared_token=attention * (1.0 if bidirectional else 0.5),
            head_per_token=2.0 * width * config.vocab_size,
        )

    def forward(self, tokens: int, squared: int) -> float:
        """Operations of one forward pass of the trunk."""
        return tokens * self.per_token + squared * self.per_squared_token

    def model(self, work: Work, *, training: bool = True) -> float:
        """Operations that the result needs: of the trunk, on real tokens, once."""
        return self.forward(work.tokens, work.squared_tokens) * (3 if training else 1)

    def hardware(self, work: Work, *, training: bool = True) -> float:
        """Operations that were carried out: padding, head and second forwards included."""
        once = self.forward(work.computed_tokens, work.computed_squared) + work.head_tokens * self.head_per_token
        return once * (3 if training else 1) + self.forward(work.again_tokens, work.again_squared)


# Dense TFLOP/s (half of the data sheets' figures "with sparsity") as (bf16 with fp32 accumulation, tf32, fp32 without
# tensor cores), by the whole name that the driver gives. A name with more in it (a MIG slice, a laptop, a custom board)
# is another device: it is left out rather than guessed.
PEAK_FLOPS: tuple[tuple[str, tuple[float | None, float | None, float]], ...] = (
    # NVIDIA HGX B200 and GB200 NVL72 data sheets
    (r"GB200", (2500.0, 1250.0, 80.0)),
    (r"B200", (2250.0, 1100.0, 75.0)),
    # NVIDIA H100, H200, GH200 data sheets
    (r"H200|H100 80GB HBM3|H800|GH200 (120|144G|480)(GB)?( HBM3e?)?", (989.4, 494.7, 66.9)),
    (r"(H100|H200) NVL", (835.5, 417.5, 60.0)),
    (r"(H100|H800) PCIe", (756.0, 378.0, 51.2)),
    (r"H20", (148.0, 74.0, 44.0)),
    # NVIDIA A100, A40, A30, A10, A10G, RTX A6000 data sheets
    (r"A[18]00-(SXM4|PCIE)-[48]0GB|A[18]00 80GB PCIe", (312.0, 156.0, 19.5)),
    (r"A40", (149.7, 74.8, 37.4)),
    (r"A30", (165.0, 82.0, 10.3)),
    (r"A10", (125.0, 62.5, 31.2)),
    (r"A10G", (70.0, 35.0, 35.0)),
    (r"RTX A6000", (154.8, 77.4, 38.7)),
    # NVIDIA L40S, L40, L4, RTX 6000 Ada data sheets
    (r"L40S", (362.05, 183.0, 91.6)),
    (r"L40", (181.05, 90.5, 90.5)),
    (r"L4", (121.0, 60.0, 30.3)),
    (r"RTX 6000 Ada Generation", (364.2, 182.1, 91.1)),
    # NVIDIA GA102, Ada and Blackwell white papers: GeForce accumulates in fp32 at half rate
    (r"GeForce RTX 3090", (71.0, 35.6, 35.6)),
    (r"GeForce RTX 4090", (165.2, 82.6, 82.6)),
    (r"GeForce RTX 5090", (209.5, 104.8, 104.8)),
    # NVIDIA V100 and T4 data sheets: no bf16 and no tf32 units
    (r"(Tesla )?V100-SXM2-(16|32)GB", (None, None, 15.7)),
    (r"(Tesla )?V100-PCIE-(16|32)GB", (None, None, 14.0)),
    (r"(Tesla )?T4", (None, None, 8.1)),
)


def peak_flops(device_name: str, precision: str, *, tf32: bool = False) -> float | None:
    """Dense peak of a device in operations per second; None where the table does not know it.

    Args:
        device_name: as `torch.cuda.get_device_name` gives it. precision: `bf16` or `fp32`.
        tf32: whether fp32 products may use TF32 tensor cores.
    """
    column = {"bf16": 0, "fp32": 1 if tf32 else 2}.get(precision)
    name = device_name.removeprefix("NVIDIA ")
    for pattern, peaks in PEAK_FLOPS:
        if column is not None and re.fullmatch(pattern, name):
            peak = peaks[column]
            return None if peak is None else peak * 1e12
    return None
