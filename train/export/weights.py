"""Weights as safetensors, written tensor by tensor: memory does not grow with the model or with its files.

Invariants: bytes equal those that safetensors' own `save_file` writes for the same tensors; values are cast once, to
nearest; a file counts as written when its bytes came back from the disk (train/history/part.py).

The library needs a whole file's tensors in memory to write it. The format is short: 8 bytes that tell the length of a
JSON header, the header, then the tensors behind one another (https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from data_prep.errors import UserError
from data_prep.files import disk_errors, write_atomically
from train.history.part import write_verified

if TYPE_CHECKING:
    import torch

Dtype = Literal["fp32", "bf16", "fp16"]

_AT_ONCE = 1 << 21
"""Elements that are held at a time: 8 MiB in fp32."""


class Entry(NamedTuple):
    """One tensor: its shape, and its type as safetensors names it (`F32`)."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes in a file."""
        return self.size * _WIDTHS[self.dtype]


class Source(Protocol):
    """Where tensors come from, by name and flat range."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All tensors, in the order of the model."""

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a flattened tensor."""

    def close(self) -> None:
        """Let go of what is mapped; the next `read` opens it again."""


_NAMES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
_WIDTHS = {
    "BOOL": 1, "U8": 1, "I8": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8,
    "I64": 8, "U64": 8,
}  # fmt: skip
_FLOATS = ("F16", "BF16", "F32", "F64")


def cast_entry(entry: Entry, dtype: Dtype) -> Entry:
    """What a tensor becomes: floats take the type, whole numbers keep theirs."""
    return Entry(_NAMES[dtype], entry.shape) if entry.dtype in _FLOATS else entry


def split(entries: Mapping[str, Entry], most: int) -> list[list[str]]:
    """Names for each file, in their order, so that no file exceeds `most` bytes unless a single tensor does."""
    shards: list[list[str]] = []
    room = 0
    for name, entry in entries.items():
        if not shards or entry.bytes > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= entry.bytes
    return shards


def write_weights(source: Source, out: Path, *, dtype: Dtype, shard_gb: float) -> dict[str, int]:
    """Write `model.safetensors`, or `model-0000I-of-0000N.safetensors` with their index.

    Args:
        out: an existing folder. shard_gb: 10⁹ bytes, the most that a file holds.

    Returns:
        `files`, `bytes` of the tensors, `largest_file_bytes`.

    Raises:
        UserError: a value does not fit into fp16 or is not finite; the disk is full, or gives back other bytes.
    """
    entries = {name: cast_entry(entry, dtype) for name, entry in source.entries.items()}
    shards = split(entries, round(shard_gb * 1e9))
    place: dict[str, str] = {}
    largest = 0
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        size = write_file(out / file, source, names, dtype=dtype, metadata={"format": "pt"})
        largest = max(largest, size)
        place |= dict.fromkeys(names, file)
    total = sum(entry.bytes for entry in entries.values())
    if len(shards) > 1:
        facts = {"total_parameters": sum(entry.size for entry in entries.values()), "total_size": total}
        index = json.dumps({"metadata": facts, "weight_map": place}, indent=2, sort_keys=True) + "\n"
        write_atomically(out / "model.safetensors.index.json", index.encode())
    return {"files": len(shards), "bytes": total, "largest_file_bytes": largest}


def write_file(
    path: Path, source: Source, names: Sequence[str], *, dtype: Dtype, metadata: Mapping[str, str] | None = None
) -> int:
    """Write some tensors to one file, read it back, and let the library open it. Returns its size in bytes.

    Raises as `write_weights`.
    """
    entries = {name: cast_entry(source.entries[name], dtype) for name in names}
    # the library's order: wide types first, so that each tensor is aligned, then by name
    ordered = dict(sorted(entries.items(), key=lambda item: (-_WIDTHS[item[1].dtype], item[1].dtype, item[0])))
    described: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, entry in ordered.items():
        described[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.bytes],
        }
        at += entry.bytes
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    def chunks() -> Iterator[memoryview]:
        yield memoryview(len(text).to_bytes(8, "little") + text)
        for name in ordered:
            yield from _bytes_of(source, name, dtype)
        source.close()

    with disk_errors(path):
        size, _ = write_verified(path, chunks(), Event())
    _check_opens(path, ordered)
    return size


def _bytes_of(source: Source, name: str, dtype: Dtype) -> Iterator[memoryview]:
    """A tensor's bytes in the type that is published."""
    import torch

    entry = source.entries[name]
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for start in range(0, entry.size, _AT_ONCE):
        part = source.read(name, start, min(entry.size, start + _AT_ONCE))
        if part.is_floating_point():
            if not torch.isfinite(part).all():
                raise UserError(
                    f"tensor {name}", "holds values that are not finite (NaN or infinity)",
                    "export an earlier step: training had diverged here",
                )  # fmt: skip
            cast = part.to(wanted)
            if not torch.isfinite(cast).all():
                raise UserError(
                    f"tensor {name}: {float(part.abs().max()):.3g}",
                    f"is beyond what {dtype} can hold ({torch.finfo(wanted).max:.3g})",
                    "export as bf16, which has the range of fp32" if dtype == "fp16" else "export as fp32",
                )
            part = cast
        yield part.contiguous().view(torch.uint8).numpy().data
        # what is mapped counts as memory of this process until it is let go
        source.close()


def _check_opens(path: Path, entries: Mapping[str, Entry]) -> None:
    """Let the library read the header, which checks that offsets and sizes fit, and compare."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        found = {name: Entry(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    if found != entries:
        raise ValueError(f"{path}: safetensors reads other tensors than were written")


class FolderSource:
    """The tensors of a model folder's `model*.safetensors`. Raises `UserError` where it has none."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self._place: dict[str, Path] = {}
        self.entries: dict[str, Entry] = {}
        for path in weight_files(folder):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    part = file.get_slice(name)
                    self._place[name] = path
                    self.entries[name] = Entry(part.get_dtype(), tuple(part.get_shape()))

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements [start, stop) of a flattened tensor; whole rows are read."""
        from safetensors import safe_open

        entry = self.entries[name]
        with safe_open(self._place[name], framework="pt") as file:
            if not entry.shape:
                return file.get_tensor(name).reshape(-1).clone()
            width = max(1, math.prod(entry.shape[1:]))
            first = start // width
            rows = file.get_slice(name)[first : -(-stop // width)].reshape(-1)
            return rows[start - first * width : stop - first * width].clone()

    def close(self) -> None:
        """Nothing is kept open between reads."""


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights. Raises `UserError` where there is none."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise UserError(str(folder), "holds no model*.safetensors", "give a complete model folder")
    return files
