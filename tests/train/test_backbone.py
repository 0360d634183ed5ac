"""A base is made from a seed or named, and what is no model is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.files import write_json
from data_prep.progress import Progress
from train.backbone import BaseConfig, make_base
from train.truncate import TruncateConfig, truncate


def test_a_named_base_goes_through_the_same_code(world_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "named").mkdir()
    (tmp_path / "cut").mkdir()
    make_base(
        BaseConfig(model=str(world_folder / "base")),
        vocabulary=None,
        out=tmp_path / "named",
        seed=0,
        progress=Progress(),
    )
    counts = truncate(
        TruncateConfig(layers=1), base=tmp_path / "named", tokenizer=world_folder / "tokenizer", out=tmp_path / "cut",
        precision="fp32", progress=Progress(),
    )  # fmt: skip
    assert (counts["base_layers"], counts["layers"]) == (3, 1)
    assert (tmp_path / "cut" / "model" / "tokenizer.json").exists()


@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_a_base_that_is_no_model_is_refused(kind: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    if kind == "empty":
        model.mkdir()
    write_json(tmp_path / "base.json", {"model": str(model), "revision": None})
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match=r"base\.model = .*config\.json"):
        truncate(
            TruncateConfig(layers=1), base=tmp_path, tokenizer=tmp_path, out=tmp_path / "out", precision="fp32",
            progress=Progress(),
        )  # fmt: skip
