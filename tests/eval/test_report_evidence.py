"""The sections on what the figures are worth state the files' figures, and stay away where there are none."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_prep.files import write_json
from eval.report.evidence import evidence
from eval.report.page import write_report
from eval.report.robust import robust
from tests.eval.run_fixture import write_run
from tests.eval.test_report import EVIL, parsed


def figure(mean: float, width: float = 0.05) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width}


def group(system: str, by: str, name: str, queries: int, mean: float) -> dict[str, Any]:
    return {"system": system, "by": by, "group": name, "queries": queries, "metrics": {"recall@10": figure(mean)}}


def loss(system: str, kind: str, strength: float, clean: float, lost: float, width: float = 0.02) -> dict[str, Any]:
    return {
        "system": system, "kind": kind, "strength": strength, "queries": 90, "changed": 64, **figure(clean - lost),
        "lost": lost, "lost_low": lost - width, "lost_high": lost + width,
    }  # fmt: skip


ADDED: dict[str, Any] = {
    "groups": [
        group("finetuned", "language", "ms", 900, 0.8125), group("bm25", "language", "ms", 900, 0.7),
        group("finetuned", "language", "id", 60, 0.6543), group("bm25", "language", "id", 60, 0.9),
        group("finetuned", "language", f"x{EVIL}", 3, 0.1),
        group("finetuned", "length", "0-4 words", 40, 0.7171), group("finetuned", "length", "5-9 words", 50, 0.7272),
    ],
    "sts": [
        {"system": "finetuned", "set": "sts-ms", "pairs": 1379, "metrics": {"spearman": figure(0.777), "pearson": 0.7551}},
        {"system": "teacher", "set": "sts-ms", "pairs": 1379, "metrics": {"spearman": figure(0.6), "pearson": 0.6}},
    ],
    "published": [
        {"system": "ada-002", "set": "forum", "metrics": {"recall@1": 0.123, "recall@10": 0.4567}, "source": f"paper{EVIL}",
         "note": "other test set"}
    ],
    "cost": [
        {"system": "finetuned", "set": "news", "texts": 1000, "seconds": 4.0},
        {"system": "finetuned", "set": "law", "texts": 500, "seconds": 2.0},
    ],
}  # fmt: skip
ROBUST: dict[str, Any] = {
    "seed": 0, "sets": ["news", "law"], "kinds": ["typo_swap", "emoji"], "strengths": [0.1, 1.0], "metric": "recall@10",
    "rows": [
        loss(system, kind, strength, clean, clean * damage * strength)
        for system, clean in (("bm25", 0.7), ("finetuned", 0.9))
        for kind, damage in (("typo_swap", 0.5), ("emoji", 0.01))
        for strength in (0.1, 1.0)
    ],
    "examples": [{"kind": "typo_swap", "strength": 1.0, "system": "bm25", "before": 1, "after": None,
                  "original": "harga ikan", "perturbed": f"hagra iakn{EVIL}"}],
    "noticed": [{"system": "finetuned", "kind": "number_swap", "strength": 0.1, **figure(0.8768)}],
    "out_of_domain": [{"system": "finetuned", "set": None, **figure(0.9321)}],
}  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    run = write_run(tmp_path_factory.mktemp("evidence"), queries=12)
    path = run / "eval" / "results.json"
    told: dict[str, Any] = json.loads(path.read_text()) | ADDED
    write_json(path, told)
    write_json(run / "eval" / "robustness.json", ROBUST)
    return run, told


@pytest.fixture(scope="module")
def html(results: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("out")
    counts = write_report(run=results[0], out=out, title="demo")
    assert counts["missing"] == 0
    return (out / "report.html").read_text(encoding="utf-8")


def part(html: str, title: str) -> str:
    """The words of a section."""
    body = html[html.index(f"<h2>{title}</h2>") :].split("</section>")[0]
    return re.sub(r"\s+", " ", re.sub(r"<svg.*?</svg>|<[^>]+>", " ", body, flags=re.DOTALL))


def test_groups_are_shown_by_language_and_length(html: str) -> None:
    words = part(html, "For whom it works")
    assert (
        "Of 2 languages with 30 queries or more, finetuned finds least in Indonesian (id) (0.654, 60 queries)" in words
    )
    assert "most in Malay (ms) (0.812, 900 queries)" in words  # 0.8125 is just below its half in binary
    assert re.search(r"Malay \(ms\) 900 queries 0\.700 0\.650–0\.750 .*?0\.812 0\.762–0\.863", words)
    assert "3 queries, few" in words and "0-4 words 40 queries" in words and "0.717" in words
    assert words.index("0-4 words") < words.index("5-9 words")
    heat = html[html.index("<h2>For whom it works") :].split("</table>")[0]
    best = re.findall(r'<td class="best"[^>]*>(0\.\d+)', heat)
    assert best[:2] == ["0.812", "0.900"]  # of each language, its own best system


def test_damage_is_shown_as_what_it_costs(html: str) -> None:
    words = part(html, "Robustness")
    assert (
        "finetuned loses most to typo swap: recall@10 0.900 → 0.450, a loss of 0.450 [0.430, 0.470] at 100 %." in words
    )
    assert "No loss beyond chance: emoji." in words
    assert "90 queries of 2 sets" in words and "64 of 90 changed" in words
    assert re.search(r"typo swap 100 %, 64 of 90 changed −0\.350 −0\.370 to −0\.330 −0\.450", words)
    assert "0.877" in words and "0.932" in words and "mean over sets" in words
    assert "rank of the answer 1 → not found" in words
    svg = html[html.index("<h2>Robustness") :].split("<svg")[1].split("</svg>")[0]
    assert svg.index(">typo swap<") and ">recall@10 lost<" in svg


def test_similarity_and_published_figures_stand_apart(html: str) -> None:
    assert re.search(r"sts-ms Spearman, 1,379 pairs 0\.777 0\.727–0\.827 0\.600", part(html, "Similarity of sentences"))
    words = part(html, "Published, not rerun")
    assert "None was measured here" in words and "ada-002 forum 0.123 0.457 other test set" in words
    assert '<section id="at-published-not-rerun" class="apart">' in html
    measured = html[: html.index("<h2>Published")]
    assert "ada-002" not in measured  # never in a table of ours


def test_differences_are_stated_with_their_intervals(results: tuple[Path, dict[str, Any]], html: str) -> None:
    words = part(html, "Is the difference real?")
    for one in results[1]["differences"]:
        gain = one["metrics"]["recall@10"]
        assert f"{gain['mean']:+.3f}".replace("-", "−").replace("+0.000", "0.000") in words
        if "sentence" in one:
            assert one["sentence"] in words.replace("&lt;", "<")


def test_cost_sums_what_the_evaluation_took(html: str) -> None:
    words = part(html, "Cost, and where the time went")
    assert re.search(r"finetuned 1,500 6\.0 s 250", words)
    assert re.search(r"finetuning 180 1\.47 M [\d,]+ 2 × cpu 41 s 83 s", words)


def test_the_summary_says_what_was_trained_and_measured(results: tuple[Path, dict[str, Any]], html: str) -> None:
    told = dict(re.findall(r"<dt>([A-Z][^<]*)</dt><dd>(.*?)</dd>", html))
    assert {"Trained", "Measured on", "Against the base", "Against BM25", "Languages", "Took"} <= told.keys()
    assert "12.3 M parameters" in told["Trained"] and "9,123 mined, 7,400 made from documents" in told["Trained"]
    assert "36 queries against 72 documents of 3 sets (news, forum, law)" in told["Measured on"]
    base = next(d for d in results[1]["differences"] if d["against"] == "untrained" and d["subset"] == "all")
    assert f"{base['metrics']['recall@10']['mean']:+.3f} recall@10" in told["Against the base"]
    better = base["metrics"]["recall@10"]["low"] > 0
    assert told["Against the base"].endswith("better." if better else "no clear difference.")


def test_the_contents_lead_to_every_section(html: str) -> None:
    tags = parsed(html)
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(ids) == len(set(ids))
    linked = [a["href"] for tag, a in tags.tags if tag == "a"]
    sections = [f"#{a['id']}" for tag, a in tags.tags if tag == "section"]
    assert linked == sections and len(sections) > 12
    headings = re.findall(r"<section[^>]*>\s*<h2>([^<]*)</h2>", html)
    order = ["Results", "Is the difference real?", "Set by set", "For whom it works", "Robustness", "Similarity of sentences",
             "Published, not rerun", "Where it still fails", "Training", "Cost, and where the time went"]  # fmt: skip
    assert headings[: len(order)] == order


def test_everything_can_be_read_without_seeing_it(html: str) -> None:
    tags = parsed(html).tags
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    for tag, attributes in tags:
        if tag == "svg":
            assert attributes["role"] == "img" and attributes["aria-label"]
        if attributes.get("class") == "scroll":
            assert attributes["role"] == "region" and attributes["aria-label"] and attributes["tabindex"] == "0"
    assert "<script" not in html and "<img" not in html


@pytest.mark.parametrize("name", ["groups", "sts", "published", "differences"])
@pytest.mark.parametrize("value", [[{}], [{"system": 3, "metrics": None}], "x", [[]]])
def test_a_damaged_part_leaves_out_its_section_alone(
    results: tuple[Path, dict[str, Any]], name: str, value: Any
) -> None:
    whole, _ = evidence(results[1])
    found, missing = evidence(results[1] | {name: value})
    section = {"differences": "significance"}.get(name, name)
    assert found.keys() == whole.keys() - {section} and list(missing) == [section]


def test_without_the_files_there_is_no_such_section(results: tuple[Path, dict[str, Any]]) -> None:
    plain = {k: v for k, v in results[1].items() if k not in (*ADDED, "differences")}
    assert evidence(plain) == ({}, {})
    assert robust(None, plain) is None and robust(ROBUST | {"rows": []}, plain) is None


def test_damaged_robustness_is_named(results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    record = copy.deepcopy(ROBUST)
    del record["rows"][0]["lost_low"]
    with pytest.raises(KeyError):
        robust(record, results[1])
