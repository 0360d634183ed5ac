"""`rumpun ablate`: axes, shared stages, and a command that goes on whatever ended it. Stages are small fakes here, but
for one test that trains; runs, locks, records and evaluations are real."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from finished_run import copied

from data_prep.errors import UserError
from data_prep.files import read_json
from data_prep.progress import Progress
from launch.ablate_command import ablate_command
from launch.ablation_axes import AXES, Cell, cell_name, cells_of, parse_axes
from launch.pipeline import Plan
from launch.recipe import load_recipe
from launch.sharing import Borrower, likeness, take
from launch.stages import RECORD, Stage, Workshop

TINY = Path(__file__).with_name("tiny.toml")
METRIC = "recall@10"


def cells(*axes: str, grid: bool = False, recipe: Path = TINY) -> list[Cell]:
    base, _ = load_recipe(str(recipe))
    return cells_of(base, parse_axes(axes, base), lambda more: load_recipe(str(recipe), more)[0], grid=grid)[0]


def test_one_change_at_a_time_and_every_combination() -> None:
    axes = ["finetune.temperature=0.05,0.02", "encoder.pooling=last,mean"]
    single, grid = cells(*axes), cells(*axes, grid=True)
    assert [c.settings for c in single] == [{}, {"finetune.temperature": 0.02}, {"encoder.pooling": "last"}]
    assert [c.name for c in single] == ["base", "finetune.temperature-0.02", "encoder.pooling-last"]
    both = {"finetune.temperature": 0.02, "encoder.pooling": "last"}
    assert sorted(map(str, (c.settings for c in grid))) == sorted(map(str, [*(c.settings for c in single), both]))
    for one in grid:  # the recipe says so itself
        assert one.recipe.finetune.temperature == one.settings.get("finetune.temperature", 0.05)
        assert one.recipe.encoder.pooling == one.settings.get("encoder.pooling", "mean")


def test_a_value_may_hold_commas_and_words_may_be_bare() -> None:
    found = cells("finetune.blend={synth = 1.0, mine = 0.1},{mine = 1.0}", "finetune.matryoshka=[16, 8],[8]")
    assert [c.settings for c in found[1:]] == [
        {"finetune.blend": {"synth": 1.0, "mine": 0.1}}, {"finetune.blend": {"mine": 1.0}},
        {"finetune.matryoshka": [16, 8]}, {"finetune.matryoshka": [8]},
    ]  # fmt: skip
    assert found[1].recipe.finetune.blend == {"synth": 1.0, "mine": 0.1}
    quoted = cells("encoder.query_prompt='soal, ','tanya: '")
    assert [c.recipe.encoder.query_prompt for c in quoted[1:]] == ["soal, ", "tanya: "]


def test_names_are_folders_tell_settings_apart_and_do_not_depend_on_the_others() -> None:
    found = cells("finetune.blend={synth = 1.0},{mine = 1.0},{synth = 0.5, mine = 0.5}", *list(AXES)[1:])
    names = [c.name for c in found]
    assert len(set(names)) == len(names) and all(len(name) <= 48 for name in names)
    alone = cells("finetune.blend={mine=1.0}")
    assert alone[1].name in names
    assert cell_name({"a": "x/y"}) != cell_name({"a": "x y"})


@pytest.mark.parametrize("key", list(AXES))
def test_an_axis_without_values_has_some_that_the_recipe_takes(key: str) -> None:
    found = cells(key)
    assert len(found) > 1 and all(set(c.settings) == {key} for c in found[1:])


def test_a_built_in_value_that_the_recipe_refuses_is_left_out_and_said(tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(f'extends = "{TINY}"\n[finetune]\nhard_negatives = 0\n')
    base, _ = load_recipe(str(recipe))
    found, notes = cells_of(
        base, parse_axes(["finetune.loss"], base), lambda more: load_recipe(str(recipe), more)[0], grid=False
    )
    assert {"finetune.loss": "triplet"} not in [c.settings for c in found]
    assert len(notes) == 1 and notes[0].startswith("left out: finetune.loss=triplet (needs stored negatives")
    with pytest.raises(UserError, match="needs stored negatives"):  # one that was asked for is a mistake
        cells("finetune.loss=margin,triplet", recipe=recipe)


@pytest.mark.parametrize(
    ("axis", "says"),
    [
        ("finetune.temprature=1", "did you mean 'finetune.temperature'"),
        ("loss", "did you mean 'finetune.loss'"),
        ("finetune.epochs", "needs values"),
        ("finetune.temperature,encoder.pooling=last", "has values for more than one key"),
        ("finetune.blend={synth = 1.0", "without its other half"),
        ("finetune.temperature=", "has an empty value"),
        ("finetune.temperature=0.1,,0.2", "has an empty value"),
        ("seed=1,2", "--seeds N"),
        ("eval.ks=[1],[2]", "same queries"),
        ("slurm.nodes=1,2", "changes no result"),
        ("pairs.files=a,b", r"has \[pairs\] switched off"),
        ("finetune.temperature=0.1,-1", "greater than 0"),
        ("finetune.temperature=" + ",".join(f"0.{n:03}" for n in range(1, 300)), "must be at most 200"),
    ],
)
def test_a_mistake_in_an_axis_says_value_rule_and_fix(axis: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        cells(axis)
    assert "\n" not in str(error.value)


# ---- taking stages from other runs


def writer(name: str, needs: tuple[str, ...], setting: int, built: list[str], run: Path) -> Stage:
    def build(out: Path, progress: Progress) -> dict[str, int]:
        built.append(f"{run.name}/{name}")
        text = "".join((run / need / "inside" / "text").read_text() for need in needs)
        (out / "inside").mkdir()
        (out / "inside" / "text").write_text(f"{text}{name}{setting} ")
        (out / "time.log").write_text(str(os.urandom(4)))
        return {"letters": len(text)}

    return Stage(name, 1, needs, {"setting": setting}, build, volatile=("*.log",))


def chain(run: Path, built: list[str], **settings: int) -> list[Stage]:
    one, two, three = (settings.get(name, 0) for name in ("one", "two", "three"))
    return [
        writer("one", (), one, built, run), writer("two", ("one",), two, built, run),
        writer("three", ("two",), three, built, run),
    ]  # fmt: skip


def bring_up_to_date(stages: list[Stage], run: Path) -> None:
    workshop = Workshop(run)
    for stage in stages:
        verdict = workshop.judge(stage)
        if verdict.reason:
            workshop.build(stage, verdict, Progress())


NAMES = ("one", "two", "three")


@pytest.fixture
def donor(tmp_path: Path) -> Path:
    (tmp_path / "donor").mkdir()
    bring_up_to_date(chain(tmp_path / "donor", []), tmp_path / "donor")
    return tmp_path / "donor"


def taker(
    tmp_path: Path, donor: Path, name: str = "taker", **settings: int
) -> tuple[Path, list[Stage], list[str], Any]:
    run, built = tmp_path / name, []
    run.mkdir(exist_ok=True)
    stages = chain(run, built, **settings)
    taken = take(stages, Borrower(run, [tmp_path / "missing", run, donor]), NAMES)
    return run, stages, built, taken


def test_what_is_alike_is_taken_and_the_rest_built(donor: Path, tmp_path: Path) -> None:
    run, stages, built, taken = taker(tmp_path, donor, three=1)
    assert taken == {"one": "donor", "two": "donor"}
    bring_up_to_date(stages, run)
    assert built == ["taker/three"]
    assert (run / "three" / "inside" / "text").read_text() == "one0 two0 three1 "
    assert (run / "one" / "time.log").read_text() == (donor / "one" / "time.log").read_text()
    record = read_json(run / "two" / RECORD)
    assert record.pop("taken_from") == "donor" and record == read_json(donor / "two" / RECORD)
    assert (run / "two" / "inside" / "text").samefile(donor / "two" / "inside" / "text")
    assert not (run / ".building").exists() and take(stages, Borrower(run, [donor]), NAMES) == {}
    # either may go without the other
    shutil.rmtree(donor)
    assert all(Workshop(run).judge(stage).reason is None for stage in stages)


def test_a_changed_beginning_takes_nothing(donor: Path, tmp_path: Path) -> None:
    run, stages, _, taken = taker(tmp_path, donor, one=1)
    assert taken == {} and not (run / "two").exists()
    # a stage that only looks alike, after one that is to be rebuilt, is not taken either
    bring_up_to_date(stages, run)
    assert take(chain(run, []), Borrower(run, []), NAMES) == {}
    assert take(chain(run, [], two=5), Borrower(run, [donor]), NAMES) == {"one": "donor"}


def test_a_copy_serves_where_there_are_no_links(donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    run, stages, _, taken = taker(tmp_path, donor)
    assert list(taken) == list(NAMES)
    assert not (run / "two" / "inside" / "text").samefile(donor / "two" / "inside" / "text")
    assert all(Workshop(run).judge(stage).reason is None for stage in stages)


@pytest.mark.parametrize("quietly", [False, True])
def test_a_damaged_stage_is_not_taken(donor: Path, tmp_path: Path, quietly: bool) -> None:
    """Also where neither size nor time tells of it: every byte is read on its way in."""
    file = donor / "two" / "inside" / "text"
    before = file.stat()
    file.write_text(file.read_text().replace("0", "7"))
    if quietly:
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    run, stages, built, taken = taker(tmp_path, donor)
    assert taken == {"one": "donor"} and not (run / "two").exists() and not (run / ".building").exists()
    bring_up_to_date(stages, run)
    assert built == ["taker/two", "taker/three"]
    assert (run / "three" / "inside" / "text").read_text() == "one0 two0 three0 "


def test_a_file_from_outside_that_a_donor_hashed_is_not_read_again(
    donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    import launch.stages

    outside, read = tmp_path / "base.safetensors", []
    outside.write_text("weights")
    for run in (donor, tmp_path / "taker"):
        run.mkdir(exist_ok=True)
    of = {run: replace(chain(run, [])[0], external=lambda: [outside]) for run in (donor, tmp_path / "taker")}
    bring_up_to_date([of[donor]], donor)
    honest = launch.stages.sha256_file
    monkeypatch.setattr(launch.stages, "sha256_file", lambda path: (read.append(path.name), honest(path))[1])
    assert take([of[tmp_path / "taker"]], Borrower(tmp_path / "taker", [donor]), NAMES) == {"one": "donor"}
    assert outside.name not in read
    outside.write_text("other weights")  # … but a changed one is
    assert take([of[tmp_path / "taker"]], Borrower(tmp_path / "taker", [donor]), NAMES) == {}
    assert outside.name in read


def test_likeness_says_before_anything_is_built_what_would_be_the_same(tmp_path: Path) -> None:
    base, other = (likeness(chain(tmp_path / n, [], **s)) for n, s in (("a", {}), ("b", {"two": 1})))
    assert base["one"] == other["one"] and base["two"] != other["two"] and base["three"] != other["three"]


# ---- the command, with small stages in place of the real ones


@dataclass
class Bench:
    """A folder, and a graph of fakes: data → train (a model that is as good as `quality`) → eval."""

    place: Path
    sets: list[Path]
    built: list[str] = field(default_factory=list)
    before: Callable[[str, Plan], None] = lambda stage, plan: None

    def stages(self, plan: Plan) -> list[Stage]:
        from eval.retrieval import EvalConfig, evaluate
        from eval.systems.listing import System
        from tests.eval.run_fixture import PlantedRanker

        recipe = plan.recipe

        def data(out: Path, progress: Progress) -> dict[str, int]:
            (out / "text").write_text(f"{recipe.seed}")
            return {}

        def train(out: Path, progress: Progress) -> dict[str, int]:
            (out / "strength").write_text(str(30 * recipe.finetune.temperature))
            return {}

        def measure(out: Path, progress: Progress) -> dict[str, int]:
            strength = float((plan.run / "finetune" / "strength").read_text())
            system = System("finetuned", "finetuned", "", lambda: PlantedRanker(strength, recipe.seed))
            config = EvalConfig(sets=["x"], bootstrap_samples=100, permutations=1000)
            evaluate(config, sets=self.sets, systems=[system], out=out, seed=recipe.seed, progress=progress)
            return {}

        def watched(name: str, build: Any) -> Any:
            def wrapped(out: Path, progress: Progress) -> dict[str, int]:
                self.built.append(f"{plan.run.name}/{name}")
                self.before(name, plan)
                return dict(build(out, progress))

            return wrapped

        held = {"temperature": recipe.finetune.temperature, "pooling": recipe.encoder.pooling}
        return [
            Stage("corpus", 1, (), {"seed": recipe.seed}, watched("corpus", data)),
            Stage("finetune", 1, ("corpus",), held, watched("finetune", train)),
            Stage("eval", 1, ("finetune",), {"eval": recipe.eval.model_dump()}, watched("eval", measure)),
        ]  # fmt: skip

    def ablate(self, *words: str) -> tuple[int, str]:
        """The exit code, and what was printed."""
        app, out = typer.Typer(), io.StringIO()
        app.command()(ablate_command)
        line = [str(TINY), *words, "--runs", str(self.place / "runs")]
        with redirect_stdout(out):
            code = typer.main.get_command(app).main(line, standalone_mode=False)
        return code or 0, out.getvalue()

    @property
    def folder(self) -> Path:
        return self.place / "runs" / "ablations" / "tiny"

    @property
    def table(self) -> dict[str, Any]:
        return dict(read_json(self.folder / "ablation.json"))

    @property
    def states(self) -> dict[str, str]:
        return {cell["name"]: cell["state"] for cell in self.table["cells"]}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    from tests.eval.run_fixture import write_set

    made = Bench(tmp_path, [write_set(tmp_path / "sets" / "news", documents=40, queries=30, seed=0)])
    monkeypatch.setattr(Plan, "stages", lambda plan: made.stages(plan))
    monkeypatch.setattr(Plan, "all_sets", lambda plan: made.sets)
    # what costs time here and decides nothing
    monkeypatch.setattr("eval.retrieval._free", lambda: None)
    monkeypatch.setattr("launch.stages.commit_of_checkout", lambda: None)
    return made


T02, T10 = "finetune.temperature-0.02", "finetune.temperature-0.1"
AXIS = ("--axis", "finetune.temperature=0.02,0.1")


def test_shared_stages_are_built_once_and_the_table_compares_the_cells(bench: Bench) -> None:
    code, out = bench.ablate(*AXIS)
    assert code == 0
    assert bench.built == [
        "base/corpus", "base/finetune", "base/eval", f"{T02}/finetune", f"{T02}/eval", f"{T10}/finetune", f"{T10}/eval",
    ]  # fmt: skip
    table = bench.table
    assert set(bench.states.values()) == {"done"} and table["axes"] == {"finetune.temperature": [0.02, 0.1]}
    assert table["base"] == {"finetune.temperature": 0.05} and table["cells"][0]["difference"] is None
    for cell in table["cells"]:
        results = read_json(bench.folder / cell["run"] / "eval" / "results.json")
        told = next(m for m in results["means"] if m["subset"] == "all")["metrics"]
        assert cell["metrics"] == told
    low, high = (cell["difference"] for cell in table["cells"][1:])
    assert low["mean"] < 0 < high["mean"] and high["low"] > 0 and {"p_value", "p_holm"} <= set(high)
    assert "taken from base: corpus" in out and (bench.folder / "table.txt").read_text() in out
    assert "<svg" in (bench.folder / "ablation.html").read_text()


def test_a_cell_is_what_its_recipe_gives_alone(bench: Bench) -> None:
    from launch.display import TerminalProgress
    from launch.runner import Choice, walk

    bench.ablate(*AXIS)
    recipe, source = load_recipe(str(TINY), ["finetune.temperature=0.1"])
    walk(recipe, source, run=bench.place / "alone", data=None, choice=Choice(), progress=TerminalProgress())
    alone = read_json(bench.place / "alone" / "eval" / "results.json")
    assert read_json(bench.folder / T10 / "eval" / "results.json") == alone


def test_a_second_time_nothing_is_built_and_a_new_axis_builds_its_own_cells(bench: Bench) -> None:
    bench.ablate(*AXIS)
    table, bench.built[:] = bench.table, []
    assert bench.ablate(*AXIS)[0] == 0 and bench.built == [] and bench.table == table
    bench.ablate(*AXIS, "--axis", "encoder.pooling=last")
    assert bench.built == ["encoder.pooling-last/finetune", "encoder.pooling-last/eval"]


def test_an_interrupt_leaves_the_figures_of_what_was_done(bench: Bench) -> None:
    bench.ablate(*AXIS)
    table = bench.table

    def stop(name: str, plan: Plan) -> None:
        raise KeyboardInterrupt

    bench.before = stop
    assert bench.ablate(*AXIS, "--axis", "encoder.pooling=last")[0] == 130
    cells = bench.table["cells"]
    assert cells[:3] == table["cells"] and [c["state"] for c in cells] == ["done", "done", "done", "pending"]


def test_a_stage_that_was_damaged_fails_its_cell(bench: Bench) -> None:
    bench.ablate(*AXIS)
    (bench.folder / T10 / "finetune" / "strength").write_text("9.9999")
    code, out = bench.ablate(*AXIS)
    assert code == 2 and bench.states[T10] == "failed" and "damaged or changed by hand" in out


def test_the_ordinary_run_of_the_recipe_gives_what_it_has(bench: Bench) -> None:
    from launch.display import TerminalProgress
    from launch.runner import Choice, walk

    recipe, source = load_recipe(str(TINY))
    walk(recipe, source, run=bench.place / "runs" / "tiny", data=None, choice=Choice(), progress=TerminalProgress())
    bench.built.clear()
    bench.ablate("--axis", "finetune.temperature=0.1")
    assert bench.built == [f"{T10}/finetune", f"{T10}/eval"]
    assert read_json(bench.folder / "base" / "eval" / RECORD)["taken_from"] == "tiny"


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (UserError("pairs = 0", "must be at least 1", "add text"), 2, "pairs = 0: must be at least 1. Fix: add text"),
        (RuntimeError("out of luck\nsecond line"), 1, "RuntimeError: out of luck"),
    ],
)
def test_a_cell_that_fails_stops_no_other_and_is_tried_again(
    bench: Bench, error: Exception, code: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(stage: str, plan: Plan) -> None:
        if stage == "finetune" and plan.run.name == T02:
            raise error

    bench.before = fail
    ended, out = bench.ablate(*AXIS)
    assert ended == code and bench.states == {"base": "done", T02: "failed", T10: "done"}
    assert bench.table["cells"][1]["reason"] == reason and bench.table["cells"][1]["metrics"] == {}
    assert f"{T02}: failed: {reason}" in out
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)
    bench.before, bench.built[:] = (lambda stage, plan: None), []
    assert bench.ablate(*AXIS)[0] == 0 and bench.built == [f"{T02}/finetune", f"{T02}/eval"]
    assert set(bench.states.values()) == {"done"}


@pytest.mark.parametrize("stage", ["corpus", "finetune", "eval"])
def test_an_interrupt_ends_it_and_the_same_command_goes_on(bench: Bench, stage: str) -> None:
    bench.ablate(*AXIS)
    whole, bench.built[:] = bench.table, []
    shutil.rmtree(bench.folder)

    def stop(name: str, plan: Plan) -> None:
        if name == stage and plan.run.name in (T10, "base" if stage == "corpus" else T10):
            bench.before = lambda stage, plan: None
            raise KeyboardInterrupt

    bench.before = stop
    assert bench.ablate(*AXIS)[0] == 130
    assert bench.states["base"] == ("pending" if stage == "corpus" else "done") and bench.states[T10] == "pending"
    assert not list(bench.folder.glob("*/.building"))
    done = list(bench.built)
    assert bench.ablate(*AXIS)[0] == 0 and bench.table == whole
    twice = {name for name in bench.built if bench.built.count(name) > 1}
    assert twice == {done[-1]}  # what was interrupted, and nothing that was finished


def test_several_seeds_are_runs_of_their_own_and_are_paired(bench: Bench) -> None:
    code, out = bench.ablate("--axis", "finetune.temperature=0.1", "--seeds", "3")
    assert code == 0 and len(set(bench.built)) == len(bench.built)
    # each seed has data of its own, which both cells share
    assert [b for b in bench.built if b.endswith("corpus")] == [
        "base/corpus",
        "base.seed-1/corpus",
        "base.seed-2/corpus",
    ]
    base, cell = bench.table["cells"]
    assert bench.table["seeds"] == [0, 1, 2] and [s["run"] for s in cell["seeds"]] == [
        T10,
        f"{T10}.seed-1",
        f"{T10}.seed-2",
    ]
    means = [s["mean"] for s in cell["seeds"]]
    assert cell["spread"] == {"low": min(means), "high": max(means)} and len(set(means)) > 1
    assert cell["metrics"][METRIC]["mean"] == pytest.approx(sum(means) / 3, abs=2e-6)
    gains = [a["mean"] - b["mean"] for a, b in zip(cell["seeds"], base["seeds"], strict=True)]
    assert cell["difference"]["mean"] == pytest.approx(sum(gains) / 3, abs=2e-6)
    assert f"{min(means):.3f} to {max(means):.3f}" in out and "means over 3 seeds (0, 1, 2)" in out


def test_a_dry_run_says_what_would_be_built_and_writes_nothing(bench: Bench) -> None:
    code, out = bench.ablate(*AXIS, "--dry-run")
    assert code == 0 and bench.built == [] and not (bench.place / "runs").exists()
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0].startswith("3 cells, in ") and lines.count("builds finetune, eval") == 2
    assert lines.count("builds corpus, finetune, eval") == 1 and lines.count("takes corpus from base") == 2
    bench.ablate("--axis", "finetune.temperature=0.1")
    _, out = bench.ablate(*AXIS, "--dry-run")
    assert out.count("  done\n") == 2


def test_the_known_axes_are_listed_with_their_values_for_a_recipe(bench: Bench) -> None:
    code, out = bench.ablate("--list")
    assert code == 0 and all(key in out for key in AXES)
    assert "0.02, 0.05, 0.1" in out and '{"mine" = 0.3}, {"synth" = 1.0}' in out and "1, 2, 3" in out


def test_only_the_base_measures_what_is_not_compared(bench: Bench) -> None:
    bench.ablate("--axis", "finetune.temperature=0.1")
    of = {name: read_json(bench.folder / name / "eval" / RECORD)["config"]["eval"] for name in ("base", T10)}
    assert (of["base"]["bm25"], of["base"]["untrained"]) == (True, True)
    assert (of[T10]["bm25"], of[T10]["untrained"], of[T10]["finetuned"]) == (False, False, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "has no axis"),
        (("--axis", "finetune.temperature=0.05"), "every value is what the recipe has"),
        ((*AXIS, "--metric", "recall@7"), "is not measured by this recipe"),
        ((*AXIS, "--data", "nowhere"), "is not a folder"),
        ((*AXIS, "--wait"), "is for cells in a queue"),
        ((*AXIS, "--set", "eval.finetuned=false"), "nothing to compare"),
    ],
)
def test_a_mistake_is_told_before_anything_is_written(bench: Bench, words: tuple[str, ...], says: str) -> None:
    with pytest.raises(UserError, match=says):
        bench.ablate(*words)
    assert not (bench.place / "runs").exists()


def test_two_at_once_are_told_of_each_other(bench: Bench) -> None:
    from launch.lock import RunLock

    with RunLock(bench.folder), pytest.raises(UserError, match="in use by process"):
        bench.ablate(*AXIS)


# ---- the real stages


@pytest.mark.slow
def test_real_cells_share_what_the_recipe_has_built_and_equal_a_run_of_their_own(
    tiny_run: Path, tmp_path: Path
) -> None:
    runs = copied(tiny_run, tmp_path / "runs")
    alone = copied(tiny_run, tmp_path / "alone")

    def rumpun(*words: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "launch.cli", *map(str, words)], capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-2500:]
        return done.stdout

    # one rank starts faster than two, and computes the same
    changed = ("--set", "launch.nproc=1", "--runs")
    out = rumpun("ablate", TINY, "--axis", "finetune.temperature=0.02", *changed, runs)
    folder = runs / "ablations" / "tiny"
    stages = [line.split("]")[0].strip("[") for line in out.splitlines() if "] done in" in line]
    assert stages == ["finetune", "eval"]  # of the one cell; the base has everything from the recipe's run
    rumpun("finetune", TINY, "--set", "finetune.temperature=0.02", *changed, alone)
    cell, own = folder / "finetune.temperature-0.02", alone / "tiny"
    assert read_json(cell / "finetune" / RECORD)["content"] == read_json(own / "finetune" / RECORD)["content"]
    table = read_json(folder / "ablation.json")
    assert [c["state"] for c in table["cells"]] == ["done", "done"] and table["cells"][1]["difference"]
    assert read_json(folder / "base" / "eval" / "results.json") == read_json(tiny_run / "eval" / "results.json")
    assert read_json(cell / "pretrain" / RECORD)["taken_from"] == "tiny"
