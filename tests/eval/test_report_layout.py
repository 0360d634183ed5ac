"""A browser lays the pages out: nothing stands out sideways, on a phone or on a desk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from eval.report.compare import write_comparison
from eval.report.page import write_report
from tests.browser import laid_out, needs_browser
from tests.eval.run_fixture import write_run
from tests.eval.test_report_chain import timeline
from tests.eval.test_report_cut import probe_record
from tests.eval.test_report_evidence import ADDED, ROBUST

LONG = "w" * 90


@needs_browser
@pytest.mark.slow
def test_nothing_stands_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, queries=12, sets=("news", f"forum-{LONG}", "law"), text=f" {LONG}")
    path = run / "eval" / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | ADDED))
    (run / "eval" / "robustness.json").write_text(json.dumps(ROBUST))
    for name, record in (("probe/probe.json", probe_record()), ("chain/timeline.json", timeline(14))):
        (run / name).parent.mkdir()
        (run / name).write_text(json.dumps(record))
    write_report(run=run, out=tmp_path, title=f"demo-{LONG}")
    runs = [run, Path(shutil.copytree(run, tmp_path / f"run-{LONG}"))]
    write_comparison(runs, out=tmp_path / "compare.html")
    pages = [(name, width) for name in ("report.html", "compare.html") for width in (360, 1280)]
    for told in laid_out(tmp_path, pages):
        assert told["scroll"] <= told["width"] and told["out"] == [], told
        assert told["height"] > 2000


@needs_browser
def test_the_measure_sees_what_stands_out(tmp_path: Path) -> None:
    (tmp_path / "wide.html").write_text("<!doctype html><body><p style='width: 500px'>too wide</p></body>")
    (told,) = laid_out(tmp_path, [("wide.html", 360)])
    assert told["scroll"] > 360 and told["out"] == ["P. too wide"]
