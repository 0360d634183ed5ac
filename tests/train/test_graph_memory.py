"""How many graphs are kept: counted bytes against known ones, and decisions for given memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from train import graph_memory
from train.graph_memory import GraphMemory, SavedBytes

CPU = torch.device("cpu")


def test_counts_what_autograd_saves_once_and_no_parameters() -> None:
    layer = torch.nn.Linear(8, 16, bias=False)
    x = torch.randn(10, 8)
    saved = SavedBytes(layer)
    with saved.counting():
        y = layer(x)  # keeps x: 10 · 8 floats, and the weight, which is a parameter
        z = y.sigmoid()  # keeps its result: 10 · 16 floats
        (z * z).sum()  # keeps z, which is counted already
    assert saved.total == 4 * (10 * 8 + 10 * 16)


@pytest.mark.parametrize(("keep", "kept"), [("all", 5), (1, 1), (2, 2), (5, 5), (9, 5)])
def test_fixed_numbers(keep: Any, kept: int) -> None:
    memory = GraphMemory(keep, device=CPU)
    assert not memory.measuring
    assert memory.chunks([10, 10, 10, 10, 4]) == kept
    memory.settle()
    assert memory.chunks([10, 10, 10, 10, 4]) == kept


def test_auto_keeps_one_then_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_memory, "free_bytes", lambda device: 25_000.0)
    memory = GraphMemory("auto", device=CPU)
    assert memory.measuring
    assert memory.chunks([10, 10, 10, 4]) == 1
    memory.settle()
    assert memory.measuring, "nothing has been learned yet"
    memory.learn(4_000, tokens=4)
    memory.settle()
    assert not memory.measuring
    # room for 25 tokens beside the last chunk, whose graph the first step has held already
    assert memory.chunks([10, 10, 10, 4]) == 3
    assert memory.chunks([10, 10, 5, 4]) == 4
    assert memory.chunks([26, 10]) == 1
    assert memory.chunks([10]) == 1


def test_free_memory_of_a_host_is_shared_by_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        available = 8_000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert graph_memory.free_bytes(CPU) == 1_000
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert graph_memory.free_bytes(CPU) == 4_000
