"""Checkpoints as systems: each gives the vectors that the model had at that step, whoever saved it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from data_prep.errors import UserError
from eval.systems.checkpoints import checkpoint_name, checkpoint_ranker, checkpoint_steps, exporter
from eval.systems.dense import DenseRanker
from tests.train.history.saved import KINDS, savers, split
from tests.train.tiny import make_world
from train.encoder import EncoderConfig, TextEncoder, load_backbone, make_encoder

ENCODER = EncoderConfig(max_tokens=32, projection=12, bidirectional=True, query_prompt="soalan: ")
TEXTS = ["banjir di sekolah", "harga ikan naik", "nasi sedap", "sewa rumah"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def history(world: Path) -> tuple[Path, dict[int, Any]]:
    """Checkpoints of steps 5 (one rank) and 10 (three ranks), and the weights they were made of."""
    folder, states = world / "history", {}
    module: Any = make_encoder(load_backbone(world / "model", bidirectional=True, precision="fp32"), ENCODER)
    for step, ranks in ((5, 1), (10, 3)):
        torch.manual_seed(step)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        states[step] = {name: p.detach().clone() for name, p in module.named_parameters()}
        shapes = {name: tuple(p.shape) for name, p in states[step].items()}
        full = {(name, kind): p.flatten() for name, p in states[step].items() for kind in KINDS}
        made = savers(folder / "checkpoints", ranks, keep=9)
        for rank in reversed(range(ranks)):
            made[rank].save(step, split(full, ranks, shapes)[rank], {"updates": step}, {})
        for saver in made:
            saver.wait()
            assert saver.failure() is None
    return folder, states


def test_the_steps_rise(history: tuple[Path, Any]) -> None:
    assert checkpoint_steps(history[0]) == [5, 10]


@pytest.mark.parametrize("step", [5, 10])
def test_a_checkpoint_gives_the_vectors_of_its_step(
    world: Path, history: tuple[Path, dict[int, Any]], tmp_path: Path, step: int
) -> None:
    folder, states = history
    ranker = checkpoint_ranker(folder, step, exporter(world / "model", ENCODER), scratch=tmp_path / "scratch")
    assert isinstance(ranker, DenseRanker) and ranker.name == checkpoint_name(step) == f"finetuned@{step}"
    assert list((tmp_path / "scratch").iterdir()) == []  # the folder goes when it is loaded
    found = ranker.embedder.embed(TEXTS, role="query")

    # the same weights put into the model by hand
    class Wanted(TextEncoder):
        def __init__(self) -> None:
            place = tmp_path / "wanted"
            shutil.copytree(world / "model", place)
            save_file({"weight": states[step]["projection.weight"]}, place / "projection.safetensors")
            super().__init__(place, config=ENCODER)
            with torch.no_grad():
                for name, parameter in self._module.named_parameters():
                    parameter.copy_(states[step][name])

    np.testing.assert_allclose(found, Wanted().embed(TEXTS, role="query"), atol=1e-6)
    assert found.shape == (4, 12)


def test_no_checkpoint_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"eval\.checkpoints.*holds no checkpoint.*checkpoint\.every_steps"):
        checkpoint_steps(tmp_path)


def test_one_that_is_gone_or_damaged_is_told(world: Path, history: tuple[Path, Any], tmp_path: Path) -> None:
    write = exporter(world / "model", ENCODER)
    with pytest.raises(UserError, match="is gone"):
        checkpoint_ranker(history[0], 7, write)
    copy = tmp_path / "history"
    shutil.copytree(history[0], copy)
    (state,) = (copy / "checkpoints" / "step-00000005").glob("state-*.safetensors")
    held = bytearray(state.read_bytes())
    held[-3] ^= 1
    state.write_bytes(held)
    with pytest.raises(UserError, match="checksum"):
        checkpoint_ranker(copy, 5, write)


def test_one_of_another_model_is_told(world: Path, history: tuple[Path, Any]) -> None:
    with pytest.raises(UserError, match="was saved from another model"):
        checkpoint_ranker(history[0], 5, exporter(world / "model", EncoderConfig(max_tokens=32)))
