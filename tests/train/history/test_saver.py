"""A checkpoint is there whole or the ones before it are as they were, whatever fails while it is saved."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import SHAPES, assert_whole, look, names, save, saved, savers, split, state

from data_prep.errors import UserError
from train.history.checkpoint import Checkpoint, CheckpointConfig
from train.history.fence import Fence, Superseded, claim
from train.history.folder import steps_in, sweep
from train.history.part import write_verified
from train.history.pieces import Piece
from train.history.saver import Saver


def _one(saver: Saver, step: int, tensor: torch.Tensor) -> UserError | None:
    saver.save(step, [Piece("w", (len(tensor),), 0, {"weight": tensor})], {}, {})
    saver.wait()
    return saver.failure()


def test_the_defaults_keep_a_second_one_to_fall_back_on() -> None:
    config = CheckpointConfig()
    assert (config.keep, config.every_s, config.every_steps, config.background) == (2, 600.0, None, True)
    with pytest.raises(ValueError, match="keep"):
        CheckpointConfig(keep=0)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_latest_names_the_last(tmp_path: Path, keep: int) -> None:
    made = savers(tmp_path, 2, keep=keep)
    for step in (5, 10, 99999999, 100000000):
        assert save(made, step) == [None, None]
        assert (tmp_path / "latest").read_text() == f"step-{step:08d}\n"
    newest = ["step-100000000", "step-99999999", "step-00000010"]
    assert names(tmp_path) == {"latest", *newest[:keep]}


def test_the_old_one_is_there_until_the_new_one_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int, set[str], str]] = []

    def committed(step: int, size: int) -> None:
        told.append((step, size, names(tmp_path), (tmp_path / "latest").read_text()))

    made = savers(tmp_path, 2, keep=1, committed=committed)
    save(made, 1)
    save(made, 2)
    assert [t[0] for t in told] == [1, 2]
    assert told[1][2] == {"latest", "step-00000001", "step-00000002"} and told[1][3] == "step-00000002\n"
    assert told[1][1] == sum(path.stat().st_size for path in (tmp_path / "step-00000002").glob("state-*"))


def test_what_training_changes_after_save_is_not_saved(tmp_path: Path) -> None:
    tensor, facts = torch.zeros(1 << 20), {"n": [1]}
    saver = Saver(tmp_path, rank=0, ranks=1)
    saver.save(1, [Piece("w", (1 << 20,), 0, {"weight": tensor})], facts, {})
    tensor.fill_(1.0)
    facts["n"].append(2)
    saver.wait()
    checkpoint = Checkpoint(tmp_path / "step-00000001")
    assert checkpoint.facts == {"n": [1]} and not checkpoint.read("w", "weight", 0, 1 << 20).any()


def test_memory_is_reused_and_grows_where_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.history.part._CHUNK", 1 << 10)
    saver = Saver(tmp_path, rank=0, ranks=1, keep=9)
    places = []
    for step, size in ((1, 1000), (2, 1000), (3, 2000), (4, 300)):
        tensor = torch.randn(size)
        assert _one(saver, step, tensor) is None
        assert torch.equal(Checkpoint(tmp_path / f"step-{step:08d}").read("w", "weight", 0, size), tensor)
        places.append([chunk.data_ptr() for chunk in saver._memory._chunks])
    assert [len(p) for p in places] == [4, 4, 8, 8]
    assert places[0] == places[1] and places[1][:3] == places[2][:3] and places[2] == places[3]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_state_on_a_gpu_is_copied_before_save_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.history.part._CHUNK", 1 << 20)
    tensor = torch.rand(5 << 20, device="cuda")
    before = tensor.cpu()
    for background in (True, False):
        saver = Saver(tmp_path / str(background), rank=0, ranks=1, background=background)
        saver.save(1, [Piece("w", (5 << 20,), 0, {"weight": tensor})], {}, {"rng": torch.get_rng_state()})
        assert all(chunk.is_pinned() for chunk in saver._memory._chunks)
        tensor.zero_()
        saver.wait()
        read = Checkpoint(tmp_path / str(background) / "step-00000001").read("w", "weight", 0, 5 << 20)
        assert torch.equal(read, before)
        tensor.copy_(before)


def test_a_second_save_waits_for_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()

    def slow(*arguments: Any) -> tuple[int, str]:
        gate.wait(10)
        return write_verified(*arguments)

    monkeypatch.setattr("train.history.saver.write_verified", slow)
    saver = Saver(tmp_path, rank=0, ranks=1, keep=9)
    saver.save(1, [Piece("w", (2,), 0, {"weight": torch.zeros(2)})], {}, {})
    assert saver.busy
    threading.Timer(0.2, gate.set).start()
    held_up_s = saver.save(2, [Piece("w", (2,), 0, {"weight": torch.ones(2)})], {}, {})
    assert held_up_s > 0.1 and (tmp_path / "step-00000001").is_dir()
    saver.wait()
    assert not saver.busy and Checkpoint(tmp_path / "step-00000002").read("w", "weight", 0, 2).tolist() == [1, 1]


def test_the_same_step_again_replaces_it(tmp_path: Path) -> None:
    made = savers(tmp_path, 2)
    save(made, 1)
    save(made, 2, version=0)
    save(made, 2, version=1)
    assert names(tmp_path) == {"latest", "step-00000001", "step-00000002"}
    checkpoint = Checkpoint(tmp_path / "step-00000002")
    assert checkpoint.facts["version"] == 1
    assert_whole(checkpoint)


def test_steps_that_training_went_back_behind_leave(tmp_path: Path) -> None:
    made = savers(tmp_path, 2, keep=3)
    for step in (1, 2, 3, 2):
        save(made, step)
    assert names(tmp_path) == {"latest", "step-00000001", "step-00000002"}


def test_two_phases_do_not_mix(tmp_path: Path) -> None:
    first, second = savers(tmp_path / "pretrain", 2), savers(tmp_path / "finetune", 2)
    save(first, 5)
    save(second, 3, version=1)
    savers(tmp_path / "finetune", 2)
    a, b = look(tmp_path / "pretrain").checkpoint, look(tmp_path / "finetune").checkpoint
    assert a and b and (a.step, a.facts["version"], b.step, b.facts["version"]) == (5, 0, 3, 1)


def test_what_crashed_saves_left_is_swept(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for left in (".step-00000003.1.building", ".step-00000001.removing", ".replaced-step-00000002"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "state-0000-of-0002.safetensors").write_bytes(b"half")
    (tmp_path / ".latest.123.tmp").write_text("ste")
    (tmp_path / ".damaged-step-00000001").mkdir()
    savers(tmp_path, 2)
    assert names(tmp_path) == {"latest", "step-00000001", "step-00000002", ".damaged-step-00000001"}


def test_a_rank_that_never_delivers_fails_the_save_alone(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    first, _ = savers(tmp_path, 2, part_timeout_s=0.2)
    first.save(2, split(state(2), 2)[0], {}, {})
    first.wait()
    assert first.failed
    assert "rank 1 delivered no part within 0.2 s" in str(first.failure())
    assert not first.failed and first.failure() is None
    assert names(tmp_path) == {"latest", "step-00000001"}


def test_a_rank_that_cannot_write_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)
    made = savers(tmp_path, 3)

    def full(path: Path, *rest: Any) -> tuple[int, str]:
        if "state-0002" in path.name:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        return write_verified(path, *rest)

    with monkeypatch.context() as patch:
        patch.setattr("train.history.saver.write_verified", full)
        failures = save(made, 2)
    assert failures[1] is None or "rank 0 gave it up" in str(failures[1])
    assert "the disk (or your quota) is full" in str(failures[2])
    assert "rank 2 on" in str(failures[0]) and "the disk (or your quota) is full" in str(failures[0])
    assert steps_in(tmp_path) == [1]
    assert save(made, 2) == [None, None, None]  # the same step, once there is space
    assert_whole(Checkpoint(tmp_path / "step-00000002"))


def test_a_late_rank_cannot_mix_two_attempts(tmp_path: Path) -> None:
    first, second = savers(tmp_path, 2, part_timeout_s=0.05)
    old, new = split(state(2), 2), split(state(2, version=1), 2)
    first.save(2, old[0], {"step": 2, "version": 0}, {})
    first.wait()
    assert first.failure()
    second.save(2, old[1], {}, {})  # arrives when rank 0 has given up
    second.wait()
    first.save(2, new[0], {"step": 2, "version": 1}, {})
    first.wait()
    assert "rank 1 delivered no part" in str(first.failure())
    assert {name for name in names(tmp_path) if "building" not in name} == set()


def test_close_ends_without_waiting_for_others(tmp_path: Path) -> None:
    first, _ = savers(tmp_path, 2)
    first.save(2, split(state(2), 2)[0], {}, {})
    started = time.monotonic()
    first.close()
    assert time.monotonic() - started < 5 and names(tmp_path) == set()


def _waiting_for_rank_1(folder: Path, fence: Fence | None) -> Saver:
    """Rank 0 has delivered its part, and waits for one that never comes, for half an hour."""
    saver = Saver(folder, rank=0, ranks=2, fence=fence, part_timeout_s=1800)
    saver.save(2, split(state(2), 2)[0], {}, {})
    until = time.monotonic() + 30
    while not list(folder.glob(".step-*/part-0000.json")) and time.monotonic() < until:
        time.sleep(0.005)
    return saver


def _why_within(saver: Saver, seconds: float) -> UserError | Superseded | None:
    until = time.monotonic() + seconds
    while saver.busy and time.monotonic() < until:
        time.sleep(0.01)
    assert not saver.busy, "it still waits"
    return saver.failure()


def test_a_takeover_ends_the_wait_for_other_ranks(tmp_path: Path) -> None:
    """A newer start sweeps the save away after this rank's part of it: nothing would come any more."""
    saver = _waiting_for_rank_1(tmp_path / "checkpoints", claim(tmp_path, job=None))
    newer = claim(tmp_path, job=None)
    assert isinstance(_why_within(saver, 20), Superseded)
    sweep(tmp_path / "checkpoints", fence=newer)
    assert names(tmp_path / "checkpoints") == set()


def test_a_folder_that_somebody_removed_ends_the_wait_for_other_ranks(tmp_path: Path) -> None:
    saver = _waiting_for_rank_1(tmp_path, None)
    sweep(tmp_path)
    assert "No such file" in str(_why_within(saver, 20))


def test_bytes_that_the_disk_changed_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)
    made = savers(tmp_path, 2)
    real = os.write

    def flips(descriptor: int, block: Any) -> int:
        data = bytearray(block)
        data[len(data) // 2] ^= 4
        return real(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", flips)
        failures = save(made, 2)
    assert "gives back other bytes" in str(failures[0]) and failures[1]
    assert steps_in(tmp_path) == [1]
    assert save(made, 2) == [None, None] and names(tmp_path) == {"latest", "step-00000001", "step-00000002"}


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, block: real(descriptor, block[:7]))
    saved(tmp_path, 1)
    assert_whole(Checkpoint(tmp_path / "step-00000001"))


def test_pieces_that_are_no_whole_are_a_defect(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    first, second = savers(tmp_path, 2)
    parts = split(state(2), 2)
    second.save(2, parts[1][1:], {}, {})
    first.save(2, parts[0], {}, {})
    with pytest.raises(ValueError, match="pieces at step 2 are no whole: no file holds"):
        first.wait()
    assert names(tmp_path) == {"latest", "step-00000001"}


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut keeps what was fsynced: the order is the proof, since a test cannot cut the power."""
    log: list[tuple[str, str]] = []
    real_fsync, real_rename, real_replace = os.fsync, os.rename, os.replace

    def fsync(descriptor: int) -> None:
        log.append(("fsync", os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source: Any, target: Any, **rest: Any) -> None:
        log.append(("rename", str(target)))
        real_rename(source, target, **rest)

    def replace(source: Any, target: Any, **rest: Any) -> None:
        log.append(("rename", str(target)))
        real_replace(source, target, **rest)

    made = savers(tmp_path, 2, background=False, keep=1)
    save(made, 1)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "replace", replace)
    save(made, 2)
    place, building = str(tmp_path / "step-00000002"), str(tmp_path / ".step-00000002.2.building")
    named = log.index(("rename", place))
    manifest = log.index(("rename", f"{building}/manifest.json"))
    for rank in range(2):
        assert log.index(("fsync", f"{building}/state-000{rank}-of-0002.safetensors")) < manifest
    assert any(kind == "fsync" and "manifest.json" in path for kind, path in log[:manifest])
    assert manifest < log.index(("fsync", building)) < named < log.index(("fsync", str(tmp_path)), named)
    pointed = log.index(("rename", str(tmp_path / "latest")))
    left = log.index(("rename", str(tmp_path / ".step-00000001.removing")))
    assert log.index(("fsync", str(tmp_path)), named) < pointed < log.index(("fsync", str(tmp_path)), pointed) < left


def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    saved(tmp_path, 1)
    made = savers(tmp_path, 2)
    tmp_path.chmod(0o500)
    try:
        assert all("not allowed" in str(failure) or "rank" in str(failure) for failure in save(made, 2))
    finally:
        tmp_path.chmod(0o700)
    assert_whole(Checkpoint(tmp_path / "step-00000001"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no right to mount a small file system: {mounted.stderr.splitlines()[0]}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("background", [True, False])
def test_a_full_disk_leaves_the_old_one_and_gives_back_its_space(small_disk: Path, background: bool) -> None:
    folder = small_disk / "checkpoints"
    made = Saver(folder, rank=0, ranks=1, keep=1, background=background)
    assert _one(made, 1, torch.zeros(200_000)) is None  # 0.8 MB: a second one fits, a larger one does not
    free = os.statvfs(small_disk).f_bavail
    failure = _one(made, 2, torch.ones(400_000))
    assert failure and "the disk (or your quota) is full" in str(failure)
    assert names(folder) == {"latest", "step-00000001"} and os.statvfs(small_disk).f_bavail == free
    found = look(folder, expected=1).checkpoint
    assert found and found.step == 1 and not found.read("w", "weight", 0, 200_000).any()
    found.close()
    assert _one(made, 3, torch.ones(200_000)) is None
    assert names(folder) == {"latest", "step-00000003"}


def test_a_disk_that_turns_read_only_is_named(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    made = savers(folder, 2)
    save(made, 1)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    failures = save(made, 2)
    assert "not allowed (Read-only file system)" in str(failures[0]) and failures[1]
    assert look(folder).checkpoint
    with pytest.raises(UserError, match="not allowed"):
        Saver(small_disk / "other", rank=0, ranks=1)


def test_shapes_of_the_tests_have_an_empty_and_a_single_element() -> None:
    assert {(), (0, 8)} < set(SHAPES.values())
