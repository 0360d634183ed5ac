"""The page that compares runs pairs what can be paired, says what cannot, and shows what differs and nothing else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.errors import UserError
from eval.metrics import metric_names
from eval.report import compare
from eval.report.compare import MOST, write_comparison
from eval.report.compare_parts import unpaired
from eval.report.sides import per_query, read_sides, recipe_differences
from tests.eval.run_fixture import write_run
from tests.eval.test_report import parsed
from tests.eval.test_report_evidence import part

SWAPPED = {"finetuned": "pretrained", "pretrained": "finetuned"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`first`, and `second` whose finetuned model is what the pretrained one of `first` is."""
    root = tmp_path_factory.mktemp("runs")
    first = write_run(root, queries=30).rename(root / "first")
    second = Path(shutil.copytree(first, root / "second"))
    path = second / "eval" / "results.json"
    results = json.loads(path.read_text())
    for row in (*results["rows"], *results["means"]):
        row["system"] = SWAPPED.get(row["system"], row["system"])
    path.write_text(json.dumps(results))
    ranks = second / "eval" / "ranks"
    for one in ranks.glob("finetuned__*"):
        other = ranks / one.name.replace("finetuned", "pretrained")
        one.rename(ranks / "aside")
        other.rename(one)
        (ranks / "aside").rename(other)
    recipe = second / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("seed = 7", "seed = 8") + "\n[finetune]\nlearning_rate = 2e-5\n")
    return root


@pytest.fixture(autouse=True)
def words_alone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of the time and says nothing to these tests, but for the one that looks at the whole page."""
    if request.node.name != "test_the_page_is_whole_and_does_not_change":
        monkeypatch.setattr(compare, "_charts", lambda *_: [])
        monkeypatch.setattr(compare, "curves", lambda _: None)


@pytest.fixture
def runs(made: Path, tmp_path: Path) -> list[Path]:
    shutil.copytree(made, tmp_path / "runs")
    return [tmp_path / "runs" / "first", tmp_path / "runs" / "second"]


def compared(runs: list[Path]) -> tuple[str, dict[str, int]]:
    out = runs[0].parent / "compare.html"
    counts = write_comparison(runs, out=out)
    return out.read_text(encoding="utf-8"), counts


def change(path: Path, edit: Any) -> None:
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def test_differences_are_those_of_the_paired_queries(runs: list[Path]) -> None:
    html, counts = compared(runs)
    assert counts["runs"] == 2 and counts["sets"] == counts["paired"] == 3
    words = part(html, "What is better, and where")
    results = json.loads((runs[0] / "eval" / "results.json").read_text())
    means = []
    for name in ("news", "forum", "law"):  # by hand, from the rankings: one relevant document a query
        found = [
            pq.read_table(run / "eval" / "ranks" / f"finetuned__{name}.parquet").sort_by("query_id").to_pydict()
            for run in runs
        ]
        assert found[0]["query_id"] == found[1]["query_id"]
        hit = [np.array([r is not None and r <= 10 for r in told["relevant_rank"]], dtype=float) for told in found]
        means.append(float((hit[1] - hit[0]).mean()))
        assert f"{name} 30 queries, paired {means[-1]:+.3f}".replace("-", "−") in words
    # the same pair of rankings in one run: evaluate itself gave the interval
    gain = next(d for d in results["differences"] if d["against"] == "pretrained" and d["subset"] == "all")
    gain = gain["metrics"]["recall@10"]
    assert np.mean(means) == pytest.approx(-gain["mean"], abs=1e-6)
    shown = re.search(r"mean over sets paired (\S+) (\S+) to (\S+)", words)
    assert shown and [float(v.replace("−", "-")) for v in shown.groups()] == pytest.approx(
        [-gain["mean"], -gain["high"], -gain["low"]], abs=2e-3
    )
    assert "second is behind first by" in words


def test_the_headline_has_every_model_once(runs: list[Path]) -> None:
    change(
        runs[1] / "eval" / "results.json",
        lambda r: [m["metrics"]["recall@1"].update(mean=0.5) for m in r["means"] if m["system"] == "teacher"],
    )
    html, _ = compared(runs)
    table = html[html.index("<h2>Results") :].split("</table>")[0]
    names = re.findall(r'<th scope="row"[^>]*>(?:<span[^>]*></span>)?([^<]*)', table)
    assert names == [
        "first", "second", "bm25", "untrained", "all-minilm-l6-v2", "teacher (first)", "pretrained (first)",
        "teacher (second)", "pretrained (second)",
    ]  # fmt: skip
    assert "The best of 2 runs is first: recall@10" in html


def test_only_what_differs_in_the_recipes_is_shown(runs: list[Path]) -> None:
    html, _ = compared(runs)
    words = part(html, "How the recipes differ")
    assert "differ in 2 settings" in words and "seed 7 8" in words and "[finetune] off on" in words
    assert "eval_dev" not in words and "demo" not in words
    rows, without = recipe_differences(read_sides(runs))
    assert [row[0] for row in rows] == ["seed", "[finetune]"] and without == []
    (runs[1] / "recipe.toml").write_text("= broken")
    assert "Not compared: second keeps no recipe.toml." in part(compared(runs)[0], "How the recipes differ")


def test_older_rankings_are_paired_by_the_first_relevant(runs: list[Path]) -> None:
    names = metric_names([1, 3, 5, 10])
    new = per_query(read_sides(runs)[0], "law", names)
    for run in runs:
        for path in (run / "eval" / "ranks").glob("*.parquet"):
            told = pq.read_table(path)
            pq.write_table(told.select(["query_id", "document_ids", "scores", "relevant_rank"]), path)
    old = per_query(read_sides(runs)[0], "law", names)
    assert not isinstance(new, str) and not isinstance(old, str)
    assert new[0] == old[0] and np.abs(new[1] - old[1]).max() < 1e-12
    assert compared(runs)[1]["paired"] == 3


@pytest.mark.parametrize("kind", ["no file", "cut off", "another mean", "other queries"])
def test_what_cannot_be_paired_is_said(runs: list[Path], kind: str) -> None:
    path = runs[1] / "eval" / "ranks" / "finetuned__law.parquet"
    if kind == "no file":
        path.unlink()
    elif kind == "cut off":
        path.write_bytes(path.read_bytes()[:-40])
    elif kind == "another mean":

        def edit(results: dict[str, Any]) -> None:
            row = next(
                r for r in results["rows"] if (r["system"], r["set"], r["subset"]) == ("finetuned", "law", "all")
            )
            row["metrics"]["recall@10"]["mean"] -= 0.001

        change(runs[1] / "eval" / "results.json", edit)
    else:
        told = pq.read_table(path)
        ids = pa.array([f"other-{i}" for i in told["query_id"].to_pylist()])
        pq.write_table(told.set_column(0, "query_id", ids), path)
    html, counts = compared(runs)
    words = part(html, "What is better, and where")
    assert counts["paired"] == 2 and "law 30 queries, not paired" in words and "news 30 queries, paired" in words
    assert "mean over sets" not in words and "two independent means" in words
    first, second = read_sides(runs)
    gain = unpaired(first, second, "law", "recall@10")
    assert gain["low"] < gain["mean"] < gain["high"]


def test_an_unpaired_interval_is_wider_than_each_and_narrower_than_both(runs: list[Path]) -> None:
    first, second = read_sides(runs)
    a, b = (side.row("law")["metrics"]["recall@10"] for side in (first, second))  # type: ignore[index]
    gain = unpaired(first, second, "law", "recall@10")
    for side in ("low", "high"):
        arm = abs(gain[side] - gain["mean"])
        arms = [abs(b[side] - b["mean"]), abs(a["high" if side == "low" else "low"] - a["mean"])]
        assert max(arms) <= arm <= sum(arms) and arm == pytest.approx(np.hypot(*arms))


def test_sets_that_not_all_measured_are_left_out(runs: list[Path]) -> None:
    def edit(results: dict[str, Any]) -> None:
        results["sets"] = [s for s in results["sets"] if s["name"] != "news"]
        results["rows"] = [r for r in results["rows"] if r["set"] != "news"]
        next(s for s in results["sets"] if s["name"] == "forum")["documents"] += 1

    change(runs[1] / "eval" / "results.json", edit)
    html, counts = compared(runs)
    assert counts["sets"] == 1
    assert "news: not measured by second" in html and "forum: has other queries or documents in one of the runs" in html
    law = json.loads((runs[0] / "eval" / "results.json").read_text())["rows"]
    law = next(r for r in law if (r["system"], r["set"], r["subset"]) == ("finetuned", "law", "all"))
    table = html[html.index("<h2>Results") :].split("</table>")[0]
    first = table[table.index(">first</th>") :].split("</tr>")[0]
    value = law["metrics"]["recall@10"]
    assert (
        f"{value['mean']:.3f}<small>{value['low']:.3f}–{value['high']:.3f}" in first
    )  # the mean of one set is that set
    change(
        runs[1] / "eval" / "results.json",
        lambda r: r["sets"].clear() or r["sets"].append({"name": "x", "queries": 1, "documents": 1}),
    )
    with pytest.raises(UserError, match="share no evaluation set"):
        compared(runs)


def test_the_page_is_whole_and_does_not_change(runs: list[Path]) -> None:
    html, counts = compared(runs)
    tags = parsed(html)
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(ids) == len(set(ids))
    linked = [a["href"] for tag, a in tags.tags if tag == "a"]
    assert linked == [f"#{a['id']}" for tag, a in tags.tags if tag == "section"]
    assert not {tag for tag, _ in tags.tags} & {"script", "link", "img", "iframe"}
    assert not re.search(r"url\((?!#)|@import", html)
    assert all("scope" in attributes for tag, attributes in tags.tags if tag == "th")
    assert counts["charts"] == html.count("<svg") == 4 and "var(--run1)" in html
    assert html.count(">first</text>") >= 2  # in both curves
    assert compared(runs)[0] == html


def test_mistakes_are_one_line(runs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    for given, words in (
        (runs[:1], "1 runs: a comparison takes 2 to"),
        (runs[:1] * (MOST + 1), f"{MOST + 1} runs"),
        ([runs[0], runs[0]], "is named twice"),
        ([runs[0], tmp_path], "holds no finished stage"),
    ):
        with pytest.raises(UserError, match=words):
            write_comparison(given, out=out)
    (runs[1] / "eval" / "results.json").unlink()
    with pytest.raises(UserError, match=r"has no results to compare \(the run has no eval/results.json\)"):
        write_comparison(runs, out=out)
    assert not out.exists()
