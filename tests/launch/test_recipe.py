"""Recipes: strict, typed, explained; every mistake is one line with value, rule and fix."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.needs import needs_of
from launch.recipe import RECIPES, Recipe, fields_of, load_recipe, show

NAMES = sorted(p.stem for p in RECIPES.glob("*.toml"))


def test_the_promised_recipes_are_there() -> None:
    assert {"demo", "malaysian-600m", "malaysian-1b", "malaysian-2b", "malay-real-small"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_in_the_tree_is_valid_and_says_what_it_needs(name: str) -> None:
    recipe, _ = load_recipe(name)
    assert recipe.name == name and recipe.about
    lines = "\n".join(needs_of(recipe, data=None))
    assert all(word in lines for word in ("data:", "base:", "size:", "disk:", "host:", "pretrain:", "finetune:"))


@pytest.mark.parametrize("name", NAMES)
def test_show_prints_a_recipe_that_means_the_same(name: str) -> None:
    recipe, _ = load_recipe(name)
    assert Recipe(**tomllib.loads("\n".join(show(recipe)))) == recipe


def test_every_field_has_a_one_line_reason() -> None:
    silent = [key for key, reason in fields_of(Recipe) if len(reason) < 15]
    assert not silent


def test_the_papers_three_cuts() -> None:
    cuts = {}
    for name in ("malaysian-600m", "malaysian-1b", "malaysian-2b"):
        recipe, _ = load_recipe(name)
        cuts[name] = (recipe.base.model, recipe.truncate.layers)
        assert recipe.finetune.blend["synth"] == 1.0 and recipe.finetune.blend["mine"] == 0.3
    assert cuts == {
        "malaysian-600m": ("meta-llama/Llama-2-7b-hf", 2),
        "malaysian-1b": ("meta-llama/Llama-2-7b-hf", 4),
        "malaysian-2b": ("meta-llama/Llama-2-13b-hf", 5),
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("finetune.temprature=0.02", r"finetune\.temprature.*unknown key.*did you mean 'finetune\.temperature'"),
        ("finetoon.temperature=0.02", r"finetoon.*unknown key.*did you mean 'finetune'"),
        ("finetune.temperature=hot", r'finetune\.temperature = "hot".*valid number'),
        ("finetune.temperature=0.0", r"finetune\.temperature = 0\.0.*greater than 0"),
        ("pretrain.batch_rows=-4", r"pretrain\.batch_rows = -4.*greater than 0"),
        ("pretrain.batch_rows=0", r"pretrain\.batch_rows = 0.*greater than 0"),
        ("pretrain.batch_rows=1.5", r"pretrain\.batch_rows = 1\.5.*integer"),
        ("pretrain.batch_rows='16'", r'pretrain\.batch_rows = "16".*integer'),
        ("truncate.layers=9", r"truncate\.layers = 9: the base has only 8 layers\. Fix: set truncate\.layers to 8"),
        ("truncate.layers=0", r"truncate\.layers = 0: must keep at least one layer\. Fix: set truncate\.layers to 1"),
        ("truncate.layers=[3, 1]", r"truncate\.layers = \[3, 1\]: must be layer numbers that rise.*Fix: .*\[1, 3\]"),
        ("truncate.layers=[0, 8]", r"truncate\.layers = \[0, 8\]: the base has no layer 8, only 8 layers from 0 to 7"),
        ("truncate.layers=two", r"truncate\.layers = 'two': must be a number of layers or a list of layer numbers"),
        ("truncate.probe={source = 'pairs'}", r"truncate\.probe\.source = 'pairs': this source is switched off.*Fix: add"),
        ("truncate.probe={quereis = 9}", r"truncate\.probe\.quereis.*did you mean 'truncate\.probe\.queries'"),
        ("launch.nproc=99", r"pretrain\.batch_rows = 4: must be at least 1 for each of the 99 processes\. Fix: use 99"),
        ("finetune.kept_chunks=some", r'finetune\.kept_chunks = "some".*valid integer or .*\'auto\' or \'all\''),
        ("finetune.loss=infonce", r"finetune\.loss = \"infonce\".*'info_nce', 'margin', 'triplet' or 'cosent'"),
        ("finetune.matryoshka=[0]", r"finetune\.matryoshka\.0 = 0.*greater than 0"),
        ("finetune.matryoshka=[999]", r"finetune\.matryoshka = \[999\]: holds a dimension above the model's 96\. Fix: use"),
        ("finetune.loss=triplet", r"finetune\.loss = 'triplet': needs stored negatives\. Fix: set finetune\.hard_negatives"),
        ("finetune.batch_pairs=1", r"finetune\.batch_pairs = 1.*greater than 1"),
        ("finetune.blend={pairs = 1.0}", r"finetune\.blend.*none of these is switched on.*Fix: add"),
        ("finetune.blend={synht = 1.0}", r"finetune\.blend\.synht.*'synth'"),
        ("base.model=some/model", r"base.*either `model` or a \[base\.random\] table"),
        ("base.random.heads=5", r"hidden \(96\) must be a multiple of heads \(5\)"),
        ("name='../x; rm -rf'", r"name = .*pattern"),
        ("pretrain.precision=bf16 pretrain.zero_stage=0", r"zero_stage = 0.*Fix: set zero_stage to 1"),
        ("nonsense", r"must look like table\.key=value"),
        ("seed.x=1", r"'seed' is not a table"),
    ],
)  # fmt: skip
def test_mistakes_name_value_rule_and_fix(override: str, words: str) -> None:
    parts = override.split(" ") if override.startswith("pretrain.precision") else [override]
    with pytest.raises(UserError, match=words) as caught:
        load_recipe("demo", parts)
    assert "\n" not in str(caught.value) and "Fix: " in str(caught.value)


def test_overrides_reach_every_type() -> None:
    recipe, _ = load_recipe(
        "demo",
        ["finetune.temperature=0.02", "pretrain.max_steps=3", "eval.bm25=false", "about=hello there", "name=other"],
    )
    assert (recipe.finetune.temperature, recipe.pretrain.max_steps, recipe.eval.bm25) == (0.02, 3, False)
    assert (recipe.about, recipe.name) == ("hello there", "other")


def test_a_recipe_that_is_not_there_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match=r"recipe 'dmeo': no such file or recipe\. Fix: did you mean 'demo'"):
        load_recipe("dmeo")


def test_broken_toml_names_the_place(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('name = "x"\n[corpus\n')
    with pytest.raises(UserError, match=r"bad\.toml: is not valid TOML .*line 2"):
        load_recipe(str(bad))
    bad.write_bytes(b'name = "\xff"')
    with pytest.raises(UserError, match="is not valid TOML"):
        load_recipe(str(bad))
