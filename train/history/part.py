"""One rank's part of a checkpoint: laid out in one safetensors file, copied to the host, written, read back.

Invariant: a file counts as written when its bytes came back from the disk with the checksum of the bytes in memory.
The thread that writes calls nothing of torch and handles large blocks only, so training next to it keeps the
interpreter and its threads.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from train.history.manifest import own_key, tensor_key
from train.history.pieces import Piece

if TYPE_CHECKING:
    import torch

_BLOCK = 8 << 20  # hashing and input/output let go of the interpreter for this long, some milliseconds
_CHUNK = 256 << 20  # a power of two: what torch rounds pinned memory up to


class Abandoned(Exception):
    """Nobody waits for this save any longer."""


def _dtype_names() -> dict[torch.dtype, str]:
    import torch

    return {
        torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32",
        torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8", torch.bool: "BOOL",
    }  # fmt: skip


class Layout:
    """Where each tensor of a part lies in its file.

    Attributes:
        header: the first bytes of the file. size: of what follows, in bytes.
        pieces: [name, start, stop, kinds] of each run that is not empty; parameters: shapes by name.
    """

    def __init__(self, pieces: Iterable[Piece], own: Mapping[str, torch.Tensor]) -> None:
        names = _dtype_names()
        self.pieces: list[list[Any]] = []
        self.parameters: dict[str, list[int]] = {}
        tensors: dict[str, torch.Tensor] = {}
        for piece in pieces:
            self.parameters[piece.name] = list(piece.shape)
            sizes = {tensor.numel() for tensor in piece.tensors.values()}
            if len(sizes) != 1:
                raise ValueError(f"the tensors of {piece.name} from {piece.start} have {sorted(sizes)} elements")
            (size,) = sizes
            if size:
                self.pieces.append([piece.name, piece.start, piece.start + size, sorted(piece.tensors)])
                tensors |= {tensor_key(kind, piece.start, piece.name): t for kind, t in piece.tensors.items()}
        tensors |= {own_key(name): tensor for name, tensor in own.items()}
        # wide elements first, so that each tensor begins at a multiple of its element's size
        ordered = sorted(tensors.items(), key=lambda entry: -entry[1].element_size())
        described: dict[str, Any] = {}
        self._entries: list[tuple[int, torch.Tensor]] = []
        at = 0
        for key, tensor in ordered:
            end = at + tensor.numel() * tensor.element_size()
            described[key] = {
                "dtype": names[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [at, end],
            }
            self._entries.append((at, tensor.detach().reshape(-1)))
            at = end
        self.size = at
        text = json.dumps(described).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text

    def on_device(self) -> bool:
        """Whether a tensor lies on a GPU."""
        return any(tensor.is_cuda for _, tensor in self._entries)

    def copy(self, first: int, chunk: torch.Tensor) -> None:
        """Copy the bytes from `first` on into `chunk` (uint8; `first` is a multiple of 8)."""
        end = first + len(chunk)
        for at, tensor in self._entries:
            width = tensor.element_size()
            low, high = max(at, first), min(at + len(tensor) * width, end)
            if low < high:
                source = tensor[(low - at) // width : (high - at) // width]
                chunk[low - first : high - first].view(tensor.dtype).copy_(source, non_blocking=True)

    def settle(self) -> None:
        """Wait until copies from GPUs have arrived."""
        import torch

        for device in {tensor.device for _, tensor in self._entries if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()


class HostMemory:
    """Memory that holds a part while it is written; kept from save to save: getting it costs more than filling it."""

    def __init__(self) -> None:
        self._chunks: list[torch.Tensor] = []

    def _get(self, number: int, size: int, *, pinned: bool) -> torch.Tensor:
        import torch

        held = self._chunks[number] if number < len(self._chunks) else None
        if held is None or len(held) < size or held.is_pinned() != pinned:
            self._chunks[number : number + 1] = []
            held = None  # the old one must be gone before the new one is asked for
            try:
                held = torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
            except RuntimeError as error:
                raise UserError(
                    f"host memory for a copy of the training state ({size / 2**30:.2f} GiB more)",
                    f"could not be had ({str(error).splitlines()[0]})",
                    "set checkpoint.background = false, which needs 0.25 GiB, or take a node with more memory",
                ) from error
            self._chunks.insert(number, held)
        return held[:size]

    def hold(self, layout: Layout) -> list[memoryview]:
        """Copy everything now; the memory belongs to the caller until the next call."""
        pinned = layout.on_device()
        blocks = []
        for number, first in enumerate(range(0, layout.size, _CHUNK)):
            chunk = self._get(number, min(_CHUNK, layout.size - first), pinned=pinned)
            layout.copy(first, chunk)
            blocks.append(chunk.numpy().data)
        layout.settle()
        return blocks

    def stream(self, layout: Layout) -> Iterator[memoryview]:
        """Copy bit by bit through one chunk."""
        pinned = layout.on_device()
        for first in range(0, layout.size, _CHUNK):
            chunk = self._get(0, min(_CHUNK, layout.size - first), pinned=pinned)
            layout.copy(first, chunk)
            layout.settle()
            yield chunk.numpy().data


def write_verified(path: Path, chunks: Iterable[memoryview], stop: Event) -> tuple[int, str]:
    """Write a file, put it on the disk, read it back. Returns its size and SHA-256.

    Raises:
        UserError: the disk gives back other bytes than it was given.
        Abandoned: `stop` was set meanwhile.
        OSError: whatever the disk says.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for chunk in chunks:
            for first in range(0, len(chunk), _BLOCK):
                if stop.is_set():
                    raise Abandoned
                block = chunk[first : first + _BLOCK]
                digest.update(block)
                size += len(block)
                while block:
                    block = block[os.write(descriptor, block) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    told = digest.hexdigest()
    if sha256_from_disk(path, stop) != told:
        raise UserError(
            f"writing {path}", "the disk gives back other bytes than were written",
            "check this disk (dmesg, smartctl) and put the run elsewhere with --runs DIR",
        )  # fmt: skip
    return size, told


def sha256_from_disk(path: Path, stop: Event) -> str:
    """SHA-256 of a file's bytes on the disk: those in memory are dropped first, where the system can."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BLOCK))
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while count := os.readv(descriptor, [buffer]):
            if stop.is_set():
                raise Abandoned
            digest.update(buffer[:count])
    finally:
        os.close(descriptor)
    return digest.hexdigest()
