"""The section on the chain of jobs states the timeline's figures, at any length, and is left out where there is none."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import write_json
from eval.report.page import write_report

EVIL = "<script>alert(1)</script>"
T0 = 1_700_000_000.0
KINDS = {
    "queue": {"label": "queue", "group": "wait", "place": 0},
    "processes": {"label": "processes", "group": "start-up", "place": 2},
    "loading": {"label": "loading data & model", "group": "start-up", "place": 3},
    "controller": {"label": "allocation", "group": "start-up", "place": 1},
    "train": {"label": "training", "group": "train", "place": 4},
    "save": {"label": "saving", "group": "save", "place": 5},
    "lost": {"label": "lost work", "group": "lost", "place": 6},
}


def timeline(links: int, *, cause: str = "preempted", lost: bool = True) -> dict[str, Any]:
    made, at = [], T0
    for number in range(1, links + 1):
        begin, parts = at, []
        last = number == links
        for kind, seconds in (
            ("queue", 60),
            ("controller", 3),
            ("processes", 7),
            ("loading", 20),
            ("train", 600),
            ("save", 5),
            ("lost", 45),
        ):
            if kind != "lost" or (lost and not last):
                parts.append({"kind": kind, "begin": at, "end": at + seconds, "note": cause if kind == "lost" else ""})
                at += seconds
        made.append(
            {"job": "finetune", "id": "7", "number": number, "nodes": ["node1", "node2"], "begin": begin, "start": begin + 60,
             "end": at, "running": False, "outcome": "done" if last else "stopped", "cause": "" if last else cause,
             "undone_steps": 0 if last else 20, "intervals": parts}
        )  # fmt: skip
    return {
        "format": 1, "made_at": at, "jobs": True, "kinds": KINDS, "useful": ["train"], "goodput": 0.875, "links": made,
        "total_s": {},
    }  # fmt: skip


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one finished stage: the rest of the page is missing, and told so."""
    write_json(make(tmp_path / "run" / "corpus") / "stage.json", {"stage": "corpus", "seconds": 1.0})
    return tmp_path / "run"


def make(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def page(run: Path, out: Path, record: Any) -> tuple[str, dict[str, int | float]]:
    (run / "chain").mkdir(exist_ok=True)
    path = run / "chain" / "timeline.json"
    path.unlink(missing_ok=True)
    if record is not None:
        path.write_text(record if isinstance(record, str) else json.dumps(record))
    out.mkdir()
    counts = write_report(run=run, out=out, title="demo")
    return (out / "report.html").read_text(encoding="utf-8"), counts


def section(html: str) -> str:
    return html[html.index("<h2>Chain of jobs") :].split("</section>")[0]


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]+>", " ", html, flags=re.DOTALL))


def test_the_section_states_the_timelines_figures(run: Path, tmp_path: Path) -> None:
    html, _ = page(run, tmp_path / "out", timeline(3))
    part = section(html)
    text = text_of(part)
    assert "3 links of 1 job in 36 min 15 s; of the time on nodes, 87.5 % went into training." in text
    assert "1 min 30 s of work was lost (40 steps were computed again)" in text
    assert "preempted; 20 steps computed again" in text
    assert re.search(r"all 3 min 00 s 1 min 30 s 30 min 00 s 15 s 1 min 30 s 36 min 15 s", text)
    assert "8.3 %" in text and "82.8 %" in text
    assert (
        "Start-up of a link that trained, on average: allocation 3.0 s, processes 7.0 s, loading data &amp; model 20 s."
        in text
    )
    assert text.count("finetune 1: 45 s, preempted") == 1
    assert part.count("<svg") == 1 and "<details>" not in part and "chain of jobs:" not in html
    assert "var(--warn)" in part and not re.search(r"#0[0-9a-f]{5}\b", part)


@pytest.mark.parametrize("links", [1, 40])
def test_it_is_drawn_at_any_length(run: Path, tmp_path: Path, links: int) -> None:
    html, _ = page(run, tmp_path / "out", timeline(links))
    part = section(html)
    svg = part[part.index("<svg") : part.index("</svg>")]
    names = re.findall(r">(finetune(?: \d+)?)</text>", svg)
    assert names == (["finetune"] if links == 1 else [f"finetune {n}" for n in range(1, links + 1)])
    assert svg.count(">preempted</text>") == links - 1
    assert ("<details>" in part) == (links > 12)
    assert len(part) < 120_000


def test_nothing_of_a_cause_can_run(run: Path, tmp_path: Path) -> None:
    html, _ = page(run, tmp_path / "out", timeline(3, cause=EVIL))
    assert "<script" not in html and "&lt;script&gt;" in section(html)


def test_without_a_chain_there_is_no_section(run: Path, tmp_path: Path) -> None:
    html, _ = page(run, tmp_path / "out", None)
    assert "Chain of jobs" not in html and "chain of jobs:" not in html
    html, _ = page(run, tmp_path / "empty", {**timeline(1), "links": []})
    assert "Chain of jobs" not in html


@pytest.mark.parametrize(
    "record",
    [
        "{",
        "[]",
        "{}",
        {**timeline(1), "format": 9},
        {**timeline(1), "kinds": {}},
        {**timeline(1), "goodput": "much"},
        {**timeline(1), "links": [{}]},
        {**timeline(1), "links": [{**timeline(1)["links"][0], "intervals": [{"kind": "train", "begin": 2, "end": 1}]}]},
    ],
)
def test_a_damaged_timeline_is_named(run: Path, tmp_path: Path, record: Any) -> None:
    _, whole = page(run, tmp_path / "whole", timeline(1))
    html, counts = page(run, tmp_path / "out", record)
    assert "<h2>Chain of jobs" not in html and counts["missing"] == whole["missing"] + 1 and "chain of jobs:" in html


def test_a_run_without_jobs_is_not_called_a_chain(run: Path, tmp_path: Path) -> None:
    html, _ = page(run, tmp_path / "out", {**timeline(2), "jobs": False})
    assert "Starts and stages" in html and "Chain of jobs" not in html
