"""A run that would fill the disk is refused before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from saved import names

from data_prep.errors import UserError
from train.history.forecast import bytes_of_checkpoint, bytes_of_model, check_space
from train.history.pieces import Piece
from train.history.saver import Saver

MILLION = 1_000_000


def _free(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))


def test_the_forecast_is_what_a_save_takes(tmp_path: Path) -> None:
    sizes: list[int] = []
    saver = Saver(tmp_path, rank=0, ranks=1, committed=lambda _, size: sizes.append(size))
    tensors = {kind: torch.zeros(MILLION) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    saver.save(1, [Piece("w", (MILLION,), 0, tensors)], {}, {"rng": torch.get_rng_state()})
    saver.wait()
    whole = sum(path.stat().st_size for path in (tmp_path / "step-00000001").iterdir())
    assert sizes[0] <= whole <= bytes_of_checkpoint(MILLION) <= whole + (5 << 20)


def test_too_little_space_names_needed_and_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 3 * bytes_of_checkpoint(MILLION) + (64 << 20)
    _free(monkeypatch, needed)
    check_space(tmp_path / "new", parameters=MILLION, keep=2)
    _free(monkeypatch, needed - 1)
    with pytest.raises(
        UserError, match=r"0\.11 GiB free.*0\.11 GiB more are needed \(2 checkpoints and one being written"
    ):
        check_space(tmp_path / "new", parameters=MILLION, keep=2)
    check_space(tmp_path / "new", parameters=MILLION, keep=1)
    with pytest.raises(UserError):
        check_space(tmp_path / "new", parameters=MILLION, keep=1, model_folder=tmp_path / "a" / "b")
    _free(monkeypatch, 2 * bytes_of_checkpoint(MILLION) + (64 << 20) + bytes_of_model(MILLION))
    check_space(tmp_path / "new", parameters=MILLION, keep=1, model_folder=tmp_path / "a" / "b")


def test_what_is_there_need_not_fit_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        (tmp_path / f"step-0000000{step}").mkdir()
        with (tmp_path / f"step-0000000{step}" / "state-0000-of-0001.safetensors").open("wb") as stream:
            stream.truncate(12 * MILLION)
    _free(monkeypatch, 3 * bytes_of_checkpoint(MILLION) + (64 << 20) - 24 * MILLION)
    check_space(tmp_path, parameters=MILLION, keep=2)
    assert names(tmp_path) == {"step-00000001", "step-00000002"}


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="no second file system")
def test_another_file_system_is_checked_for_the_model_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if tmp_path.stat().st_dev == os.stat("/dev/shm").st_dev:
        pytest.skip("temporary files are in memory")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1 if "shm" in str(path) else 1 << 40))
    with pytest.raises(UserError, match=r"/dev/shm: 0\.00 GiB free.*the model"):
        check_space(tmp_path, parameters=MILLION, keep=1, model_folder=Path("/dev/shm/none/here"))


def test_read_only_storage_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match="not allowed"):
        check_space(tmp_path, parameters=1, keep=1)
    assert names(tmp_path) == set()
