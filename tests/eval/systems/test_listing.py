"""Which systems are listed, in which order, and that none is loaded or left out in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.errors import UserError
from eval.retrieval import EvalConfig
from eval.systems.config import EndpointSystemConfig, SystemsConfig
from eval.systems.listing import build_systems
from eval.systems.tfidf import TfidfRanker


def names(config: EvalConfig, **folders: Any) -> list[tuple[str, str]]:
    return [(s.name, s.kind) for s in build_systems(config, **folders)]


@pytest.fixture
def history(tmp_path: Path) -> Path:
    for step in (20, 5):
        (tmp_path / "history" / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    return tmp_path / "history"


def test_nothing_new_is_on_by_default() -> None:
    assert names(EvalConfig(sets=["x"])) == [("bm25", "bm25")]


def test_all_that_can_be_asked_for_in_order(tmp_path: Path, history: Path) -> None:
    for name in ("untrained", "finetuned"):
        (tmp_path / name).mkdir()
    endpoint = EndpointSystemConfig(
        base_url="https://api.example.com/v1", model="v/ada", api_key_env="NOT_SET_ANYWHERE"
    )
    config = EvalConfig(sets=["x"], tfidf=True, baselines=["BAAI/bge-m3"], endpoints=[endpoint], checkpoints=True)
    listed = names(
        config, untrained=tmp_path / "untrained", finetuned=tmp_path / "finetuned", history=history,
        materialise=lambda checkpoint, out: None,
    )  # fmt: skip
    assert listed == [
        ("bm25", "bm25"), ("tfidf", "baseline"), ("bge-m3", "baseline"), ("ada", "baseline"), ("untrained", "untrained"),
        ("finetuned@5", "checkpoint"), ("finetuned@20", "checkpoint"), ("finetuned", "finetuned"),
    ]  # fmt: skip


def test_neither_key_nor_address_is_told() -> None:
    endpoint = EndpointSystemConfig(base_url="https://api.example.com/v1", model="ada", api_key_env="VENDOR_KEY")
    (_, system) = build_systems(EvalConfig(sets=["x"], endpoints=[endpoint]))
    assert "example" not in system.detail and "VENDOR" not in system.detail and "ada" in system.detail


def test_an_endpoint_in_one_pair_of_brackets_is_told() -> None:
    with pytest.raises(ValidationError, match=r"write \[\[eval\.endpoints\]\]"):
        SystemsConfig(endpoints={"base_url": "https://api.example.com/v1", "model": "ada"})  # type: ignore[arg-type]


def test_the_terms_reach_the_ranker() -> None:
    (_, system) = build_systems(EvalConfig(sets=["x"], tfidf=True, tfidf_terms="char"))
    ranker = system.load()
    assert isinstance(ranker, TfidfRanker) and ranker.terms == "char" and "character" in system.detail


def test_checkpoints_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no checkpoint"):
        names(EvalConfig(sets=["x"], checkpoints=True), history=tmp_path, materialise=lambda checkpoint, out: None)
    with pytest.raises(ValueError, match="needs a history"):
        names(EvalConfig(sets=["x"], checkpoints=True))
