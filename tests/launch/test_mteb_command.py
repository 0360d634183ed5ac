"""`rumpun mteb`: what it finds, what it writes, and the mistakes of a first try."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

import eval.mteb_tasks
import launch.search.model
from data_prep.errors import UserError
from launch.mteb_command import mteb_command
from tests.eval.run_fixture import write_set
from tests.eval.test_mteb_tasks import WordEmbedder

needs_mteb = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb not installed")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch.search.model, "load_model", lambda name: WordEmbedder())
    monkeypatch.setattr(eval.mteb_tasks, "need_mteb", lambda: None)


def refused(**asked: Any) -> str:
    with pytest.raises(UserError) as caught:
        mteb_command("runs/demo", **asked)
    return str(caught.value)


def test_mistakes_are_told_before_a_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval.mteb_tasks, "need_mteb", lambda: None)
    assert "has nothing to run" in refused()
    assert "--sets" in refused(sets=[str(tmp_path / "*")]) and "sts_" in refused(sets=[str(tmp_path / "none")])
    for room in ("a", "b"):
        write_set(tmp_path / room / "news", documents=5, queries=3, seed=0)
    assert "'news': two sets have this name" in refused(sets=[str(tmp_path / "*" / "news")])


@needs_mteb
def test_sets_and_pairs_become_a_table_and_files(
    tmp_path: Path, model: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_set(tmp_path / "data" / "news", documents=30, queries=12, seed=0)
    pairs = [{"sentence1": f"padi {i}", "sentence2": f"padi {i * i % 7}", "score": i % 5} for i in range(20)]
    (tmp_path / "data" / "sts_x.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    mteb_command("runs/demo", sets=[str(tmp_path / "data" / "*")], out=tmp_path / "out")
    table = capsys.readouterr().out
    assert "Results of demo" in table and "| news | Retrieval |" in table and "| sts_x | STS |" in table
    assert (tmp_path / "out" / "table.md").read_text() == table.removesuffix("\n")
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"news.json", "sts_x.json", "table.md"}


def test_a_hub_that_does_not_answer_is_told_and_waited_for_no_longer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    from launch.mteb_command import _settle_offline

    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    _settle_offline()
    assert os.environ["HF_HUB_OFFLINE"] == "1" and "does not answer" in capsys.readouterr().err
