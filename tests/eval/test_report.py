"""The page is whole, alone, deterministic and safe; what is missing is named; the figures are those of the files."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from data_prep.errors import UserError
from eval.report.charts import compact
from eval.report.page import write_report
from eval.table import best_systems, print_results, results_lines
from tests.eval.run_fixture import write_run

EVIL = " <script>alert(1)</script><img src=x onerror=y> & 'a' \"b\" {{ 7*7 }} $x_1$"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("whole"), queries=40, text=EVIL)


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    return page(run, tmp_path_factory.mktemp("page"))[0]


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def page(run: Path, out: Path, title: str = "demo") -> tuple[str, dict[str, int | float]]:
    out.mkdir(parents=True, exist_ok=True)
    counts = write_report(run=run, out=out, title=title)
    return (out / "report.html").read_text(encoding="utf-8"), counts


class Tags(HTMLParser):
    """Every tag with its attributes, the open ones at the end, and the text outside of styles."""

    void = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def parsed(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    assert not tags.open
    return tags


def test_the_page_is_well_formed_and_stands_alone(run: Path, tmp_path: Path) -> None:
    html, counts = page(run, tmp_path)
    tags = parsed(html)
    names = {tag for tag, _ in tags.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base"}
    for tag, attributes in tags.tags:
        assert not [a for a in attributes if a.startswith("on")], tag
        for name in ("href", "src", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", html)
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(ids) == len(set(ids)) > 100
    targets = set(re.findall(r"url\(#([^)]+)\)", html)) | {h[1:] for h in re.findall(r'href="(#[^"]+)"', html)}
    assert targets and targets <= set(ids)
    assert counts["charts"] == html.count("<svg") == 8
    assert (counts["stages"], counts["systems"], counts["sets"], counts["missing"]) == (13, 6, 3, 0)


def test_plots_follow_the_colours_of_the_page(whole: str) -> None:
    html = whole
    for svg in re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL):
        assert "currentColor" in svg and "var(--" in svg
        assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) <= {"#ffffff"}
        assert "<text" in svg  # text stays text
        assert not re.search(r"<svg[^>]* (width|height)=", svg)


def test_texts_of_a_corpus_are_escaped(run: Path, tmp_path: Path) -> None:
    html, counts = page(run, tmp_path, title="<b>run</b>")
    assert counts["examples"] > 0
    assert "<script" not in html and "<img" not in html and "<b>run" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7*7 }}" in html
    assert "default-src 'none'" in html


def test_the_page_does_not_change_between_runs(run: Path, tmp_path: Path) -> None:
    assert page(run, tmp_path / "a")[0] == page(run, tmp_path / "b")[0]


def test_the_headline_states_the_files_figures(run: Path, whole: str) -> None:
    html = whole
    results = json.loads((run / "eval" / "results.json").read_text())
    mean = {m["system"]: m["metrics"]["recall@10"] for m in results["means"] if m["subset"] == "all"}
    f = mean["finetuned"]
    lead = re.search(r'class="lead">(.*?)</p>', html)
    assert lead is not None
    assert lead[1] == (
        f"Finetuning helped: recall@10 went from {mean['pretrained']['mean']:.3f} to {f['mean']:.3f} "
        f"[{f['low']:.3f}, {f['high']:.3f}] over 3 evaluation sets."
    )
    for row in results["rows"]:
        assert f"{row['metrics']['ndcg@10']['mean']:.3f}<small>" in html


@pytest.mark.parametrize(
    ("low", "high", "word"), [(0.01, 0.2, "helped"), (-0.1, 0.1, "made no clear difference"), (-0.2, -0.01, "hurt")]
)
def test_the_verdict_is_judged_by_the_interval(copy: Path, tmp_path: Path, low: float, high: float, word: str) -> None:
    path = copy / "eval" / "results.json"
    results = json.loads(path.read_text())
    for difference in results["differences"]:
        difference["metrics"]["recall@10"] |= {"low": low, "high": high}
    path.write_text(json.dumps(results))
    assert f"Finetuning {word}:" in page(copy, tmp_path)[0]


def test_the_data_sections_state_the_files_figures(whole: str) -> None:
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", whole))
    assert "12,000 documents were read from 4 files and 10,874 kept (90.62 %)." in text
    assert "under min_chars 402 3.35 %" in text and "could not be read" not in text  # a rule without work is not shown
    assert "0.50 % (0.14–1.80, 400 tries)" in text and "hidden among" not in text  # nothing was tried: nothing is said
    assert "900 of 1,000 texts serve as a negative" in text
    assert "ratio 411 502" in text
    assert "7,400 questions were kept for 9,000 passages, made by offline." in text
    assert "round trip 61" in text
    assert "89,535 training texts were compared with 180 texts of 1 evaluation set (news)" in text
    assert "jawapan &lt;script&gt;" in text and "hub &lt;b&gt;" in text


def test_time_is_the_sum_of_the_stages(run: Path, tmp_path: Path) -> None:
    html, _ = page(run, tmp_path)
    times = json.loads((tmp_path / "time.json").read_text())
    records = [json.loads(p.read_text()) for p in run.glob("*/stage.json")]
    assert times["wall_s"] == pytest.approx(sum(r["seconds"] for r in records))
    assert times["work_s"] == pytest.approx(sum(sum(r["work_s"].values()) for r in records))
    assert times["overhead_percent"] == pytest.approx(100 * times["overhead_s"] / times["wall_s"], abs=0.01)
    assert f"{times['overhead_percent']:.1f} %" in html


OPTIONAL = [
    ("eval/results.json", "results: the run has no eval/results.json", "Set by set"),
    ("eval/examples.json", "worst queries: the run has no eval/examples.json", "Where it still fails"),
    ("corpus/report.json", "what cleaning removed: the run has no corpus/report.json", "What cleaning removed"),
    ("mine/audit.json", "mining audit: the run has no mine/audit.json", "What was mined"),
    ("synth/report.json", "questions that were made: the run has no synth/report.json", "Questions that were made"),
    ("export/parity.json", "export parity: the run has no export/parity.json", "The exported model is the trained"),
    ("pretrain/metrics.jsonl", "pretrain curves: the run has no pretrain/metrics.jsonl", "Continued pretraining"),
    ("finetune/metrics.jsonl", "finetune curves: the run has no finetune/metrics.jsonl", "Contrastive finetuning"),
    ("recipe.toml", "recipe: the run keeps no recipe.toml", "Recipe as resolved"),
]


@pytest.mark.parametrize(("name", "note", "section"), OPTIONAL)
def test_a_missing_file_leaves_out_its_section_and_says_so(
    whole: str, copy: Path, tmp_path: Path, name: str, note: str, section: str
) -> None:
    assert section in whole
    (copy / name).unlink()
    html, counts = page(copy, tmp_path / "without")
    assert note in html and section not in html and counts["missing"] == 1
    parsed(html)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"counts": 3, "histogram_edges": [1], "versions": null}'])
def test_damaged_files_do_not_stop_the_report(copy: Path, tmp_path: Path, content: str) -> None:
    names = [name for name, _, _ in OPTIONAL if name.endswith(".json")]
    for name in [*names, "finetune/summary.json", "mine/stage.json"]:
        (copy / name).write_text(content)
    html, _ = page(copy, tmp_path / "out")
    parsed(html)


def test_metrics_cut_off_by_a_crash_are_shown_up_to_there(copy: Path, tmp_path: Path) -> None:
    path = copy / "finetune" / "metrics.jsonl"
    path.write_text(path.read_text()[:-30])
    html, _ = page(copy, tmp_path / "out")
    assert "Contrastive finetuning" in html and "read up to a damaged line" in html


def test_only_stages_are_enough_and_nothing_is_not(copy: Path, tmp_path: Path) -> None:
    for name, _, _ in OPTIONAL:
        (copy / name).unlink()
    for stage in ("eval", "export", "finetune", "pretrain", "mine"):
        (copy / stage / "stage.json").unlink()
    html, counts = page(copy, tmp_path / "out", title="early")
    assert "early: 8 stages are finished; nothing has been evaluated yet." in html
    assert (counts["systems"], counts["charts"]) == (0, 1)
    assert (tmp_path / "out" / "table.txt").read_text().startswith("no results")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no finished stage"):
        write_report(run=tmp_path / "empty", out=tmp_path / "out", title="x")


def results_of(run: Path) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((run / "eval" / "results.json").read_text())
    return results


def test_the_text_table_has_every_row_aligned(run: Path, tmp_path: Path) -> None:
    page(run, tmp_path)
    results = results_of(run)
    lines = (tmp_path / "table.txt").read_text().splitlines()
    assert sum(line.startswith("finetuned") for line in lines) == 2 + 3 * 2
    widths = {len(line.rstrip(" *")) for line in lines if re.match(r"\S+ +\d\.\d{3} \[", line)}
    assert len(widths) == 1
    top = max(m["metrics"]["recall@1"]["mean"] for m in results["means"] if m["subset"] == "all")
    marked = next(line for line in lines if f"{top:.3f} [" in line)
    assert "]*" in marked


def test_ties_are_all_best() -> None:
    rows = [{"system": s, "metrics": {"m": {"mean": v}}} for s, v in [("a", 0.5001), ("b", 0.4999), ("c", 0.4)]]
    assert best_systems(rows, "m") == {"a", "b"}


@pytest.mark.parametrize(
    ("width", "columns", "stacked"), [(180, 6, False), (128, 6, True), (92, 4, True), (40, 6, False)]
)
def test_a_terminal_gets_the_widest_table_that_fits(run: Path, width: int, columns: int, stacked: bool) -> None:
    results = results_of(run)
    stream = io.StringIO()
    print_results(results, Console(file=stream, force_terminal=True, width=width, no_color=True))
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    row = next(line for line in text.splitlines() if "finetuned" in line)
    assert len(re.findall(r"\d\.\d{3}", row)) == columns * (1 if stacked else 3)
    assert "mrr@10" in text and "[low, high]" in text
    if width > 40:
        assert max(len(line) for line in text.splitlines()) <= width
    else:  # nothing fits: plain lines, left to the terminal to wrap
        assert text.splitlines() == results_lines(results, per_set=False)


def test_a_pipe_gets_plain_lines(run: Path) -> None:
    stream = io.StringIO()
    print_results(results_of(run), Console(file=stream, width=40))
    assert stream.getvalue().splitlines() == results_lines(results_of(run), per_set=False)


def test_numbers_of_axes() -> None:
    values = (0, 3e-4, 6.5e-5, 0.25, 950, 20000, 2.5e6)
    assert [compact(v) for v in values] == ["0", "3e-4", "6.5e-5", "0.25", "950", "20k", "2.5M"]
