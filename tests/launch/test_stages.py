"""Promise 4: whole or not at all, a no-op the second time, and a change rebuilds exactly what depends on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep.errors import UserError
from data_prep.progress import Progress
from launch.stages import Stage, Workshop, following, leading


def graph(source: Path, *, factor: int = 2, shout: bool = False, fail: str = "") -> list[Stage]:
    """read → double → (shout) and, beside it, count: real stages on real files."""
    run = source.parent / "run"

    def writes(name: str, make: Callable[[], str]) -> Callable[[Path, Progress], dict[str, int]]:
        def build(out: Path, progress: Progress) -> dict[str, int]:
            (out / "part").write_text("half")
            if fail == name:
                raise RuntimeError("died in the middle")
            (out / "part").unlink()
            (out / "text").write_text(make())
            (out / "time.log").write_text(str(id(out)))
            return {"characters": len(make())}

        return build

    def text(stage: str) -> str:
        return (run / stage / "text").read_text()

    def stage(name: str, needs: tuple[str, ...], config: dict, make: Callable[[], str], **more) -> Stage:
        return Stage(name, 1, needs, config, writes(name, make), volatile=("*.log",), **more)

    return [
        stage("read", (), {}, lambda: source.read_text().strip(), external=lambda: [source]),
        stage("double", ("read",), {"factor": factor}, lambda: text("read") * factor),
        stage("shout", ("double",), {"shout": shout}, lambda: text("double").upper() if shout else text("double")),
        stage("count", ("read",), {}, lambda: str(len(text("read")))),
    ]


def bring_up_to_date(stages: list[Stage], run: Path) -> list[str]:
    workshop = Workshop(run)
    built = []
    for stage in stages:
        verdict = workshop.judge(stage)
        if verdict.reason:
            workshop.build(stage, verdict, Progress())
            built.append(stage.name)
    return built


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "in.txt").write_text("abc")
    return tmp_path / "in.txt"


def test_a_second_walk_builds_nothing(source: Path) -> None:
    run = source.parent / "run"
    assert bring_up_to_date(graph(source), run) == ["read", "double", "shout", "count"]
    assert bring_up_to_date(graph(source), run) == []


def test_a_change_rebuilds_exactly_what_depends_on_it(source: Path) -> None:
    run = source.parent / "run"
    bring_up_to_date(graph(source), run)
    assert bring_up_to_date(graph(source, factor=3), run) == ["double", "shout"]
    assert (run / "shout" / "text").read_text() == "abcabcabc"
    assert bring_up_to_date(graph(source, factor=3, shout=True), run) == ["shout"]
    source.write_text("xy")
    assert bring_up_to_date(graph(source, factor=3, shout=True), run) == ["read", "double", "shout", "count"]


def test_an_input_that_comes_out_the_same_stops_the_rebuild(source: Path) -> None:
    run = source.parent / "run"
    bring_up_to_date(graph(source), run)
    source.write_text("abc\n\n")  # another file, the same text after stripping
    assert bring_up_to_date(graph(source), run) == ["read"]


def test_a_touched_but_equal_file_rebuilds_nothing(source: Path) -> None:
    run = source.parent / "run"
    bring_up_to_date(graph(source), run)
    source.touch()
    (run / "read" / "text").touch()
    assert bring_up_to_date(graph(source), run) == []


def test_a_failed_rebuild_keeps_the_old_output_and_no_half(source: Path) -> None:
    run = source.parent / "run"
    bring_up_to_date(graph(source), run)
    with pytest.raises(RuntimeError, match="died in the middle"):
        bring_up_to_date(graph(source, factor=5, fail="double"), run)
    assert (run / "double" / "text").read_text() == "abcabc"
    assert not list(run.rglob("part"))
    assert bring_up_to_date(graph(source, factor=5), run) == ["double", "shout"]


def test_leftovers_of_a_kill_are_swept(source: Path) -> None:
    run = source.parent / "run"
    (run / ".building" / "double").mkdir(parents=True)
    (run / ".building" / "double" / "half").write_text("x")
    Workshop(run).sweep()
    assert not (run / ".building").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_in_a_finished_stage_is_named_and_nothing_is_lost(source: Path, damage: str) -> None:
    run = source.parent / "run"
    bring_up_to_date(graph(source), run)
    path = run / "double" / "text"
    if damage == "remove":
        path.unlink()
    else:
        path.write_text("abcabx" if damage == "flip" else "abc")
    with pytest.raises(UserError, match=r"double/text: (is missing|its checksum differs).*Fix: delete .*double"):
        bring_up_to_date(graph(source), run)
    assert (run / "shout" / "text").exists()


def test_the_reason_names_what_changed(source: Path) -> None:
    run = source.parent / "run"
    bring_up_to_date(graph(source), run)
    assert Workshop(run).judge(graph(source, factor=7)[1]).reason == "factor 2 -> 7"


def test_a_stage_without_its_inputs_is_refused(source: Path) -> None:
    with pytest.raises(UserError, match="stage double: needs read, which is not built yet"):
        Workshop(source.parent / "run").judge(graph(source)[1])


def test_following_and_leading(source: Path) -> None:
    stages = graph(source)
    assert following(stages, "double") == {"double", "shout"}
    assert leading(stages, "shout") == {"read", "double", "shout"}


def test_scratch_outlives_a_failure_and_serves_only_the_same_key(source: Path) -> None:
    run = source.parent / "run"
    workshop = Workshop(run)
    seen: list[list[str]] = []

    def stage(config: dict, *, fail: bool) -> Stage:
        def build(out: Path, progress: Progress) -> dict[str, int]:
            scratch = workshop.scratch("slow")
            seen.append(sorted(p.name for p in scratch.iterdir() if p.name != "key"))
            (scratch / "part-1").write_text("done")
            if fail:
                raise RuntimeError("killed")
            (out / "text").write_text("whole")
            return {}

        return Stage("slow", 1, (), config, build)

    for config, fail in (({"a": 1}, True), ({"a": 1}, True), ({"a": 2}, True), ({"a": 2}, False)):
        made = stage(config, fail=fail)
        if fail:
            with pytest.raises(RuntimeError):
                workshop.build(made, workshop.judge(made), Progress())
        else:
            workshop.build(made, workshop.judge(made), Progress())
    assert seen == [[], ["part-1"], [], ["part-1"]]
    assert sorted(p.name for p in run.iterdir()) == ["slow"]  # nothing is left beside the finished stage


def test_the_folder_of_a_file_from_outside_counts(source: Path) -> None:
    bring_up_to_date(graph(source), source.parent / "run")
    elsewhere = source.parent / "renamed"
    elsewhere.mkdir()
    moved = source.rename(elsewhere / source.name)
    again = graph(source)[0]
    here = Stage(again.name, 1, (), {}, again.build, volatile=("*.log",), external=lambda: [moved])
    assert Workshop(source.parent / "run").judge(here).reason is not None


def test_a_stage_does_not_train_past_a_gate_that_saw_other_text(source: Path) -> None:
    from launch.runner import _gates_are_closed

    def build(out: Path, progress: Progress) -> dict[str, int]:
        (out / "proof").write_text("fine")
        return {}

    gate = Stage("gate", 1, (), {}, build, external=lambda: [source], volatile=("*",))
    trained = Stage("pretrain", 1, ("gate",), {}, build)
    run = source.parent / "run"
    bring_up_to_date([gate, trained], run)
    _gates_are_closed(Workshop(run), [gate, trained], trained)
    source.write_text("other text")
    assert bring_up_to_date([trained], run) == []  # its key cannot tell
    with pytest.raises(UserError, match=r"stage pretrain: needs gate, which is not up to date \(files outside"):
        _gates_are_closed(Workshop(run), [gate, trained], trained)
    _gates_are_closed(Workshop(run), [gate, trained], gate)
