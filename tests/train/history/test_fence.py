"""A history belongs to one start: a later one takes it away, and nothing of an older one arrives afterwards."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep.errors import UserError
from train.history import fence as fence_module
from train.history.fence import (
    Fence,
    Superseded,
    beside,
    claim,
    number_of,
    put_fenced,
    sweep_beside,
    write_fenced,
)
from train.history.folder import building_name, point_latest, put, sweep
from train.history.ledger import Ledger


def said(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "fence.json").read_text())
    return found


def test_a_later_claim_takes_the_history_away(tmp_path: Path) -> None:
    first = claim(tmp_path / "h", job="12", restart=0)
    first.check()
    assert said(tmp_path / "h") | {"time": 0} == {
        "start": first.start, "job": "12", "restart": 0, "host": os.uname().nodename, "time": 0,
    }  # fmt: skip
    second = claim(tmp_path / "h", job="12", restart=1)
    second.check()
    with pytest.raises(Superseded) as lost:
        first.check()
    assert first.lost and not second.lost
    assert "job 12, restart 1" in str(lost.value) and os.uname().nodename in str(lost.value)
    assert "\n" not in str(lost.value)
    assert not isinstance(lost.value, UserError)


def test_an_older_restart_of_the_same_job_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    now = claim(tmp_path, job="12", restart=3)
    with pytest.raises(Superseded, match="restart 3"):
        claim(tmp_path, job="12", restart=2)
    now.check()
    again = claim(tmp_path, job="12", restart=3)  # started again in place
    assert now.lost
    claim(tmp_path, job="13", restart=0)  # another job: the locks keep two of them apart
    assert again.lost


def test_a_restart_in_place_follows_only_its_own_claim(tmp_path: Path) -> None:
    mine = claim(tmp_path, job="12")
    mine = claim(tmp_path, job="12", after=mine)
    other = claim(tmp_path, job="19")
    with pytest.raises(Superseded, match="job 19"):
        claim(tmp_path, job="12", after=mine)
    other.check()


def test_starts_are_ordered_even_where_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = claim(tmp_path, job=None)
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000)
    second = claim(tmp_path, job=None)
    assert number_of(second.start) > number_of(first.start) > number_of("rubbish") == 0
    assert re.fullmatch(r"\d+-[0-9a-f]{8}", second.start)


def test_a_history_that_is_gone_is_nobodys(tmp_path: Path) -> None:
    mine = claim(tmp_path / "h", job=None)
    (tmp_path / "h").rename(tmp_path / "kept")
    with pytest.raises(Superseded, match="taken away"):
        mine.check()
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "fence.json").write_text("{rubbish")
    assert mine.lost


def test_a_file_that_is_missing_for_a_moment_is_looked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system, while another host replaces it."""
    mine = claim(tmp_path, job=None)
    held = (tmp_path / "fence.json").rename(tmp_path / "held")
    monkeypatch.setattr(fence_module.time, "sleep", lambda _: held.exists() and held.rename(tmp_path / "fence.json"))
    mine.check()


def test_other_errors_of_the_storage_are_no_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = claim(tmp_path, job=None)

    def broken(_: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match="Input/output"):
        mine.check()


def test_a_job_file_carries_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine = claim(Path("h"), job=None)
    told = json.loads(json.dumps(mine.facts()))
    monkeypatch.chdir("/")
    again = Fence.of(told)
    assert again is not None
    again.check()
    assert Fence.of(None) is None


def test_of_many_claims_at_once_the_highest_restart_stays(tmp_path: Path, repo: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from train.history.fence import Superseded, claim\n"
        "time.sleep(max(0, float(sys.argv[3]) - time.time()))\n"
        "for _ in range(20):\n"
        "    try:\n        claim(Path(sys.argv[1]), job='7', restart=int(sys.argv[2]))\n"
        "    except Superseded:\n        print('refused'); break\n"
    )
    at = str(time.time() + 1.0)
    children = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), str(n), at], cwd=repo, stdout=subprocess.PIPE)
        for n in range(4)
    ]
    told = [child.communicate(timeout=60)[0] for child in children]
    assert all(child.returncode == 0 for child in children)
    assert said(tmp_path)["restart"] == 3 and told[3] == b""


def test_what_was_prepared_before_a_takeover_never_arrives(tmp_path: Path) -> None:
    """The check was passed, and then the process was stopped: the sweep of the newer start is what holds."""
    old = claim(tmp_path, job=None)
    (tmp_path / "file").write_text("before")
    prepared = beside(tmp_path / "file", old)
    prepared.write_text("old")
    old.check()
    new = claim(tmp_path, job=None)
    write_fenced(beside(tmp_path / "other", new), b"", None)
    sweep_beside(tmp_path, new)
    assert not prepared.exists() and beside(tmp_path / "other", new).exists(), "only older ones go"
    with pytest.raises(FileNotFoundError):
        os.replace(prepared, tmp_path / "file")
    with pytest.raises(Superseded):
        put_fenced(prepared, tmp_path / "file", old)
    with pytest.raises(Superseded):
        write_fenced(tmp_path / "file", b"old", old)
    write_fenced(tmp_path / "file", b"new", new)
    assert (tmp_path / "file").read_text() == "new"
    with pytest.raises(Superseded):
        sweep_beside(tmp_path, old)
    assert not beside(tmp_path / "file", old).exists()


def test_saves_of_older_starts_lose_their_names_and_those_of_newer_ones_stay(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    starts = [claim(tmp_path, job=None) for _ in range(2)]
    names = [building_name(5, 1, fence.start) for fence in starts] + [building_name(5, 1)]
    for name in names:
        (checkpoints / name).mkdir(parents=True)
    later = building_name(6, 1, f"{number_of(starts[1].start) + 1}-00000000")
    (checkpoints / later).mkdir()
    sweep(checkpoints, fence=starts[1], before_attempt=2)
    assert {p.name for p in checkpoints.iterdir()} == {later}
    with pytest.raises(FileNotFoundError):
        put(checkpoints / names[0], checkpoints / "step-00000005")
    with pytest.raises(Superseded):
        sweep(checkpoints, fence=starts[0])
    with pytest.raises(Superseded):
        point_latest(checkpoints, 5, starts[0])
    assert {p.name for p in checkpoints.iterdir()} == {later}


def test_a_checkpoint_that_cannot_be_replaced_stays(tmp_path: Path) -> None:
    for name in ("step-00000005", "building"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    (tmp_path / "step-00000005" / "more").write_text("")
    with pytest.raises(FileNotFoundError):
        put(tmp_path / "swept", tmp_path / "step-00000005")
    assert (tmp_path / "step-00000005" / "more").exists()
    put(tmp_path / "building", tmp_path / "step-00000005")
    assert (tmp_path / "step-00000005" / "content").read_text() == "building"
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000005"}


def test_lines_of_an_older_start_go_to_a_file_without_a_name(tmp_path: Path) -> None:
    """Its descriptor stays open and good; what it appends is not in the ledger, whenever it comes."""
    header = {"sources": [{"name": "a"}], "epoch_samples": 8}
    path = tmp_path / "ledger.jsonl"
    old = Ledger.open(path, header, fence=claim(tmp_path, job=None))
    old.event("stop", step=0, reason="first")
    old.mark()
    new = Ledger.open(path, header, fence=claim(tmp_path, job=None))
    assert os.write(old._descriptor, b"late\n") == 5  # as if the check had been passed before
    new.event("stop", step=0, reason="second")
    new.mark()
    old.event("stop", step=0, reason="third")
    with pytest.raises(Superseded):
        old.mark()
    assert old.superseded and not new.superseded
    with pytest.raises(Superseded):
        old.close()
    new.close()
    assert [record.get("reason") for record in new.records()] == [None, "first", "second"]
    assert sorted(p.name for p in tmp_path.glob("*ledger*")) == ["ledger.jsonl"]
