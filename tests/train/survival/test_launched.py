"""What only the launcher sees: a second job on the run, and a disk on which a rank cannot even leave its message."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.progress import Progress
from launch import local, ranks
from launch.cli import main
from launch.lock import RunLock
from launch.recipe import LaunchConfig
from train.exit_codes import MISTAKE


@pytest.mark.parametrize("command", ["run", "finetune"])
def test_a_second_job_on_the_run_is_refused_at_once(
    command: str, repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLock(tmp_path / "runs" / "tiny"), pytest.raises(SystemExit) as end:
        main([command, str(repo / "tests" / "launch" / "tiny.toml"), "--runs", str(tmp_path / "runs")])
    assert end.value.code == MISTAKE
    said = capsys.readouterr().err
    assert "is in use by process" in said, said
    assert sorted(p.name for p in (tmp_path / "runs" / "tiny").iterdir()) == [".lock"], "nothing may be touched"


def test_a_mistake_is_told_where_the_disk_has_no_room_for_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "error: writing out/model: the disk (or your quota) is full. Fix: free space"
    monkeypatch.setattr(local, "WORKER", ("-c", f"import sys; print({said!r}, file=sys.stderr); sys.exit({MISTAKE})"))
    (tmp_path / "out").mkdir()
    job = {"phase": "finetune", "out": str(tmp_path / "out")}
    with pytest.raises(UserError, match=r"the disk .or your quota. is full"):
        ranks.run_ranks(job, out=tmp_path / "out", logs=tmp_path / "logs", launch=LaunchConfig(), progress=Progress())
