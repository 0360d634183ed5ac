"""The model that searches: anything that gives one vector a text.

An exported folder, a folder of a run, a sentence-transformers folder, or the name of one (on the Hub, or `package:NAME`
for one that was installed as a Python package).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError

if TYPE_CHECKING:
    from data_prep.embed.embedder import Embedder

# Where a model may lie below a folder that was given, and the file that shows it.
_PLACES = (".", "model", "export/model", "finetune/model")
_SENTENCE_TRANSFORMERS, _ENCODER = "modules.json", "encoder.json"


def load_model(model: str) -> Embedder:
    """Load any model by name or folder. Raises `UserError` naming every place that was looked at."""
    from transformers.utils.logging import disable_progress_bar

    from data_prep.embed.teacher import TeacherConfig, fit_teacher
    from data_prep.progress import Progress

    disable_progress_bar()
    name = model
    folder = Path(model).expanduser()
    if folder.is_dir():
        place = _find_model(folder)
        if (place / _ENCODER).is_file() and not (place / _SENTENCE_TRANSFORMERS).is_file():
            from train.encoder import load_encoder

            encoder: Embedder = load_encoder(place)
            return encoder
        name = str(place)
    elif folder.exists() or model.startswith(("/", ".", "~")) or model.count("/") > 1:
        raise UserError(f"model {model!r}", "is no folder", "give a model folder, such as runs/NAME/export/model")
    with tempfile.TemporaryDirectory(prefix="rumpun-search-") as scratch:
        return fit_teacher(
            TeacherConfig(kind="sentence-transformers", model=name), [], out=Path(scratch), seed=0, progress=Progress()
        )


def _find_model(folder: Path) -> Path:
    for place in _PLACES:
        if any((folder / place / mark).is_file() for mark in (_SENTENCE_TRANSFORMERS, _ENCODER)):
            return folder / place
    looked = ", ".join(str(Path(place) / _SENTENCE_TRANSFORMERS) for place in _PLACES)
    raise UserError(
        f"model folder {folder}",
        f"holds no model (looked for {looked}, and for {_ENCODER} in the same places)",
        "give the folder that an export wrote, such as runs/NAME/export/model",
    )
