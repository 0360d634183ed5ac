"""Files written by hand are, byte for byte, what safetensors writes; what does not fit is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from data_prep.errors import UserError
from train.export import weights
from train.export.weights import FolderSource, split, write_weights

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    shapes: dict[str, tuple[int, ...]] = {
        "layers.10.weight": (5, 7), "layers.9.weight": (7, 5), "scalar": (), "none": (0, 4), "bias": (11,), "é": (3, 2, 4),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("at_once", [3, 1 << 22])
def test_bytes_are_those_of_the_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: Any, at_once: int
) -> None:
    monkeypatch.setattr(weights, "_AT_ONCE", at_once)  # a tensor in several pieces, cut inside its rows
    given = tensors()
    source = tmp_path / "source"
    source.mkdir()
    save_file(given, source / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    counts = write_weights(FolderSource(source), out, dtype=dtype, shard_gb=1.0)
    save_file({n: t.to(KINDS[dtype]) for n, t in given.items()}, tmp_path / "theirs", metadata={"format": "pt"})
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert counts["largest_file_bytes"] == (tmp_path / "theirs").stat().st_size
    assert sorted(p.name for p in out.iterdir()) == ["model.safetensors"]


def test_whole_numbers_keep_their_type(tmp_path: Path) -> None:
    given = {"ids": torch.arange(5), "flag": torch.tensor([True, False, True]), "w": torch.randn(3)}
    save_file(given, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    write_weights(FolderSource(tmp_path), out, dtype="bf16", shard_gb=1.0)
    found = load_file(out / "model.safetensors")
    assert torch.equal(found["ids"], given["ids"]) and torch.equal(found["flag"], given["flag"])
    assert torch.equal(found["w"], given["w"].bfloat16())


def test_rounding_is_to_nearest_even(tmp_path: Path) -> None:
    """Half-way values by hand: 8 bits of bf16 keep 1 + k/128, 11 bits of fp16 keep 1 + k/1024."""
    for dtype, step in (("bf16", 128), ("fp16", 1024)):
        values = torch.tensor([1 + 0.5 / step, 1 + 1.5 / step, 1 + 0.51 / step, -(1 + 2.5 / step)])
        save_file({"w": values}, tmp_path / "model.safetensors")
        out = tmp_path / dtype
        out.mkdir()
        write_weights(FolderSource(tmp_path), out, dtype=dtype, shard_gb=1.0)  # type: ignore[arg-type]
        found = load_file(out / "model.safetensors")["w"].double()
        assert found.tolist() == [1, 1 + 2 / step, 1 + 1 / step, -(1 + 2 / step)]


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (70000.0, "fp16", r"tensor layers\.3\.weight: 7e\+04: is beyond what fp16 can hold \(6\.55e\+04\).*bf16"),
        (3.4e38, "bf16", r"tensor layers\.3\.weight: 3\.4e\+38: is beyond what bf16.*fp32"),
        (float("nan"), "fp32", r"tensor layers\.3\.weight: holds values that are not finite"),
        (float("-inf"), "bf16", r"tensor layers\.3\.weight: holds values that are not finite"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, value: float, dtype: Any, said: str) -> None:
    broken = torch.zeros(4, 3)
    broken[2, 1] = value
    save_file({"a": torch.zeros(2), "layers.3.weight": broken}, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=said):
        write_weights(FolderSource(tmp_path), out, dtype=dtype, shard_gb=1.0)


def test_shards_hold_everything_once(tmp_path: Path) -> None:
    given = {f"w{i}": torch.full((i + 1, 10), float(i)) for i in range(8)}
    save_file(given, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    counts = write_weights(FolderSource(tmp_path), out, dtype="fp32", shard_gb=500e-9)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_parameters": 360, "total_size": 1440}
    found: dict[str, torch.Tensor] = {}
    for file in sorted(set(index["weight_map"].values())):
        part = load_file(out / file)
        assert sum(t.numel() * 4 for t in part.values()) <= 500
        assert {n for n, f in index["weight_map"].items() if f == file} == set(part)
        found |= part
    assert counts["files"] == len(set(index["weight_map"].values()))
    assert found.keys() == given.keys() and all(torch.equal(found[n], given[n]) for n in given)


def test_a_tensor_above_the_limit_is_alone() -> None:
    entries = {name: weights.Entry("F32", (size,)) for name, size in (("a", 1), ("big", 100), ("b", 1), ("c", 1))}
    assert split(entries, 40) == [["a"], ["big"], ["b", "c"]]
