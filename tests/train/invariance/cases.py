"""The settings that must not change the loss or the gradient, those that do, and the sample of both that is run.

Invariant: `world`, `zero`, `chunks`, `layout` and `checkpointing` leave the reference as it is; the other factors say
what the loss is, and the reference knows each of them by its definition alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from invariance.pairwise import pairwise

WORLDS = (1, 2, 3, 4)
FACTORS: dict[str, list[str]] = {
    "world": [str(n) for n in WORLDS],
    # with and without reduce_once
    "zero": ["0", "1", "2", "2 once", "3", "3 once"],
    # how many of how many graphs are kept
    "chunks": ["one", "all of several", "2 of several", "1 of several"],
    "layout": ["packed", "padded"],
    "checkpointing": ["off", "on"],
    "negatives": ["1", "4"],
    "loss": [
        "InfoNCE",
        "InfoNCE symmetric",
        "InfoNCE query and passage negatives",
        "InfoNCE false-negative margin",
        "margin",
        "triplet",
        "CoSENT",
    ],
    "matryoshka": ["off", "on"],
    "model": ["llama", "llama bidirectional", "qwen3", "bert"],
    "pooling": ["mean", "weighted_mean", "last"],
    "projection": ["off", "on"],
    "prompts": ["off", "pooled", "masked"],
}
SAME_RESULT = ("world", "zero", "chunks", "layout", "checkpointing")

TEMPERATURE, MARGIN, FALSE_NEGATIVE_MARGIN = 0.2, 0.9, 0.02
MAX_TOKENS = 32
SMALL_CHUNK_TOKENS = {1: 160, 2: 80, 3: 55, 4: 40}
"""By ranks: cuts every rank's part of the batch into four chunks or more."""
LARGE_CHUNK_TOKENS = 16384
PROJECTION = 24
DIMS = [16, 5]
"""Matryoshka prefixes beside the whole vector."""
QUERY_PROMPT, PASSAGE_PROMPT = "mohon bantuan", "rumah sewa ikan"


@dataclass(frozen=True)
class Case:
    """One value of every factor."""

    number: int
    settings: Mapping[str, str]

    @property
    def world(self) -> int:
        return int(self.settings["world"])

    @property
    def name(self) -> str:
        """For test names: the number, and what makes it run as it does."""
        s = self.settings
        return f"{self.number:02d}-{s['world']}ranks-zero{s['zero']}-{s['chunks']}-{s['layout']}".replace(" ", "_")

    @property
    def definition(self) -> tuple[tuple[str, str], ...]:
        """What the loss is; cases that agree in it have the same reference."""
        return tuple((k, v) for k, v in self.settings.items() if k not in SAME_RESULT)


@cache
def all_cases() -> tuple[Case, ...]:
    """The sample, in a fixed order."""
    return tuple(Case(number, row) for number, row in enumerate(pairwise(FACTORS), start=1))


def finetune_settings(settings: Mapping[str, str]) -> dict[str, Any]:
    """The keyword arguments of `FinetuneConfig` for a case."""
    stage, _, mark = settings["zero"].partition(" ")
    loss = settings["loss"]
    extra = loss == "InfoNCE query and passage negatives"
    several = settings["chunks"] != "one"
    kept = {"one": "all", "all of several": "all", "2 of several": 2, "1 of several": 1}[settings["chunks"]]
    return {
        "precision": "fp32",
        "gradient_clip": 0.0,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "zero_stage": int(stage),
        "reduce_once": mark == "once",
        "activation_checkpointing": settings["checkpointing"] == "on",
        "micro_batch_tokens": SMALL_CHUNK_TOKENS[int(settings["world"])] if several else LARGE_CHUNK_TOKENS,
        "kept_chunks": kept,
        "layout": settings["layout"],
        "loss": {"margin": "margin", "triplet": "triplet", "CoSENT": "cosent"}.get(loss, "info_nce"),
        "temperature": TEMPERATURE,
        "margin": MARGIN,
        "symmetric": loss == "InfoNCE symmetric",
        "query_negatives": extra,
        "passage_negatives": extra,
        "false_negative_margin": FALSE_NEGATIVE_MARGIN if loss == "InfoNCE false-negative margin" else None,
        "matryoshka": DIMS if settings["matryoshka"] == "on" else [],
        "hard_negatives": int(settings["negatives"]),
    }


def encoder_settings(settings: Mapping[str, str]) -> dict[str, Any]:
    """The keyword arguments of `EncoderConfig` for a case."""
    prompts = settings["prompts"] != "off"
    return {
        "max_tokens": MAX_TOKENS,
        "pooling": settings["pooling"],
        "projection": PROJECTION if settings["projection"] == "on" else None,
        "bidirectional": settings["model"] == "llama bidirectional",
        "query_prompt": QUERY_PROMPT if prompts else "",
        "passage_prompt": PASSAGE_PROMPT if prompts else "",
        "mask_prompts": settings["prompts"] == "masked",
    }
