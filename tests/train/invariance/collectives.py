"""Counts what torch really sends between ranks: every collective operation of c10d, whoever calls it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

REDUCTIONS = ("allreduce_", "allreduce_coalesced_", "reduce_", "reduce_scatter_", "_reduce_scatter_base_",
              "reduce_scatter_tensor_coalesced_")  # fmt: skip


class Collectives(TorchDispatchMode):
    """Use it as a context manager; `phase` labels what is called inside of it.

    Attributes:
        calls: how often each (phase, operation) was called by this rank.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[str, str]] = Counter()
        self._phase = "elsewhere"

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            self.calls[self._phase, function._schema.name.removeprefix("c10d::")] += 1
        return function(*args, **(kwargs or {}))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is called inside the block is counted under `name`; the innermost block counts."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def table(self) -> dict[str, dict[str, int]]:
        """Phase → operation → calls."""
        found: dict[str, dict[str, int]] = {}
        for (phase, operation), count in sorted(self.calls.items()):
            found.setdefault(phase, {})[operation] = count
        return found


def gradient_reductions(table: dict[str, dict[str, int]]) -> int:
    """Reductions among the collectives of the backward passes of one optimiser step."""
    return sum(count for name, count in table.get("backward", {}).items() if name in REDUCTIONS)
