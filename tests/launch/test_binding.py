"""What a recipe's paths and models mean: what comes from outside the run is part of the keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.pipeline import Plan
from launch.recipe import load_recipe

TINY = Path(__file__).with_name("tiny.toml")


def plan(tmp_path: Path, *overrides: str) -> Plan:
    return Plan(load_recipe(str(TINY), overrides)[0], tmp_path / "run", tmp_path / "run" / "generate")


def test_own_files_count_beside_generated_ones(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_text('{"text": "satu"}\n')
    found = plan(tmp_path).outside(["{data}/corpora/*.jsonl.gz", str(own), "datasets:x/y"], "corpus.files")
    assert found == [own]


def test_own_evaluation_sets_count_beside_generated_ones(tmp_path: Path) -> None:
    folder = tmp_path / "sets" / "own"
    folder.mkdir(parents=True)
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n")
    (folder / "queries.jsonl").write_text("")
    bound = plan(tmp_path, f'eval.sets=["{{data}}/eval_dev/*", "{tmp_path}/sets/*"]')
    assert [path.name for path in bound.set_files()] == ["qrels.tsv", "queries.jsonl"]


@pytest.mark.parametrize("table", ["teacher", "second_teacher"])
def test_files_of_a_teacher_in_a_folder_count(table: str, tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / "1_Pooling").mkdir(parents=True)
    for name in ("model.safetensors", "config.json", "1_Pooling/config.json", "README.md"):
        (model / name).write_text("{}")
    given = f'mine.{table}={{kind = "sentence-transformers", model = "{model}"}}'
    assert {p.relative_to(model).as_posix() for p in plan(tmp_path, given).teacher_files()} == {
        "model.safetensors", "config.json", "1_Pooling/config.json",
    }  # fmt: skip
    assert plan(tmp_path).teacher_files() == []
