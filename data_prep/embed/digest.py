"""What identifies a teacher: the digest of its settings and of its model's files.

A digest of files is remembered beside their sizes and times in the user's cache folder, so that many processes that
load one model of many gigabytes hash it once.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import sha256_file, write_atomically

_SUFFIXES = (".json", ".txt", ".model", ".safetensors", ".bin", ".jinja", ".spm")
_PASSED_OVER = ("onnx", "openvino", ".git", ".cache")
"""Other renderings of the weights, which are not loaded; one machine may have them and another not."""


def digest_of(**values: Any) -> str:
    """64 hex digits that change with any of the values (JSON values)."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def files_digest(model: str) -> str:
    """Digest of the names and contents of a model's files.

    Args:
        model: a folder, or a Hugging Face id whose files were downloaded before.

    Raises:
        UserError: no such folder, and no downloaded model of that id.
    """
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _downloaded(model)
    files = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.suffix in _SUFFIXES and not set(path.relative_to(folder).parts) & set(_PASSED_OVER) and path.is_file()
    }
    seen = {name: [path.stat().st_size, path.stat().st_mtime_ns] for name, path in files.items()}
    note = _notes() / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.json"
    try:
        told = json.loads(note.read_text())
        if told["files"] == seen:
            return str(told["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    digest = digest_of(files={name: sha256_file(path) for name, path in files.items()})
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(note, json.dumps({"files": seen, "digest": digest}).encode())
    except (OSError, UserError):  # no home, a full or read-only one: hash again next time
        pass
    return digest


def _notes() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rumpun" / "digests"


def _downloaded(model: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, local_files_only=True))
    except Exception as error:  # the hub client raises many kinds
        raise UserError(f"model {model!r}", "is neither a folder nor a downloaded model", "check the name") from error
