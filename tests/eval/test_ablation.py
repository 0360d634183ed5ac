"""What an ablation says of its cells: the evaluation's own figures, and differences on the same queries and no others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.progress import Progress
from eval import metrics
from eval.ablation import Measured, Measurements, cell_metrics, correct, difference, paired
from eval.ablation_page import forest, label, page, table_lines, verdict
from eval.retrieval import EvalConfig, evaluate, rank_file
from eval.systems.listing import System
from tests.eval.run_fixture import PlantedRanker, write_set

METRIC = "recall@10"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("sets")
    return [
        write_set(root / "news", documents=60, queries=40, seed=0),
        write_set(root / "law", documents=30, queries=12, seed=1, hard=False),
    ]


def evaluated(out: Path, sets: list[Path], *systems: System, seed: int = 1) -> dict[str, Any]:
    out.mkdir(parents=True)
    config = EvalConfig(sets=["x"], bootstrap_samples=300)
    evaluate(config, sets=sets, systems=list(systems), out=out, seed=seed, progress=Progress())
    return dict(json.loads((out / "results.json").read_text()))


def model(strength: float, draw: int, name: str = "finetuned") -> System:
    kind = "finetuned" if name == "finetuned" else "pretrained"
    return System(name, kind, name, lambda: PlantedRanker(strength, draw))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, sets: list[Path]) -> Path:
    """Evaluations of a weak model, a strong one, and the strong one beside the weak."""
    root = tmp_path_factory.mktemp("cells")
    evaluated(root / "weak", sets, model(1.0, 1))
    evaluated(root / "strong", sets, model(3.0, 2))
    evaluated(root / "both", sets, model(1.0, 1, "pretrained"), model(3.0, 2))
    return root


def read(folder: Path, sets: list[Path]) -> Measured:
    return Measurements().read(folder, sets)


def test_one_seed_has_the_figures_of_its_evaluation(folder: Path, sets: list[Path]) -> None:
    results = json.loads((folder / "strong" / "results.json").read_text())
    told = next(m for m in results["means"] if m["subset"] == "all")["metrics"]
    assert cell_metrics([read(folder / "strong", sets)]) == told


def test_a_difference_is_the_one_that_an_evaluation_of_both_tells(folder: Path, sets: list[Path]) -> None:
    strong, weak = read(folder / "strong", sets), read(folder / "weak", sets)
    assert paired([strong], [weak])
    found = difference([strong], [weak], METRIC)
    results = json.loads((folder / "both" / "results.json").read_text())
    told = next(d for d in results["differences"] if d["against"] == "pretrained" and d["subset"] == "all")
    told = told["metrics"][METRIC]
    assert [found[k] for k in ("mean", "low", "high")] == [told[k] for k in ("mean", "low", "high")]
    assert found["p_value"] == pytest.approx(told["p_value"], abs=2e-3) and found["mean"] > 0


def plain_recall(evaluation: Path, folder: Path, k: int = 10) -> dict[str, float]:
    """Recall of each query, from the stored rankings and the qrels, in loops."""
    task = load_set(folder)
    rows = pq.read_table(evaluation / "ranks" / rank_file("finetuned", task.name)).to_pylist()
    judged = task.relevant["all"]
    return {
        row["query_id"]: sum(d in judged[row["query_id"]] for d in row["document_ids"][:k])
        / len(judged[row["query_id"]])
        for row in rows
        if row["query_id"] in judged
    }


def test_seeds_on_the_same_queries_count_each_query_once(folder: Path, sets: list[Path]) -> None:
    a, b = read(folder / "strong", sets), read(folder / "weak", sets)
    two, base = cell_metrics([a, b])[METRIC], [b, b]
    by_set = []
    for task in sets:
        values = [plain_recall(folder / name, task) for name in ("strong", "weak")]
        by_set.append([(values[0][q] + values[1][q]) / 2 for q in values[0]])
    assert two["mean"] == pytest.approx(np.mean([np.mean(v) for v in by_set]), abs=1e-6)
    # resampled by hand: a query is drawn with both of its values
    drawn = []
    for task, values in zip(sets, by_set, strict=True):
        rng = metrics.generator(1, task.name, "all")
        drawn.append(np.array(values)[rng.integers(0, len(values), size=(300, len(values)))].mean(axis=1))
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    assert (two["low"], two["high"]) == (pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6))
    gain = difference([a, b], base, METRIC)
    assert gain["mean"] == pytest.approx(difference([a], [b], METRIC)["mean"] / 2, abs=2e-6)


def test_seeds_with_queries_of_their_own_are_strata(folder: Path, sets: list[Path], tmp_path: Path) -> None:
    others = [write_set(tmp_path / s.name, documents=n, queries=q, seed=7, hard=s.name == "news")
              for s, n, q in zip(sets, (60, 30), (40, 12), strict=True)]  # fmt: skip
    evaluated(tmp_path / "eval", others, model(3.0, 5), seed=2)
    first, second = read(folder / "strong", sets), read(tmp_path / "eval", others)
    found = cell_metrics([first, second])[METRIC]
    means = [one.means[METRIC]["mean"] for one in (first, second)]
    assert found["mean"] == pytest.approx(np.mean(means), abs=2e-6)
    # twice as many queries were asked: the interval is narrower than either seed's own
    widths = [one.means[METRIC]["high"] - one.means[METRIC]["low"] for one in (first, second)]
    assert found["high"] - found["low"] < max(widths)
    assert not paired([second], [first]) and paired([first, second], [first, second])
    assert difference([first, second], [first, second], METRIC)["p_value"] == 1.0


def test_other_queries_or_documents_are_not_compared(folder: Path, sets: list[Path], tmp_path: Path) -> None:
    changed = [Path(shutil.copytree(s, tmp_path / s.name)) for s in sets]
    corpus = next(p for p in changed[1].iterdir() if p.name.startswith("corpus"))
    weak = read(folder / "weak", sets)
    assert paired([read(folder / "strong", changed)], [weak])  # a copy is the same set
    corpus.write_bytes(corpus.read_bytes() + b"\n")
    assert not paired([read(folder / "strong", changed)], [weak])


def test_rankings_that_do_not_give_the_results_are_refused(folder: Path, sets: list[Path], tmp_path: Path) -> None:
    shutil.copytree(folder / "strong", tmp_path / "eval")
    shutil.copy(folder / "weak" / "ranks" / rank_file("finetuned", "news"), tmp_path / "eval" / "ranks")
    with pytest.raises(UserError, match="its rankings do not give its results"):
        read(tmp_path / "eval", sets)
    evaluated(tmp_path / "none", sets, model(1.0, 1, "pretrained"))
    with pytest.raises(UserError, match="does not hold 'finetuned'"):
        read(tmp_path / "none", sets)
    with pytest.raises(UserError, match="set 'law'"):
        read(folder / "strong", sets[:1])


def cell(
    name: str, settings: dict[str, Any], mean: float, gain: dict[str, float] | None, **more: Any
) -> dict[str, Any]:
    seeds = [{"seed": 0, "run": name, "state": "done", "reason": "", "mean": mean}]
    return {
        "name": name, "settings": settings, "run": name, "state": "done", "reason": "", "difference": gain,
        "metrics": {METRIC: {"mean": mean, "low": mean - 0.02, "high": mean + 0.02}}, "comparable": None, "seeds": seeds,
        "spread": None, **more,
    }  # fmt: skip


@pytest.fixture
def table() -> dict[str, Any]:
    def gain(mean: float, p: float) -> dict[str, float]:
        return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "p_value": p}

    failed = {"state": "failed", "reason": "stage <mine>: no pairs", "metrics": {}}
    lost = [{"seed": 0, "run": "x", "state": "failed", "reason": "stage <mine>: no pairs", "mean": None}]
    cells = [
        cell("base", {}, 0.8, None),
        cell("t-0.02", {"finetune.temperature": 0.02}, 0.85, gain(0.05, 0.0004)),
        cell("last", {"encoder.pooling": "last"}, 0.7, gain(-0.1, 0.0001)),
        cell("true", {"encoder.bidirectional": True}, 0.801, gain(0.001, 0.7)),
        cell("corpus", {"corpus.held_out": 0.2}, 0.6, None, comparable=False),
        cell("x", {"finetune.blend": {"synth": 1.0}, "mine.query": "<b>"}, 0.0, None, **failed, seeds=lost),
    ]
    cells[-1]["metrics"] = {}
    correct(cells)
    return {
        "recipe": "tiny", "axes": {"finetune.temperature": [0.02]}, "base": {"finetune.temperature": 0.05},
        "metric": METRIC, "seeds": [0], "cells": cells,
    }  # fmt: skip


def test_holm_corrects_for_all_cells_that_were_compared(table: dict[str, Any]) -> None:
    assert [c["difference"]["p_holm"] for c in table["cells"] if c["difference"]] == [0.0008, 0.0003, 0.7]
    words = [verdict(c) for c in table["cells"]]
    assert words == ["", "better", "worse", "no difference shown", "other queries", ""]


def test_lines_show_every_cell_and_why_one_is_missing(table: dict[str, Any]) -> None:
    lines = table_lines(table)
    rows = {line.split("  ")[0]: line for line in lines}
    assert "0.850 [0.830, 0.870]  +0.050 [+0.040, +0.060]  < 0.001  better" in rows["finetune.temperature = 0.02"]
    assert rows["base"].split() == ["base", "0.800", "[0.780,", "0.820]"]
    assert any(line == "x: failed: stage <mine>: no pairs" for line in lines)
    assert any(line.startswith("one seed: that training draws by chance") for line in lines)
    table["seeds"] = [0, 1]
    for one in table["cells"]:
        one["seeds"] = [*one["seeds"], {**one["seeds"][0], "mean": None, "state": "failed"}]
    table["cells"][1]["spread"] = {"low": 0.84, "high": 0.86}
    rows = {line.split("  ")[0]: line for line in table_lines(table)}
    assert rows["finetune.temperature = 0.02"].endswith("0.840 to 0.860 1 of 2") and rows["base"].endswith("1 of 2")


def test_the_page_is_whole_and_escapes_what_it_is_told(table: dict[str, Any]) -> None:
    text = page(table)
    assert "<script" not in text and "src=" not in text and 'href="http' not in text
    assert "&lt;b&gt;" in text and "<b>" not in text and "stage &lt;mine&gt;: no pairs" in text
    assert (
        "Of 3 changes measured: 1 better, 1 worse than the base, 1 without a difference shown. 2 not compared." in text
    )
    assert text.count("<tr") == 1 + len(table["cells"])
    assert all(label(c["settings"]).replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;") in text
               for c in table["cells"])  # fmt: skip


def test_the_plot_is_the_same_every_time_and_has_no_colours_of_its_own(table: dict[str, Any]) -> None:
    drawn = forest(table)
    assert drawn == forest(table) and drawn.startswith("<svg")
    assert not re.search(r"#[0-9a-f]{6}\b", drawn) and "var(--warn)" in drawn and "var(--finetuned)" in drawn
    assert drawn.count("encoder.") == 2  # only cells that were compared
    table["cells"] = table["cells"][:1]
    assert "<svg" not in page(table) and "none of them measured" in page(table)
