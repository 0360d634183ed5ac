"""The page shows what the probe and the meter wrote, as they wrote it, and nothing where they wrote nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from eval.report.page import write_report
from tests.eval.run_fixture import write_run


def figure(mean: float, width: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width}


def probe_record(depth: int = 20) -> dict[str, Any]:
    """A base whose depth 9 is the best."""
    means = [0.6 - 0.002 * (layers - 9) ** 2 for layers in range(depth + 1)]
    rows = [
        {"layers": i, "parameters": 10_000_000 + 7_000_000 * i, "recall": figure(m), "against_all": figure(m - means[-1]),
         "turn": None if i == 0 else 0.3 / i}
        for i, m in enumerate(means)
    ]  # fmt: skip
    return {
        "base_layers": depth, "queries": 150, "passages": 1234, "source": "synth", "metric": "recall@10", "level": 0.95,
        "samples": 1000, "convention": "mean <pooled>", "rows": rows, "best_layers": 9, "enough_layers": 6,
    }  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of before there were probes and shares."""
    return write_run(tmp_path_factory.mktemp("plain"), queries=12)


@pytest.fixture
def run(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "run"))


def page(run: Path) -> tuple[str, dict[str, int | float]]:
    out = run.parent / "out"
    out.mkdir(exist_ok=True)
    counts = write_report(run=run, out=out, title="demo")
    return (out / "report.html").read_text(encoding="utf-8"), counts


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def put_probe(run: Path, record: dict[str, Any], layers: int | list[int]) -> None:
    (run / "probe").mkdir()
    (run / "probe" / "probe.json").write_text(json.dumps(record))
    change(run / "truncate" / "stage.json", config={"truncate": {"layers": layers}})


def rows_of(html: str) -> dict[str, str]:
    section = html[html.index("<h2>What a cut costs") :].split("</section>")[0]
    found = re.findall(r"<tr( class=\"chosen\")?><th scope=\"row\">([^<]*)</th>(.*?)</tr>", section, re.DOTALL)
    return {label: ("*" if chosen else "") + re.sub(r"<[^>]+>", " ", cells) for chosen, label, cells in found}


def test_a_run_without_them_shows_neither(run: Path) -> None:
    html, counts = page(run)
    assert "What a cut costs" not in html and 'class="facts"' not in html and "MFU" not in html
    assert counts["missing"] == 0


def test_the_cut_is_marked_in_the_probes_own_figures(run: Path) -> None:
    put_probe(run, probe_record(), 4)
    html, counts = page(run)
    assert counts["charts"] == 9 and counts["missing"] == 0
    assert "This cut keeps 4 of 20 layers: recall@10 0.550, where the best depth has 0.600." in html
    assert "Best with 9 layers; from 6 on, the loss to that is within the 95 % interval." in html
    assert "150 queries and 1,234 passages of “synth”" in html
    assert "Mean &lt;pooled&gt;" in html
    rows = rows_of(html)
    assert set(rows) >= {"0", "4", "9", "20"} and len(rows) <= 11
    assert [label for label, cells in rows.items() if cells.startswith("*")] == ["4"]
    assert "38 M" in rows["4"] and "0.550" in rows["4"] and "0.500" in rows["4"]
    assert "+0.000" in rows["20"]


def test_a_list_cut_has_a_row_of_its_own(run: Path) -> None:
    kept = [0, 1, 8]
    put_probe(
        run, probe_record() | {"cut": {**probe_record()["rows"][3], "layers": kept, "recall": figure(0.42)}}, kept
    )
    html, _ = page(run)
    assert "This cut keeps 3 of 20 layers: recall@10 0.420" in html
    rows = rows_of(html)
    assert [label for label, cells in rows.items() if cells.startswith("*")] == ["0, 1, 8"]
    assert "0.420" in rows["0, 1, 8"]
    assert "this cut: layers 0, 1, 8" in html


def test_a_list_that_is_a_prefix_is_the_depth_itself(run: Path) -> None:
    put_probe(run, probe_record(), [0, 1, 2])
    assert [label for label, cells in rows_of(page(run)[0]).items() if cells.startswith("*")] == ["3"]


@pytest.mark.parametrize("kind", ["cut off", "empty", "no file"])
def test_a_damaged_probe_is_named(run: Path, kind: str) -> None:
    put_probe(run, {} if kind == "empty" else probe_record(), 4)
    path = run / "probe" / "probe.json"
    if kind == "cut off":
        path.write_text(path.read_text()[:50])
    elif kind == "no file":
        path.unlink()
    html, counts = page(run)
    assert counts["missing"] == 1 and "depth probe:" in html and "What a cut costs" not in html


def facts_of(html: str, title: str) -> dict[str, str]:
    part = html[html.index(f"<h3>{title}</h3>") :].split("</figure>")[0]
    return dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", part))


def test_the_meters_figures_are_shown_as_written(run: Path) -> None:
    summary = {"tokens_per_s": 35611.4, "pairs_per_s": 912.3, "padding": 0.036, "data_wait": 0.0055, "gather": 0.026,
               "trunk_mfu": 0.412, "hfu": 0.534, "flops_convention": "what <MFU> counts", "layout": "packed"}  # fmt: skip
    change(run / "finetune" / "summary.json", **summary)
    path = run / "finetune" / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for i, record in enumerate(r for r in records if "loss" in r):
        # the first step is no measure of the others
        record |= {"kept_chunks": 2 if i else 90, "chunks": 4, "rank_imbalance": 0.03,
                   "duplicates_in_batch": 0, "gather": 0.9, "data_wait": 0.1, "source": "synth"}  # fmt: skip
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    html, _ = page(run)
    assert facts_of(html, "Contrastive finetuning") == {
        "tokens/s": "35,611",
        "pairs/s": "912",
        "trunk MFU": "41.2 %",
        "HFU": "53.4 %",
        "padding, of the computed tokens": "3.6 %",
        "waiting for data, of the time": "0.5 %",
        "exchanging embeddings, of the time": "2.6 %",
        "tokens of the busiest rank above the mean": "3.0 %",
        "forward passes of a rank in a step": "4",
        "of these kept their graph": "2",
        "samples of a batch that share a text": "0",
    }
    assert html.count("what &lt;MFU&gt; counts") == 1
    assert "fp32, packed on cpu" in html
    assert facts_of(html, "Continued pretraining") == {}
    assert html.count("waiting for data</text>") == 1


def test_the_convention_stays_away_where_no_mfu_is_claimed(run: Path) -> None:
    change(run / "pretrain" / "summary.json", padding=0.0, flops_convention="what MFU counts")
    html, _ = page(run)
    assert facts_of(html, "Continued pretraining") == {"padding, of the computed tokens": "0.0 %"}
    assert "what MFU counts" not in html
