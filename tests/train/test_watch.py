"""What is measured beside the training: which sample, which recall, and when there is time for it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from train.guard import StopRequest
from train.watch import Watched, Watching, draw_watched, recall


def make_set(folder: Path, *, documents: int = 30, queries: int = 12) -> Path:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(len(folder.name))
    for name, count in (("corpus", documents), ("queries", queries)):
        rows = [json.dumps({"_id": f"{name[0]}{i}", "text": f"{folder.name} {name} {i}"}) for i in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    lines = [f"q{q}\tc{d}\t1" for q in range(queries) for d in sorted(rng.choice(documents, 1 + q % 3, replace=False))]
    (folder / "qrels.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder


def test_a_sample_holds_the_answers_and_is_the_same_every_time(tmp_path: Path) -> None:
    folders = [make_set(tmp_path / name) for name in ("news", "forum")]
    first = draw_watched(folders, queries=10, documents=40, seed=1)
    assert [w.name for w in first] == ["news", "forum"]
    for sample in first:
        assert (len(sample.queries), len(sample.documents)) == (5, 20)
        qrels = (tmp_path / sample.name / "qrels.tsv").read_text().splitlines()[1:]
        judged = {tuple(line.split("\t")[:2]) for line in qrels}
        for query, places in zip(sample.queries, sample.relevant, strict=True):
            own = {("q" + query.split()[-1], "c" + sample.documents[p].split()[-1]) for p in places}
            assert own == {pair for pair in judged if pair[0] == "q" + query.split()[-1]}
    assert draw_watched(folders, queries=10, documents=40, seed=1) == first
    assert draw_watched(folders, queries=10, documents=40, seed=2) != first
    assert draw_watched(folders[:1], queries=5, documents=20, seed=1) == first[:1], "a set does not change the others"


def test_every_answer_comes_even_where_it_makes_too_many(tmp_path: Path) -> None:
    (sample,) = draw_watched([make_set(tmp_path / "news")], queries=12, documents=1, seed=0)
    assert len(sample.queries) == 12 and len(sample.documents) == len({d for row in sample.relevant for d in row})


def test_recall_is_that_of_trec_eval() -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    import torch

    rng = np.random.default_rng(0)
    queries, documents = (torch.tensor(rng.normal(size=(n, 8)), dtype=torch.float32) for n in (40, 60))
    relevant = [sorted(rng.choice(60, 1 + q % 4, replace=False).tolist()) for q in range(40)]
    scores = (queries.double() @ documents.double().T).tolist()
    judge = pytrec_eval.RelevanceEvaluator(
        {f"q{q}": {f"d{d}": 1 for d in row} for q, row in enumerate(relevant)}, {"recall.10"}
    )
    found = judge.evaluate({f"q{q}": {f"d{d}": s for d, s in enumerate(row)} for q, row in enumerate(scores)})
    wanted = np.mean([found[f"q{q}"]["recall_10"] for q in range(40)])
    sample = Watched("any", ["?"] * 40, ["."] * 60, relevant)
    assert recall(queries, documents, sample) == pytest.approx(float(wanted), abs=1e-12)


class Book:
    """Stands for the meter and the telemetry: keeps what it is told."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.paused = 0.0

    def log(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def pause(self, name: str, seconds: float) -> None:
        assert name == "evaluation"
        self.paused += seconds


def _watching(deadline: float | None, *, takes_s: float = 0.0) -> tuple[Watching, Book]:
    book = Book()

    def measure() -> dict[str, float]:
        time.sleep(takes_s)
        return {"eval/recall@10": 0.5}

    survival: Any = SimpleNamespace(stop=StopRequest(deadline), at=lambda *place: None)
    return Watching(measure, every=4, meter=book, telemetry=book, survival=survival), book  # type: ignore[arg-type]


def test_it_is_measured_every_so_many_steps_and_at_the_end() -> None:
    watching, book = _watching(None, takes_s=0.01)
    watching.after(0)
    for step in range(1, 11):
        watching.after(step, ended=step == 10)
    assert [r["step"] for r in book.records] == [0, 4, 8, 10]
    assert all(r["eval/recall@10"] == 0.5 and r["eval_s"] >= 0.01 for r in book.records)
    assert book.paused >= 0.04


def test_near_the_deadline_a_step_and_a_save_come_first() -> None:
    watching, book = _watching(time.time() + 100, takes_s=0.02)
    watching.after(4, needed_s=lambda: 99.0)
    watching.after(8, needed_s=lambda: 99.99)  # 0.02 s more would be too late
    watching.after(12, needed_s=lambda: 1.0)
    assert [r["step"] for r in book.records] == [4, 12]
