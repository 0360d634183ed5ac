"""Which files of an exported folder are published, and what they are.

Invariant: only kinds that nobody has to trust go up (safetensors, JSON, vocabularies, ONNX). What stays behind is named
with its reason, never left out in silence.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from data_prep.errors import UserError
from data_prep.files import read_json

CARD = "README.md"
_BLOCK = 1 << 20
_KINDS = {".safetensors", ".json", ".onnx", ".jinja"}
_NAMES = {"tokenizer.model", "sentencepiece.bpe.model", "spiece.model", "vocab.txt", "merges.txt", "added_tokens.txt"}
_LEGAL = re.compile(r"(LICEN[CS]E|NOTICE|USE_POLICY|ACCEPTABLE_USE_POLICY)([.\w-]*)", re.IGNORECASE)
_TRAINING = re.compile(
    r"(optim|scheduler|rng_state|random_state|trainer_state|training_args|zero_|mp_rank|checkpoint)", re.IGNORECASE
)
_RECORDS = {"stage.json", "manifest.json", "identity.json", "parity.json", "run.json"}
_MOMENTS = ("exp_avg", "momentum_buffer", "optimizer.")
_TOKEN = re.compile(rb"\bhf_[A-Za-z0-9]{30,}")
_SCANNED_BYTES = 32 << 20


@dataclass(frozen=True)
class ModelFile:
    """One file that goes up: `name` is its path in the repository; digests are hex (SHA-256; git's blob SHA-1)."""

    name: str
    path: Path | None
    size: int
    sha256: str
    blob_id: str
    text: bytes | None = None
    """The content, where it exists nowhere on the disk (the card)."""


@dataclass(frozen=True)
class Listing:
    """Files that go up, sorted by name, and (name, reason) of those that stay."""

    files: list[ModelFile]
    refused: list[tuple[str, str]]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def list_files(model: Path, *, secret: str | None = None) -> Listing:
    """The publishable files of a sentence-transformers folder, hashed.

    Args:
        secret: a text that no file may hold (the user's token).

    Raises:
        UserError: the folder is no model folder, weights are missing, cut off or not safetensors, or a file holds a
            token.
    """
    if not (model / "modules.json").is_file() and not (model / "config.json").is_file():
        raise UserError(
            str(model),
            "holds no embedding model (no modules.json)",
            "give a run folder or runs/NAME/export/model",
        )
    files, refused = [], []
    for name in _walk(model):
        reason = refusal(model, name)
        if reason is None:
            files.append(read_file(model / name, name))
        else:
            refused.append((name, reason))
    if any("leads out" in reason for _, reason in refused) and not any(f.name.endswith(".safetensors") for f in files):
        raise UserError(str(model), "its files are links that lead out of it", "give a copy: cp -rL FOLDER COPY")
    _check_whole(model, {file.name for file in files})
    for file in files:
        _check_secrets(file, secret)
    return Listing(files, refused)


def _walk(folder: Path) -> list[str]:
    """Every entry below the folder that is no plain folder, as paths with slashes; links are not followed."""
    found = []

    def unreadable(error: OSError) -> None:
        raise UserError(
            str(error.filename), f"cannot be read ({error.strerror})", "check its permissions; nothing was published"
        ) from error

    for place, folders, names in os.walk(folder, onerror=unreadable):
        at = Path(place)
        links = [name for name in folders if (at / name).is_symlink()]
        hidden = [name for name in folders if name.startswith(".") and name not in links]
        folders[:] = sorted(name for name in folders if name not in links and name not in hidden)
        found += [(at / name).relative_to(folder).as_posix() for name in [*names, *links]]
        found += [(at / name).relative_to(folder).as_posix() + "/" for name in hidden]
    return sorted(found)


def refusal(model: Path, name: str) -> str | None:
    """Why a file stays behind; None where it may go up."""
    path, place = model / name, PurePosixPath(name)
    if any(part.startswith(".") for part in place.parts):
        return "hidden"
    if not name.isprintable():
        return "a name that cannot be shown"
    if path.is_symlink():
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            return "a link that leads nowhere"
        if not target.is_relative_to(model.resolve()):
            return "a link that leads out of the folder"
        if target.is_dir():
            return "a link to a folder"
    if not path.is_file():
        return "not a plain file"
    if name == CARD:
        return "the card of the run takes its place (--card README.md keeps this one)"
    if place.name in _RECORDS or _TRAINING.search(place.name):
        return "a record or state of training"
    if _LEGAL.fullmatch(place.name) and place.suffix.lower() in ("", ".txt", ".md"):
        return None
    if place.suffix not in _KINDS and place.name not in _NAMES and not place.name.endswith(".onnx_data"):
        return f"not of a kind that is published ({place.suffix or 'no ending'})"
    if place.suffix == ".safetensors" and (moments := _moments(path)):
        return f"holds optimizer state ({moments})"
    return None


def safetensors_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises `UserError` where the file is cut off or something else."""
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if 2 <= length <= min(size - 8, 100 << 20) else None
        spans = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]  # type: ignore[union-attr]
    except (ValueError, AttributeError, KeyError, TypeError, IndexError, RecursionError):
        header, spans = None, []
    if header is None or 8 + length + max(spans, default=0) != size:
        raise UserError(str(path), "is not a whole safetensors file", "export the model again; nothing was published")
    return header


def _moments(path: Path) -> str | None:
    """A tensor's name that only an optimizer writes."""
    return next((key for key in safetensors_header(path) if any(word in key for word in _MOMENTS)), None)


def read_file(path: Path, name: str) -> ModelFile:
    """A file with its digests; read once, in blocks. Raises `UserError` where it cannot be read."""
    try:
        size = path.stat().st_size
        whole, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                whole.update(block)
                blob.update(block)
    except OSError as error:
        raise UserError(
            str(path), f"cannot be read ({error.strerror})", "check its permissions and the disk"
        ) from error
    return ModelFile(name, path, size, whole.hexdigest(), blob.hexdigest())


def text_file(name: str, text: str) -> ModelFile:
    """A file that exists in memory alone."""
    data = text.encode()
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return ModelFile(name, None, len(data), hashlib.sha256(data).hexdigest(), blob, data)


def _check_whole(model: Path, names: set[str]) -> None:
    """Weights are there, and all parts that an index names."""
    if not any(name.endswith((".safetensors", ".onnx")) for name in names):
        raise UserError(str(model), "holds no weights in safetensors", "export it first: rumpun export RECIPE")
    for index in sorted(name for name in names if name.endswith(".safetensors.index.json")):
        value = read_json(model / index)
        parts = value.get("weight_map") if isinstance(value, dict) else None
        if not isinstance(parts, dict):
            raise UserError(str(model / index), "is no index of weights", "export the model again")
        missing = sorted({str(Path(index).parent / str(p)) for p in parts.values()} - names)
        if missing:
            raise UserError(str(model), f"lacks {', '.join(missing[:3])}, named in {index}", "export the model again")


def _check_secrets(file: ModelFile, secret: str | None) -> None:
    """No file that people read may hold a token."""
    if file.path is None or file.name.endswith((".safetensors", ".onnx", ".onnx_data")) or file.size > _SCANNED_BYTES:
        return
    data = file.path.read_bytes()
    vocabulary = PurePosixPath(file.name).name.startswith(("tokenizer.", "vocab", "merges", "spiece", "sentencepiece"))
    if (secret and secret.encode() in data) or (not vocabulary and _TOKEN.search(data)):
        raise UserError(str(file.path), "holds an access token", "take it out and revoke it; nothing was published")


def read_parity(model: Path) -> dict[str, Any] | None:
    """`parity.json` beside the folder (or in it), as an object; None where there is none."""
    for place in (model.parent / "parity.json", model / "parity.json"):
        if place.is_file():
            value = read_json(place)
            return value if isinstance(value, dict) else {}
    return None


def parity_trouble(model: Path, files: list[ModelFile]) -> str | None:
    """Why the folder does not count as equal to the trained model; None where it does.

    Besides the figures in `parity.json`, the files must still be those that the export stage wrote down.
    """
    proof = read_parity(model)
    if proof is None:
        return "no parity.json lies beside it: nobody compared it with the trained model"
    if trouble := _differs(proof):
        return trouble
    record = model.parent / "stage.json"
    if record.is_file() and isinstance(written := read_json(record), dict):
        known = written["files"] if isinstance(written.get("files"), dict) else {}
        for file in files:
            entry = known.get(f"{model.name}/{file.name}")
            if isinstance(entry, dict) and entry.get("sha256") != file.sha256:
                return f"{file.name} was changed after the export"
    return None


def _differs(proof: dict[str, Any]) -> str | None:
    """What a parity.json says against the folder: differences in fp32, cosines where half precision was written."""
    difference, tolerance, least = (proof.get(key) for key in ("max_abs_difference", "tolerance", "min_cosine"))
    half = proof.get("dtype") in ("bf16", "fp16")
    if not half and not _ordered(difference, tolerance, equal=False):
        return f"its parity.json tells of a difference of {difference}, allowed is {tolerance}"
    ways = proof.get("against")
    against = ways if isinstance(ways, dict) else {}
    for way, told in against.items() if least is not None or half else []:
        cosine = told.get("min_cosine") if isinstance(told, dict) else None
        if not _ordered(least, cosine, equal=True):
            return f"its parity.json tells of a cosine of {cosine} in {way}, at least {least} is asked"
    return "its parity.json compares nothing" if half and not against else None


def _ordered(low: Any, high: Any, *, equal: bool) -> bool:
    """Whether both are numbers and in this order; NaN never is."""
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (low, high))
    return numbers and bool(low <= high if equal else low < high)
