"""What any ranks wrote, any others read: by name and range, bit for bit."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from saved import KINDS, SHAPES, assert_whole, look, save, saved, savers, state

from data_prep.errors import UserError
from train.history.checkpoint import Checkpoint
from train.history.manifest import Damaged, build_index, state_name
from train.history.pieces import Piece
from train.history.saver import Saver

ODD_NAMES = ["__metadata__", "a:b:3", "own:rng", "mâya.吉", 'quo"te\\ \n', "x" * 5000]


def _random_pieces(
    full: dict[tuple[str, str], torch.Tensor], shapes: dict[str, tuple[int, ...]], ranks: int, dice: random.Random
) -> list[list[Piece]]:
    """Every parameter cut anywhere, some pieces empty, each given to any rank."""
    dealt: list[list[Piece]] = [[] for _ in range(ranks)]
    for name, shape in shapes.items():
        size = full[name, "weight"].numel()
        cuts = [0, *sorted(dice.randint(0, size) for _ in range(dice.randint(0, 4))), size]
        for low, high in pairwise(cuts):
            dice.choice(dealt).append(Piece(name, shape, low, {kind: full[name, kind][low:high] for kind in KINDS}))
    for pieces in dealt:
        dice.shuffle(pieces)
    return dealt


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.dictionaries(
        st.sampled_from(["a", "b.c", *ODD_NAMES]), st.lists(st.integers(0, 9), max_size=3), min_size=1, max_size=4
    ),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_any_split_reads_back_in_any_other(shapes: dict[str, list[int]], ranks: int, seed: int) -> None:
    dice, shaped = random.Random(seed), {name: tuple(shape) for name, shape in shapes.items()}
    full = state(seed, shapes=shaped)
    with TemporaryDirectory() as folder:
        made = savers(Path(folder), ranks, background=False)
        for rank, pieces in reversed(list(enumerate(_random_pieces(full, shaped, ranks, dice)))):
            made[rank].save(7, pieces, {}, {})
            assert made[rank].failure() is None
        checkpoint = look(Path(folder)).checkpoint
        assert checkpoint is not None and checkpoint.parameters == shaped
        checkpoint.check_model(shaped)
        for (name, kind), tensor in full.items():
            for _ in range(3):
                low, high = sorted(dice.randint(0, tensor.numel()) for _ in range(2))
                assert torch.equal(checkpoint.read(name, kind, low, high), tensor[low:high])


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_state_facts_and_own_tensors_return(tmp_path: Path, ranks: int, background: bool) -> None:
    assert save(savers(tmp_path, ranks, background=background), 120, version=3) == [None] * ranks
    found = look(tmp_path, expected=120)
    assert found.notes == [] and found.checkpoint is not None
    assert found.checkpoint.facts == {"version": 3, "step": 120} and found.checkpoint.ranks == ranks
    assert_whole(found.checkpoint)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_bit_pattern_survives(tmp_path: Path, dtype: torch.dtype) -> None:
    width = torch.int32 if dtype == torch.float32 else torch.int16
    bits = torch.tensor([0, 1, -1, 0x7FC1, 0x7F81, -32768, 0x7F80], dtype=torch.int16).to(width)
    values = bits.view(dtype)  # NaNs with payloads, infinities, subnormals, -0.0
    saver = Saver(tmp_path, rank=0, ranks=1)
    saver.save(1, [Piece("w", (7,), 0, {"weight": values})], {}, {})
    saver.wait()
    read = Checkpoint(tmp_path / "step-00000001").read("w", "weight", 1, 6)
    assert read.dtype == dtype and torch.equal(read.view(width), bits[1:6])


def test_own_tensors_keep_shape_and_kind(tmp_path: Path) -> None:
    own = {
        "rng/torch": torch.get_rng_state(),
        "counts": torch.arange(6, dtype=torch.int64).reshape(2, 3),
        "float": torch.tensor(1.5, dtype=torch.float64),
        "flag": torch.tensor([True, False]),
        "none": torch.empty(0),
    }
    saver = Saver(tmp_path, rank=0, ranks=1)
    saver.save(1, [Piece("w", (3,), 0, {"weight": torch.ones(3, dtype=torch.bfloat16)})], {}, own)
    saver.wait()
    read = Checkpoint(tmp_path / "step-00000001").own(0)
    assert read.keys() == own.keys()
    for name, tensor in own.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)


def test_the_files_are_ordinary_safetensors(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    file = load_file(tmp_path / "step-00000001" / state_name(0, 2))
    assert torch.equal(
        file["weight:0:embed.weight"], state(1)["embed.weight", "weight"][: len(file["weight:0:embed.weight"])]
    )
    assert all(tensor.ndim == 1 for tensor in file.values())


def test_reading_a_range_leaves_the_rest_on_the_disk(tmp_path: Path) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    size = 16 << 20
    saver = Saver(tmp_path, rank=0, ranks=1, background=False)
    saver.save(1, [Piece("w", (size,), 0, {"weight": torch.arange(size, dtype=torch.float32)})], {}, {})
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    before = resident()
    assert checkpoint.read("w", "weight", size // 2, size // 2 + 3).tolist() == [size // 2 + i for i in range(3)]
    assert resident() - before < size  # a quarter of its bytes
    checkpoint.close()


def test_reading_what_was_not_saved_is_an_error(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    for name, kind in (("norm", "momentum"), ("other", "weight")):
        with pytest.raises(KeyError):
            checkpoint.read(name, kind, 0, 1)
    for low, high in ((0, 9), (-1, 3), (5, 4)):
        with pytest.raises(ValueError, match="8 elements"):
            checkpoint.read("norm", "weight", low, high)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"norm": (9,)}, r"norm is \[8\] in the checkpoint and \[9\] in the model"),
        ({"norm": None}, r"norm is \[8\] in the checkpoint and nothing in the model"),
        (
            {"more": (2, 2), "scale": (1,)},
            r"more is nothing in the checkpoint and \[2, 2\] in the model \(and 1 more\)",
        ),
    ],
)
def test_another_model_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    saved(tmp_path, 1)
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    checkpoint.check_model(SHAPES)
    with pytest.raises(UserError, match=said):
        checkpoint.check_model({name: shape for name, shape in (SHAPES | change).items() if shape is not None})


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([(0, 4), (5, 8)], "no file holds weight of w from element 4 to 5"),
        ([(1, 8)], "no file holds weight of w from element 0 to 1"),
        ([(0, 7)], "no file holds weight of w from element 7 to 8"),
        ([(0, 5), (4, 8)], "two files hold weight of w from element 4 to 5"),
        ([(0, 8), (0, 8)], "two files hold weight of w"),
        ([(0, 9)], "two files hold weight of w from element 8 to 9"),
        ([], "no file holds w"),
    ],
)
def test_an_index_with_gaps_or_overlaps_is_damage(runs: list[tuple[int, int]], said: str) -> None:
    files = [{"file": f"f{i}", "pieces": [["w", low, high, ["weight"]]]} for i, (low, high) in enumerate(runs)]
    with pytest.raises(Damaged, match=said):
        build_index({"w": [2, 4]}, files)


def test_a_run_of_an_unknown_parameter_is_damage() -> None:
    with pytest.raises(Damaged, match="f holds v, which is no parameter"):
        build_index({}, [{"file": "f", "pieces": [["v", 0, 1, ["weight"]]]}])
