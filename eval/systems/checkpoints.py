"""Every checkpoint of a finetuning as a system of its own: how quality grew while it trained.

Invariant: what is measured is what an export of that checkpoint would publish; a damaged checkpoint is an error, never
a row that is quietly absent.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.files import disk_errors
from eval.systems.dense import DenseRanker

if TYPE_CHECKING:
    from eval.systems.ranker import Ranker
    from train.encoder import EncoderConfig

Materialise = Callable[[Path, Path], object]
"""Writes the model folder of a checkpoint: (folder of the checkpoint, an empty folder)."""


def checkpoint_steps(history: Path) -> list[int]:
    """Steps of the checkpoints in a phase's history, rising.

    Raises `UserError` where there is none: its history was removed, or nothing was saved while it trained.
    """
    from train.history.folder import steps_in

    steps = sorted(steps_in(history / "checkpoints"))
    if not steps:
        raise UserError(
            f"eval.checkpoints = true: {history / 'checkpoints'}",
            "holds no checkpoint",
            "set checkpoint.every_steps below the steps of the finetuning and train again, or eval.checkpoints = false",
        )
    return steps


def checkpoint_name(step: int) -> str:
    """What tables call it."""
    return f"finetuned@{step}"


def exporter(model: Path, encoder: EncoderConfig) -> Materialise:
    """Writes checkpoints as the export does.

    Args:
        model: the folder that the phase began with; shapes and tokenizer come from there.
        encoder: as it was trained.
    """

    def materialise(checkpoint: Path, out: Path) -> object:
        from train.export.from_checkpoint import checkpoint_to_model

        return checkpoint_to_model(checkpoint, model, out, encoder=encoder)

    return materialise


def checkpoint_ranker(history: Path, step: int, materialise: Materialise, *, scratch: Path | None = None) -> Ranker:
    """The encoder of one checkpoint.

    Args:
        history: of the phase; the checkpoint lies in its `checkpoints/step-N`.
        scratch: where its model folder lies until it is loaded (4 bytes a parameter); None: the system's own place.

    Raises:
        UserError: the checkpoint is damaged, gone or of another model, or the disk is full.
    """
    from train.encoder import load_encoder
    from train.history.folder import step_name

    place = history / "checkpoints" / step_name(step)
    if not place.is_dir():
        raise UserError(str(place), "is gone", "evaluate again: the list is made anew")
    if scratch is not None:
        with disk_errors(scratch):
            scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="checkpoint-", dir=scratch) as folder:
        out = Path(folder) / "model"
        out.mkdir()
        materialise(place, out)
        return DenseRanker(load_encoder(out), name=checkpoint_name(step))
