"""The table, the plots and the page of a measurement: whole, legible to machines, and nothing of a corpus unescaped."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import pytest

from data_prep.progress import Progress
from eval.robustness.charts import DARK, LIGHT, by_strength, css, overview, standalone
from eval.robustness.config import RobustnessConfig
from eval.robustness.kinds import KINDS
from eval.robustness.measure import measure
from eval.robustness.page import page
from eval.robustness.table import robustness_lines, worst
from tests.eval.robustness.planted import LetterRanker, WordRanker, system, write_set

KINDS_HERE = ["typo_swap", "zero_width", "cut_documents", "number_swap", "out_of_domain"]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("told")
    folders = [write_set(root / name, seed=i) for i, name in enumerate(("alpha", "b<eta"))]
    queries = (folders[0] / "queries.jsonl").read_text().replace('"text": "', '"text": "<script>alert(1)</script> ')
    (folders[0] / "queries.jsonl").write_text(queries)
    systems = [system("words", WordRanker()), system("<letters>", LetterRanker())]
    config = RobustnessConfig(kinds=KINDS_HERE, strengths=[0.2, 1.0], queries_per_set=6, bootstrap_samples=100)
    measure(config, sets=folders, systems=systems, out=root, seed=0, progress=Progress())
    made: dict[str, Any] = json.loads((root / "robustness.json").read_text())
    return made


def test_the_table_names_the_worst_kind_of_each_system(results: dict[str, Any]) -> None:
    lines = robustness_lines(results)
    for name in ("words", "<letters>"):
        rows = [r for r in results["rows"] if r["system"] == name]
        most = max(r["lost"] for r in rows)
        assert worst(results, name)["lost"] == most
        line = next(line for line in lines if line.startswith(name))
        assert f"{most:+.3f}" in line and worst(results, name)["kind"] in line
    text = "\n".join(lines)
    assert all(kind in text for kind in KINDS_HERE[:-1]) and "AUROC" in text
    assert not any(line.endswith(" ") for line in lines)


def test_a_measurement_of_out_of_domain_alone_is_told(results: dict[str, Any]) -> None:
    counts = results["counts"] | {"cells": 0, "asked": 0, "changed": 0, "unchanged": 0}
    alone = results | {"rows": [], "kinds": [], "noticed": [], "examples": [], "counts": counts}
    assert "AUROC" in "\n".join(robustness_lines(alone))
    assert "<h2>Recall" not in page(alone, title="t") and "cannot answer" in page(alone, title="t")


def test_plots_are_whole_and_take_their_colours_from_the_page(results: dict[str, Any]) -> None:
    plots = [by_strength(results, kind, ident=kind) for kind in results["kinds"]] + [overview(results, ident="all")]
    for plot in plots:
        root = ET.fromstring(standalone(plot))
        assert root.tag.endswith("svg") and "viewBox" in root.attrib
        assert "var(--series-1, #0072b2)" in plot and "var(--series-2, #d55e00)" in plot
        assert not re.search(r"#0[0-9a-d]0[0-9a-d]0[0-9a-d]\b", plot)  # no placeholder is left
    assert by_strength(results, "typo_swap", ident="x") == by_strength(results, "typo_swap", ident="x")
    assert all(colour in css() for colour in (*LIGHT, *DARK))


def test_the_page_is_whole_and_escapes_what_it_was_given(results: dict[str, Any]) -> None:
    made = page(results, title="<b>Robustness</b>")
    seen: list[str] = []

    class Tags(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            seen.append(tag)
            assert not any(name in ("src", "onload") for name, _ in attrs)

    Tags().feed(made)
    assert "script" not in seen and "b" not in seen and "letters" not in seen and "eta" not in seen
    assert seen.count("svg") == 1 + len(results["kinds"])
    assert "&lt;script&gt;" in made and "http://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", made)
    assert "⟨200B⟩" in made or "⟨200C⟩" in made or "⟨2060⟩" in made  # an invisible character is shown by its number
    assert all(KINDS[kind].about in made for kind in results["kinds"])
    assert len(made) < 200_000


def test_examples_fell_and_say_from_where_to_where(results: dict[str, Any]) -> None:
    assert results["examples"]
    for told in results["examples"]:
        assert told["strength"] == 1.0 and told["original"] != told["perturbed"]
        assert (told["after"] or 101) > (told["before"] or 101)
    assert (
        max(
            sum((t["system"], t["kind"]) == key for t in results["examples"])
            for key in {(t["system"], t["kind"]) for t in results["examples"]}
        )
        <= 2
    )
