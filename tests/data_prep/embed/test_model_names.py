"""A teacher that cannot be loaded: the message names the table of the recipe that names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.embed.teacher import TeacherConfig, model_path
from data_prep.errors import UserError, within
from data_prep.mine.config import MineConfig
from data_prep.mine.prepare import Embedding
from data_prep.progress import Progress


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here", "~/nothing-here", "../nothing"])
def test_a_path_that_is_no_folder_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(UserError, match=r"model '.*nothing.*': no such folder. Fix: give a model folder or a Hugging"):
        model_path(name)


def test_a_path_that_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert model_path("~/model") == str(tmp_path / "model") and model_path("org/name") == "org/name"


@pytest.mark.parametrize("table", ["mine", "synth"])
def test_the_table_is_named(table: str, tmp_path: Path) -> None:
    config = MineConfig(teacher=TeacherConfig(kind="sentence-transformers", model=str(tmp_path / "none")))
    embedding = Embedding(
        config, out=tmp_path, place=tmp_path, cache=None, fanout=None, seed=0, progress=Progress(), table=table
    )
    with pytest.raises(UserError, match=rf"^{table}\.teacher: model .*none'"):
        embedding.fit(lambda most: [])


@pytest.mark.parametrize("table", ["mine", "synth"])
def test_a_setting_is_told_with_its_whole_key(table: str, tmp_path: Path) -> None:
    texts = ["harga ikan naik lagi", "harga ikan di pasar", "ikan segar di pasar pagi", "pasar pagi dan ikan naik"]
    embedding = Embedding(
        MineConfig(teacher=TeacherConfig(dimension=64)), out=tmp_path, place=tmp_path, cache=None, fanout=None, seed=0,
        progress=Progress(), table=table,
    )  # fmt: skip
    with pytest.raises(UserError, match=rf"^{table}\.teacher\.dimension = 64: must be at most"):
        embedding.fit(lambda most: texts)


def test_other_errors_pass_as_they_are() -> None:
    with pytest.raises(KeyError), within("mine"):
        raise KeyError("x")
