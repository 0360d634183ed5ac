"""Which differences between a history and now are refused, which are told, and how."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_prep.errors import UserError
from train.history.identity import FORMAT, Identity, enter, flat, folder_fingerprint
from train.pretrain import PretrainConfig


def identity(**changes: Any) -> Identity:
    config = PretrainConfig(**changes)
    return Identity(
        phase="pretrain",
        seed=0,
        config=flat("pretrain", config.model_dump(mode="json")),
        harmless=frozenset(f"pretrain.{name}" for name in config.HARMLESS),
        batch="pretrain.batch_rows",
        data={"tokens": "a" * 64},
        model="m" * 64,
        sizes={"trunk_parameters": 1000, "layers": 2},
    )


def test_the_first_start_makes_a_history_and_the_same_thing_goes_on_with_it(tmp_path: Path) -> None:
    made, notes = enter(tmp_path / "history", identity())
    again, more = enter(tmp_path / "history", identity())
    assert made == again
    assert made["order_batch"] == PretrainConfig().batch_rows
    assert notes == more == []


def test_two_histories_have_different_names(tmp_path: Path) -> None:
    assert enter(tmp_path / "a", identity())[0]["history"] != enter(tmp_path / "b", identity())[0]["history"]


def test_settings_that_change_no_number_are_told_and_allowed(tmp_path: Path) -> None:
    enter(tmp_path, identity(precision="fp32"))
    _, notes = enter(tmp_path, identity(precision="fp32", zero_stage=3, micro_batch_tokens=64))
    assert notes == [
        "pretrain.micro_batch_tokens 16384 -> 64: changes nothing in the result",
        "pretrain.zero_stage 1 -> 3: changes nothing in the result",
    ]


def test_another_recipe_is_refused_with_all_differences_and_which_are_harmless(tmp_path: Path) -> None:
    enter(tmp_path, identity())
    with pytest.raises(UserError) as refused:
        enter(tmp_path, identity(learning_rate=0.5, epochs=3, zero_stage=2))
    said = str(refused.value)
    assert "pretrain.learning_rate 2e-05 -> 0.5" in said
    assert "pretrain.epochs 1.0 -> 3.0" in said
    assert "harmless: pretrain.zero_stage 1 -> 2" in said
    assert "--fresh" in said


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 32, 48])
def test_a_batch_of_an_integer_factor_goes_on(tmp_path: Path, batch: int) -> None:
    enter(tmp_path, identity(batch_rows=16))
    record, notes = enter(tmp_path, identity(batch_rows=batch))
    assert record["order_batch"] == 16
    assert notes == [
        f"pretrain.batch_rows 16 -> {batch}: the same samples in the same order, and the rate goes by samples"
    ]


@pytest.mark.parametrize(("batch", "near"), [(5, "4 or 8"), (24, "16 or 32"), (17, "16 or 32")])
def test_another_batch_is_refused_with_the_nearest_that_work(tmp_path: Path, batch: int, near: str) -> None:
    enter(tmp_path, identity(batch_rows=16))
    with pytest.raises(UserError, match=f"use {near}"):
        enter(tmp_path, identity(batch_rows=batch))


def test_other_data_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    enter(tmp_path, identity())
    with pytest.raises(UserError) as refused:
        enter(tmp_path, replace(identity(), data={"tokens": "b" * 64}))
    assert "aaaaaaaaaaaaaaaa" in str(refused.value)
    assert "bbbbbbbbbbbbbbbb" in str(refused.value)
    with pytest.raises(UserError, match="'mine' has fingerprint"):
        enter(tmp_path, replace(identity(), data={"tokens": "a" * 64, "mine": "c" * 64}))


def test_another_model_is_refused_with_both_sizes(tmp_path: Path) -> None:
    enter(tmp_path, identity())
    with pytest.raises(UserError) as refused:
        enter(tmp_path, replace(identity(), model="n" * 64, sizes={"trunk_parameters": 2000, "layers": 4}))
    assert "4 layers, 2,000 trunk parameters" in str(refused.value)
    assert "2 layers, 1,000 trunk parameters" in str(refused.value)


def test_another_seed_is_refused(tmp_path: Path) -> None:
    enter(tmp_path, identity())
    with pytest.raises(UserError, match="seed 0 -> 7"):
        enter(tmp_path, replace(identity(), seed=7))


def test_a_newer_history_is_refused(tmp_path: Path) -> None:
    enter(tmp_path, identity())
    path = tmp_path / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT + 1}))
    with pytest.raises(UserError, match="newer rumpun"):
        enter(tmp_path, identity())


@pytest.mark.parametrize("content", ["{}", "[]", "3", '{"format": 1, "history": "x"}', '{"format": "1"}', "{"])
def test_an_identity_that_was_spoiled_is_told_in_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "identity.json").write_text(content)
    with pytest.raises(UserError, match=r"identity\.json"):
        enter(tmp_path, identity())


def test_a_history_without_its_identity_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is missing, but the history beside it is not"):
        enter(tmp_path, identity())


def test_the_fingerprint_of_a_model_folder_sees_every_weight(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"12345678")
    (tmp_path / "tokenizer.json").write_text("not part of it")
    first = folder_fingerprint(tmp_path)
    (tmp_path / "tokenizer.json").write_text("changed")
    assert folder_fingerprint(tmp_path) == first
    (tmp_path / "model.safetensors").write_bytes(b"12345679")
    assert folder_fingerprint(tmp_path) != first
