"""Checkpoints of small models that no training made, and folders that transformers wrote, to compare with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

for _folder in ("", "history"):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / _folder))

Save = Callable[..., Path]


@pytest.fixture
def save_checkpoint(tmp_path: Path) -> Save:
    """(module, ranks, step) → the checkpoint that so many ranks leave, each with its part of the flattened weights."""
    from saved import KINDS, savers, split

    def save(
        module: Any, *, ranks: int = 1, step: int = 7, folder: Path | None = None, kinds: Sequence[str] = KINDS
    ) -> Path:
        shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
        full = {(n, k): p.detach().float().flatten() for n, p in module.named_parameters() for k in KINDS}
        place = folder or tmp_path / "checkpoints"
        made = savers(place, ranks, keep=9)
        parts = split(full, ranks, shapes)
        for rank in reversed(range(ranks)):
            pieces = [replace(piece, tensors={k: piece.tensors[k] for k in kinds}) for piece in parts[rank]]
            made[rank].save(step, pieces, {"updates": step}, {})
        for saver in made:
            saver.wait()
            assert saver.failure() is None
        return place / f"step-{step:08d}"

    return save
