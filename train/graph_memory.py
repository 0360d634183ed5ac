"""How many chunks of a step may keep their autograd graph.

A kept chunk is encoded once; the others are encoded again in the backward pass (train/gradcache.py). The bytes that a
graph holds are counted, not estimated: autograd shows every tensor that it saves.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Keep = int | Literal["auto", "all"]

_SHARE = {"cuda": 0.85, "cpu": 0.5}
"""Of the memory that is free beside the largest need seen so far: the allocator fragments, and the host is shared."""


class SavedBytes:
    """Counts the storage that autograd saves inside the block, each once, without the parameters of a module."""

    def __init__(self, module: torch.nn.Module) -> None:
        # under ZeRO-3 a parameter is gathered into a fresh storage: `ds_id` marks it
        self._known = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self._seen: set[int] = set()
        self.total = 0

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        pointer = storage.data_ptr()
        if pointer not in self._known and pointer not in self._seen and not hasattr(tensor, "ds_id"):
            self._seen.add(pointer)
            self.total += storage.nbytes()
        return tensor

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count while the block runs a forward pass."""
        import torch

        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda t: t):
            yield


class GraphMemory:
    """Decides how many tokens' graphs a step keeps.

    Args:
        keep: a number of chunks (at least the last one is always kept), `all`, or `auto`: one chunk in the first step,
            while the bytes of its graph are counted and the optimiser makes its state; afterwards as many as fit.
        device: where the graphs live.
    """

    def __init__(self, keep: Keep, *, device: torch.device) -> None:
        self._keep, self._device = keep, device
        self._tokens: int | None = None
        self.bytes_per_token: float | None = None

    @property
    def measuring(self) -> bool:
        """Whether the next graph should be counted and handed to `learn`."""
        return self._keep == "auto" and self._tokens is None

    def learn(self, saved_bytes: int, tokens: int) -> None:
        """Remember what one graph took; call `settle` at the end of the same step."""
        self.bytes_per_token = saved_bytes / max(1, tokens)

    def settle(self) -> None:
        """After the first step, when everything that lives as long as the run is there: see what is left."""
        if self.measuring and self.bytes_per_token is not None:
            self._tokens = int(free_bytes(self._device) / max(1.0, self.bytes_per_token))

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for another process to keep as much, as JSON values."""
        return {"tokens": self._tokens, "bytes_per_token": self.bytes_per_token, "device": self._device.type}

    def load(self, state: Mapping[str, Any] | None) -> None:
        """Decide as the process of this state did, where it ran on the same kind of device."""
        if state is not None and state["device"] == self._device.type:
            self._tokens, self.bytes_per_token = state["tokens"], state["bytes_per_token"]

    def chunks(self, chunk_tokens: list[int]) -> int:
        """How many of these chunks, counted from the last, may keep their graph: at least 1."""
        if self._keep == "all":
            return len(chunk_tokens)
        if isinstance(self._keep, int):
            return max(1, min(self._keep, len(chunk_tokens)))
        kept, tokens = 1, 0
        for number, size in enumerate(reversed(chunk_tokens), start=1):
            tokens += size
            # the last chunk needs no room: its graph is part of the largest need seen so far
            if number > 1 and tokens - chunk_tokens[-1] > (self._tokens or 0):
                break
            kept = number
        return kept


def free_bytes(device: Any) -> float:
    """Bytes for further graphs on a device, beside the largest need seen so far."""
    import torch

    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.max_memory_allocated(device)
        return max(0.0, _SHARE["cuda"] * (free + unused))
    import psutil

    # every process on this host decides for itself and takes its share only
    return _SHARE["cpu"] * float(psutil.virtual_memory().available) / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
