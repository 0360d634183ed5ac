"""What is run beside the cases themselves, and on how many ranks."""

from __future__ import annotations

from dataclasses import replace

from invariance.cases import Case, all_cases

PRETRAINED = {1: (1, 3), 2: (1, 3), 3: (1, 3)}
"""ZeRO stages of the pretraining step, by ranks."""
FINETUNED = {1: (0,), 4: (1, 3)}
"""ZeRO stages of the finetuning of 20 steps, by ranks."""
SMALL_BUCKET = 4000
"""Elements of a gradient bucket; the tiny models have four times as many parameters and more."""


def mutated() -> list[Case]:
    """Cases that must fail when the exchange of gradients is wrong: one of each ZeRO stage, on 2 ranks."""
    return [next(c for c in all_cases() if c.world == 2 and c.settings["zero"] == zero) for zero in "0123"]


def lopsided_cases() -> list[Case]:
    """Cases that are run again with nearly everything dealt to one of 3 ranks: those that repeat chunks."""
    return [c for c in all_cases() if c.world == 3 and c.settings["chunks"] in ("1 of several", "2 of several")]


def bucket_cases() -> dict[str, Case]:
    """Name → a case on 2 ranks with small buckets: one forward pass, and many."""
    first = next(c for c in all_cases() if c.world == 2 and c.settings["zero"] == "1")
    return {
        f"buckets {zero}, {chunks}": replace(first, settings={**first.settings, "zero": zero, "chunks": chunks})
        for zero in ("1", "2 once")
        for chunks in ("one", "1 of several", "all of several")
    }
