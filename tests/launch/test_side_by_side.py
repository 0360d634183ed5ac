"""Jobs that build other stages of one run at the same time, and builders that were cut off and come back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.progress import Progress
from launch.binding import Surroundings
from launch.display import TerminalProgress
from launch.recipe import load_recipe
from launch.runner import Choice, claim, walk
from launch.stages import Stage, Workshop
from train.history.fence import Superseded

RECIPE = Path(__file__).with_name("tiny.toml")


def stage(name: str, text: str, meanwhile: Callable[[Path], None] = lambda out: None, **config: str) -> Stage:
    """A stage that writes `text`, and lets something happen in the middle of it."""

    def build(out: Path, progress: Progress) -> dict[str, int]:
        (out / "first").write_text(text)
        meanwhile(out)
        (out / "second").write_text(text)
        return {}

    return Stage(name, 1, (), dict(config), build)


def build(workshop: Workshop, made: Stage) -> None:
    workshop.build(made, workshop.judge(made), Progress())


def text(run: Path, name: str) -> str:
    return "".join((run / name / part).read_text() for part in ("first", "second"))


def test_a_sweep_leaves_the_stages_of_others_alone(tmp_path: Path) -> None:
    for name in ("mine", "pretrain"):
        for place in (".building", ".trash"):
            (tmp_path / place / name / "x").mkdir(parents=True)
    Workshop(tmp_path, stages=["mine"]).sweep()
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")}
    assert left == {".building", ".building/pretrain", ".building/pretrain/x", ".trash", ".trash/pretrain",
                    ".trash/pretrain/x"}  # fmt: skip
    Workshop(tmp_path).sweep()
    assert list(tmp_path.iterdir()) == []


def test_a_commit_beside_another_build_disturbs_neither(tmp_path: Path) -> None:
    other = Workshop(tmp_path, stages=["other"])

    def rebuild_the_other(out: Path) -> None:
        other.sweep()
        for number in range(3):
            build(other, stage("other", "o", number=str(number)))

    build(Workshop(tmp_path, stages=["one"]), stage("one", "1", rebuild_the_other))
    assert (text(tmp_path, "one"), text(tmp_path, "other")) == ("11", "oo")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "other"]


def test_many_at_once(tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for number in range(30):
                workshop = Workshop(tmp_path, stages=[name])
                workshop.sweep()
                build(workshop, stage(name, name, number=str(number)))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert sorted(p.name for p in tmp_path.iterdir()) == list("abcd")


@pytest.mark.parametrize("before", [True, False], ids=["there was one before", "there was none"])
def test_a_builder_that_was_cut_off_finds_nothing_to_commit(before: bool, tmp_path: Path) -> None:
    """Even where its check said that all is well: the newer one has discarded what it was building."""
    if before:
        build(Workshop(tmp_path), stage("one", "before", step="0"))

    def overtaken(out: Path) -> None:
        newer = Workshop(tmp_path, stages=["one"])
        newer.sweep()
        build(newer, stage("one", "new", step="2"))
        out.mkdir(parents=True)  # it goes on writing by name
        out.joinpath("more").mkdir()

    def takes_its_folder_away(out: Path) -> None:
        overtaken(out)
        Workshop(tmp_path, stages=["one"]).sweep()

    with pytest.raises(FileNotFoundError):
        build(Workshop(tmp_path), stage("one", "old", takes_its_folder_away, step="1"))
    assert text(tmp_path, "one") == "newnew"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one"]


def test_a_lost_lock_is_noticed_before_the_commit(tmp_path: Path) -> None:
    lost = False

    def check() -> None:
        if lost:
            raise Superseded("superseded: gone")

    def take_it_away(out: Path) -> None:
        nonlocal lost
        lost = True

    workshop = Workshop(tmp_path, check=check)
    build(workshop, stage("one", "before", step="0"))
    with pytest.raises(Superseded):
        build(workshop, stage("one", "late", take_it_away, step="1"))
    assert text(tmp_path, "one") == "beforebefore"


def walked(run: Path, *stages: str, job: str = "12") -> None:
    recipe, source = load_recipe(str(RECIPE), [])
    walk(
        recipe, source, run=run, data=None, choice=Choice(stages=stages), progress=TerminalProgress(),
        here=Surroundings(job=job),
    )  # fmt: skip


def test_a_job_builds_exactly_its_stages_and_needs_what_comes_before(tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    (run / "chain").mkdir(parents=True)  # what a submission leaves before anything ran
    (run / "logs" / "slurm").mkdir(parents=True)
    with pytest.raises(UserError, match="stage tokenizer: needs corpus, which is not built yet"):
        walked(run, "tokenizer")
    assert json.loads((run / "run.json").read_text())["name"] == "tiny"
    assert (run / "recipe.toml").exists()
    with pytest.raises(UserError, match="no such stage"):
        walked(run, "tokeniser")
    assert {p.name for p in (run / ".locks").glob("[!.]*")} == {"tokenizer"}
    walked(run, "generate")
    assert (run / "generate" / "stage.json").exists() and not (run / "corpus").exists()


def test_a_folder_that_is_no_run_is_still_refused(tmp_path: Path) -> None:
    recipe, source = load_recipe(str(RECIPE), [])
    (tmp_path / "chain").mkdir()
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="not a run of rumpun"):
        claim(tmp_path, recipe, source)
