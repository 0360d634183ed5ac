"""What a phase will write, compared with what the disk has, before the first step.

Invariant: a run that would fill the disk is refused before it computes anything. A quota can not be seen from here;
where it is smaller than the disk, the save that meets it fails as on a full disk, and the checkpoints before it stay.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.history.folder import step_name, steps_in

_FP32 = 4
_FIXED = 4 << 20  # manifest, headers, random generators


def bytes_of_checkpoint(parameters: int, *, moments: int = 2) -> int:
    """Bytes of one checkpoint: fp32 weights and as many moments."""
    return _FP32 * (1 + moments) * parameters + _FIXED


def bytes_of_model(parameters: int) -> int:
    """Bytes of a Hugging Face folder with fp32 weights, its tokenizer included."""
    return _FP32 * parameters + 8 * _FIXED


def check_space(
    folder: Path, *, parameters: int, keep: int, log_bytes: int = 64 << 20, model_folder: Path | None = None
) -> None:
    """Raise unless there is room for everything that a phase writes, and unless it may be written.

    Counts `keep` checkpoints and one that is being written (what is there already is counted as there), the logs, and
    the final model where it goes to the same file system; another file system is checked for it alone.

    Args:
        folder: of the checkpoints; it is made where it is missing.
        parameters: elements of all parameters. log_bytes: of ledger and metrics.
        model_folder: where the trained model will be put, None where nothing is.

    Raises:
        UserError: with the GiB that are needed and free, or the reason why nothing can be written.
    """
    _probe(folder)
    each = bytes_of_checkpoint(parameters)
    there = sum(path.stat().st_size for step in steps_in(folder) for path in (folder / step_name(step)).iterdir())
    needs = {folder: max(0, (keep + 1) * each - there) + log_bytes}
    if model_folder is not None:
        place = _existing(model_folder)
        same = place.stat().st_dev == folder.stat().st_dev
        needs[folder if same else place] = needs.get(folder, 0) * same + bytes_of_model(parameters)
    for place, needed in needs.items():
        free = shutil.disk_usage(place).free
        if needed > free:
            what = f"{keep} checkpoints and one being written, {_gib(each)} each" if place == folder else "the model"
            raise UserError(
                f"{place}: {_gib(free)} free",
                f"{_gib(needed)} more are needed ({what}; {parameters:,} parameters)",
                "free space, lower checkpoint.keep, or put the run elsewhere with --runs DIR",
            )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _probe(folder: Path) -> None:
    """Write, sync and delete a small file: read-only storage and a used-up quota show here."""
    path = folder / ".probe"
    with disk_errors(path):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("wb") as stream:
                stream.write(b"\0" * 4096)
                stream.flush()
                os.fsync(stream.fileno())
        finally:
            path.unlink(missing_ok=True)
