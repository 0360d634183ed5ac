"""The newest checkpoint that holds is found; damage is named, set aside, and never used."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from saved import assert_whole, look, names, on_all, save, saved, savers

from data_prep.errors import UserError
from train.history.checkpoint import find
from train.history.manifest import sealed

STATE = "state-0001-of-0002.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good checkpoints, 1 and 2, of two ranks."""
    place = tmp_path / "checkpoints"
    saved(place, 1, 2)
    return place


def _flip(path: Path, at: int, bit: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= bit
    path.write_bytes(data)


def test_nothing_is_found_where_nothing_was_saved(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "none"):
        found = look(place, expected=0)
        assert found.checkpoint is None and found.notes == []


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_the_newest_is_found_by_any_number_of_ranks(folder: Path, ranks: int) -> None:
    found = look(folder, ranks=ranks, expected=2)
    assert found.checkpoint and found.checkpoint.step == 2 and found.notes == []
    assert_whole(found.checkpoint)


def test_the_ranks_share_the_hashing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from train.history import checkpoint

    hashed: list[str] = []
    real = checkpoint.sha256_file
    monkeypatch.setattr(checkpoint, "sha256_file", lambda path: (hashed.append(path.name), real(path))[1])
    look(folder, ranks=2)
    assert sorted(hashed) == ["state-0000-of-0002.safetensors", STATE]


@pytest.mark.parametrize("name", ["manifest.json", STATE, "state-0000-of-0002.safetensors"])
def test_a_flipped_bit_anywhere_is_found(folder: Path, name: str) -> None:
    dice = random.Random(name)
    path = folder / "step-00000002" / name
    good = path.read_bytes()
    offsets = {0, len(good) - 1, *(dice.randrange(len(good)) for _ in range(60))}
    for at in offsets:
        _flip(path, at, 1 << dice.randrange(8))
        found = look(folder)
        assert found.checkpoint is not None
        if found.checkpoint.step == 2:  # as the newline at the manifest's end, which means nothing
            assert name == "manifest.json" and found.notes == []
            assert_whole(found.checkpoint)
            path.write_bytes(good)
            continue
        assert_whole(found.checkpoint)
        (note,) = found.notes
        assert name in note and "goes on from step 1" in note and ".damaged-step-00000002" in note
        assert (folder / "latest").read_text() == "step-00000001\n"
        (folder / ".damaged-step-00000002").rename(folder / "step-00000002")
        path.write_bytes(good)


@pytest.mark.parametrize("content", [b"", b"step-00000001\n", b"step-0000000\xb2\n", b"../other", None])
def test_latest_is_a_hint_that_is_mended(folder: Path, content: bytes | None) -> None:
    if content is None:
        (folder / "latest").unlink()
    else:
        (folder / "latest").write_bytes(content)
    found = look(folder, expected=2)
    assert found.checkpoint and found.checkpoint.step == 2 and found.notes == []
    assert (folder / "latest").read_text() == "step-00000002\n"


def _truncate(place: Path) -> None:
    os.truncate(place / STATE, 100)


def _lengthen(place: Path) -> None:
    with (place / STATE).open("ab") as stream:
        stream.write(b"\0")


def _empty_manifest(place: Path) -> None:
    (place / "manifest.json").write_text("")


def _list_manifest(place: Path) -> None:
    (place / "manifest.json").write_text("[1]")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_truncate, f"{STATE} has 100 bytes instead of "),
        (_lengthen, f"{STATE} has "),
        (lambda place: (place / STATE).unlink(), f"{STATE} is missing"),
        (lambda place: (place / "manifest.json").unlink(), "manifest.json is missing"),
        (_empty_manifest, "manifest.json is not valid JSON"),
        (_list_manifest, "manifest.json: its checksum differs"),
        (lambda place: shutil.copy(place / "state-0000-of-0002.safetensors", place / STATE), STATE),
        (lambda place: shutil.copy(place.with_name("step-00000001") / STATE, place / STATE), f"{STATE}: its checksum"),
    ],
)
def test_the_one_before_takes_over(folder: Path, harm: Any, said: str) -> None:
    harm(folder / "step-00000002")
    found = look(folder, ranks=2, expected=2)
    assert found.checkpoint and found.checkpoint.step == 1
    assert_whole(found.checkpoint)
    assert len(found.notes) == 1 and said in found.notes[0] and "the run goes on from step 1" in found.notes[0]
    assert names(folder) == {"latest", "step-00000001", ".damaged-step-00000002"}
    assert look(folder).notes == []


def test_one_damaged_one_is_kept_and_the_step_can_be_saved_again(folder: Path) -> None:
    saved(folder, 3, 4)
    for step in (3, 4):
        _truncate(folder / f"step-0000000{step}")
    assert len(look(folder).notes) == 2
    assert {name for name in names(folder) if "damaged" in name} == {".damaged-step-00000004"}
    made = savers(folder, 2, keep=2)
    assert save(made, 3) == [None, None]
    _truncate(folder / "step-00000003")
    look(folder)
    assert names(folder) == {"latest", "step-00000002", ".damaged-step-00000003"}


def test_where_all_are_damaged_nothing_is_touched(folder: Path) -> None:
    before = names(folder)
    for step in (1, 2):
        _truncate(folder / f"step-0000000{step}")
    with pytest.raises(UserError, match=r"step-00000002: state-0001.*step-00000001: state-0001.*--fresh"):
        look(folder, ranks=2)
    assert names(folder) == before


def test_a_checkpoint_that_is_gone_is_not_a_fresh_start(folder: Path) -> None:
    for step in (1, 2):
        shutil.rmtree(folder / f"step-0000000{step}")
    with pytest.raises(UserError, match="one was saved at step 2"):
        look(folder, expected=2)


def test_an_older_one_than_was_saved_is_said(folder: Path) -> None:
    shutil.rmtree(folder / "step-00000002")
    found = look(folder, expected=2)
    assert found.checkpoint and found.checkpoint.step == 1
    assert found.notes == ["step 2 was saved, but its checkpoint is gone; the run goes on from step 1"]


def test_a_newer_format_is_refused_and_never_passed_over(folder: Path) -> None:
    path = folder / "step-00000002" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_bytes(sealed(manifest | {"format": 2}))
    with pytest.raises(UserError, match="format 2, which this version does not know"):
        look(folder, ranks=2)
    assert names(folder) == {"latest", "step-00000001", "step-00000002"}


def test_nodes_that_do_not_share_the_folder_are_told(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.history.checkpoint._PAUSE_S", 0.001)
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "step-00000002" / STATE).unlink()
    places = [folder, tmp_path / "other"]
    with pytest.raises(UserError, match="rank 1 does not see the same files there as rank 0"):
        on_all(2, lambda rank, ex: find(places[rank], rank=rank, ranks=2, exchange=ex, expected=2))
    assert names(folder) == {"latest", "step-00000001", "step-00000002"}


def test_files_that_show_late_are_waited_for(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.history.checkpoint._PAUSE_S", 0.001)
    late = folder / "step-00000002"
    hidden = tmp_path / "hidden"
    late.rename(hidden)
    places = [tmp_path / "all", folder]
    shutil.copytree(folder, places[0])
    shutil.copytree(hidden, places[0] / "step-00000002")
    exchanges = 0

    def work(rank: int, exchange: Any) -> Any:
        def counted(value: Any) -> list[Any]:
            nonlocal exchanges
            told: list[Any] = exchange(value)
            if rank == 1:
                exchanges += 1
                if exchanges == 4:
                    hidden.rename(late)
            return told

        return find(places[rank], rank=rank, ranks=2, exchange=counted, expected=2)

    found = on_all(2, work)
    assert [f.checkpoint.step for f in found] == [2, 2] and found[0].notes == []


def test_a_file_that_may_not_be_read_is_no_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != STATE and real(path, mode))
    with pytest.raises(UserError, match="may not be read by this user"):
        look(folder, ranks=2)
    assert names(folder) == {"latest", "step-00000001", "step-00000002"}


def test_an_old_one_whose_successor_did_not_arrive_returns(folder: Path) -> None:
    (folder / "step-00000002").rename(folder / ".replaced-step-00000002")
    found = look(folder, expected=2)
    assert found.checkpoint and found.checkpoint.step == 2 and found.notes == []
