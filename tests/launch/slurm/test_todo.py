"""Which stages are to do, without reading or hashing anything: compared with what building really finds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.progress import Progress
from launch.slurm.submitting.todo import stages_to_do
from launch.stages import Stage, Workshop


def stage(name: str, *needs: str, config: int = 0, reads: Path | None = None) -> Stage:
    def build(out: Path, progress: Progress) -> dict[str, int]:
        (out / "data").write_text(f"{name} {config if name != 'gate' else ''}")
        return {}

    files = [reads] if reads else []
    return Stage(name, 1, tuple(needs), {"value": config}, build, external=lambda: files)


def graph(*, first: int = 0, gate: int = 0, reads: Path | None = None) -> list[Stage]:
    return [
        stage("corpus", config=first, reads=reads), stage("gate", "corpus", config=gate),
        stage("tokens", "corpus"), stage("pretrain", "gate", "tokens"),
    ]  # fmt: skip


def build_all(stages: list[Stage], workshop: Workshop) -> None:
    for each in stages:
        verdict = workshop.judge(each)
        if verdict.reason:
            workshop.build(each, verdict, Progress())


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    (tmp_path / "outside").write_text("text")
    made = Workshop(tmp_path / "run")
    (tmp_path / "run").mkdir()
    build_all(graph(reads=tmp_path / "outside"), made)
    return made


@pytest.fixture
def nothing_is_hashed(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    # from here on: the workshop is built
    def refuse(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("launch.stages.sha256_file", refuse)


@pytest.mark.usefixtures("nothing_is_hashed")
def test_a_finished_run_has_nothing_to_do(workshop: Workshop, tmp_path: Path) -> None:
    assert stages_to_do(graph(reads=tmp_path / "outside"), workshop) == {}


@pytest.mark.usefixtures("nothing_is_hashed")
def test_an_empty_run_has_all_to_do(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("text")
    found = stages_to_do(graph(reads=tmp_path / "outside"), Workshop(tmp_path / "new"))
    assert set(found) == {"corpus", "gate", "tokens", "pretrain"}
    with pytest.raises(UserError):  # what the job would not find is missed now
        stages_to_do([stage("corpus"), _broken()], Workshop(tmp_path / "new"))


def _broken() -> Stage:
    def missing() -> list[Path]:
        raise UserError("pairs.files", "no such file", "check the path")

    return Stage("pairs", 1, (), {}, lambda out, progress: {}, external=missing)


@pytest.mark.usefixtures("nothing_is_hashed")
def test_what_follows_a_changed_stage_is_to_do(workshop: Workshop, tmp_path: Path) -> None:
    found = stages_to_do(graph(first=1, reads=tmp_path / "outside"), workshop)
    assert list(found) == ["corpus", "gate", "tokens", "pretrain"] and "0 -> 1" in found["corpus"]


@pytest.mark.usefixtures("nothing_is_hashed")
def test_closing_a_gate_again_trains_nothing_again(workshop: Workshop, tmp_path: Path) -> None:
    changed = graph(gate=1, reads=tmp_path / "outside")
    assert list(stages_to_do(changed, workshop)) == ["gate"]


def test_and_building_agrees(workshop: Workshop, tmp_path: Path) -> None:
    changed = graph(gate=1, reads=tmp_path / "outside")
    build_all(changed, workshop)
    assert workshop.judge(changed[-1]).reason is None
    assert stages_to_do(changed, workshop) == {}


@pytest.mark.usefixtures("nothing_is_hashed")
def test_touched_files_count_as_to_do(workshop: Workshop, tmp_path: Path) -> None:
    os.utime(tmp_path / "run" / "tokens" / "data", (1, 1))
    assert list(stages_to_do(graph(reads=tmp_path / "outside"), workshop)) == ["tokens", "pretrain"]
    os.utime(tmp_path / "outside", (1, 1))
    assert "corpus" in stages_to_do(graph(reads=tmp_path / "outside"), workshop)


@pytest.mark.usefixtures("nothing_is_hashed")
def test_other_outside_files_count_as_to_do(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "more").write_text("text")
    assert "corpus" in stages_to_do(graph(reads=tmp_path / "more"), workshop)
    (tmp_path / "outside").write_text("longer text")
    assert "corpus" in stages_to_do(graph(reads=tmp_path / "outside"), workshop)


def test_a_missing_file_is_named(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "run" / "tokens" / "data").unlink()
    with pytest.raises(UserError, match="is missing"):
        stages_to_do(graph(reads=tmp_path / "outside"), workshop)
