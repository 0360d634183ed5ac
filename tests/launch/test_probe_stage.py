"""The probe's place in the graph: it depends on what it reads, and nothing that trains depends on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.files import read_json
from launch.cli import main
from launch.pipeline import Plan
from launch.recipe import load_recipe
from launch.stages import Stage, following, leading

TINY = Path(__file__).with_name("tiny.toml")


def stages(*overrides: str, run: Path = Path("run")) -> dict[str, Stage]:
    recipe, _ = load_recipe(str(TINY), overrides)
    return {s.name: s for s in Plan(recipe, run, None).stages()}


def test_nothing_that_trains_depends_on_the_probe() -> None:
    graph = stages()
    assert following(graph.values(), "probe") == {"probe", "report"}
    assert leading(graph.values(), "probe") == {"probe", "base", "tokenizer", "synth", "corpus", "generate"}
    assert not {"probe", "synth", "mine"} & leading(graph.values(), "pretrain")


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("truncate.layers=1", {"truncate"}),
        ("truncate.layers=[0, 1]", {"truncate"}),  # the same prefix, written otherwise
        ("truncate.layers=[0, 2]", {"truncate", "probe"}),  # a list is measured on its own
        ("truncate.probe.queries=30", {"probe"}),
        ("encoder.pooling=last", set()),
        ("encoder.max_tokens=32", {"probe"}),
        ("encoder.bidirectional=true", {"probe"}),
        ("pretrain.max_steps=7", set()),
    ],
)
def test_a_change_reaches_only_what_depends_on_it(override: str, changed: set[str]) -> None:
    before, after = stages(), stages(override)
    assert {n for n in ("base", "probe", "truncate") if before[n].config != after[n].config} == changed


def test_the_source_is_the_named_one_or_the_first_that_is_on() -> None:
    assert "synth" in stages()["probe"].needs
    assert "mine" in stages("truncate.probe.source=mine")["probe"].needs
    assert "pairs" in stages('pairs={files = ["x.jsonl"]}')["probe"].needs


def test_a_local_base_counts_by_its_files(tmp_path: Path) -> None:
    import tomllib

    from launch.recipe import Recipe

    tree = tomllib.loads(TINY.read_text())
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    recipe = Recipe(**{**tree, "base": {"model": str(tmp_path)}})
    graph = {s.name: s for s in Plan(recipe, tmp_path / "run", None).stages()}
    for name in ("probe", "truncate"):  # these read the weights: base.json holds only the name
        assert {f.name for f in graph[name].external()} == {"config.json", "model.safetensors"}


def test_the_command_works_without_a_table_and_prints_what_each_depth_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "plain.toml"
    text = TINY.read_text().replace("[truncate.probe]\nqueries = 20\npassages = 60\n", "")
    recipe.write_text(text.replace("documents = 300", "documents = 120", 1))
    assert "truncate.probe" not in recipe.read_text()
    with pytest.raises(SystemExit) as ended:
        main(["probe", str(recipe), "--runs", str(tmp_path / "runs")])
    out = capsys.readouterr()
    assert ended.value.code == 0, out.err
    record = read_json(tmp_path / "runs" / "tiny" / "probe" / "probe.json")
    assert [r["layers"] for r in record["rows"]] == [0, 1, 2, 3]
    assert f"{record['rows'][2]['recall']['mean']:.3f}" in out.out
    assert "<- truncate.layers" in out.out
    assert not (tmp_path / "runs" / "tiny" / "truncate").exists()
    assert "probe" not in {s.name for s in Plan(load_recipe(str(recipe))[0], tmp_path, None).stages()}
