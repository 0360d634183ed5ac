"""The estimate of what training writes, against published sizes of models and a disk that is too small."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.recipe import Recipe, load_recipe
from launch.slurm.submitting import room

TINY = Path(__file__).parents[1] / "tiny.toml"


def of_base(model: str, layers: int) -> Recipe:
    recipe = load_recipe("malaysian-600m", [f"base.model={model}"])[0]
    return recipe.model_copy(update={"truncate": recipe.truncate.model_copy(update={"layers": layers})})


@pytest.mark.parametrize(
    ("model", "layers", "published"),
    [
        ("meta-llama/Llama-2-7b-hf", 32, 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 40, 13_015_864_320),
        ("mistralai/Mistral-7B-v0.1", 32, 7_241_732_096),
    ],
)
def test_sizes_of_known_models(model: str, layers: int, published: int) -> None:
    assert room.parameters_of(of_base(model, layers)) == pytest.approx(published, rel=2e-3)


def test_the_size_of_a_base_made_here_and_of_an_unknown_one() -> None:
    # counted by the stage that cuts it: 56,992, of which norms are 160
    assert room.parameters_of(load_recipe(str(TINY))[0]) == 56_992 - 160
    assert room.parameters_of(of_base("somebody/elses-model", 2)) is None


def test_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    recipe = of_base("meta-llama/Llama-2-7b-hf", 32)
    # four bytes for each weight and twice as many for its moments, kept and one being written; models beside them
    least = (recipe.checkpoint.keep + 1) * 12 * 6_738_415_616
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=least))
    with pytest.raises(UserError, match=r"GiB free.*--runs DIR"):
        room.check_room(recipe, tmp_path / "not" / "yet" / "there")
    saved = tmp_path / "history" / "pretrain" / "checkpoints" / "step-1"
    saved.mkdir(parents=True)
    with (saved / "part").open("wb") as stream:
        stream.truncate(least)  # sparse
    room.check_room(recipe, tmp_path)  # what is there already is part of what is needed
    room.check_room(of_base("somebody/elses-model", 2), tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        room.check_room(load_recipe(str(TINY))[0], tmp_path / "runs" / "demo")
