"""The card: figures are those of the run's files, what is absent is said, and text from elsewhere stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.files import read_json, write_json
from tests.train.hub.model_lab import write_model, write_run
from train.hub.card import make_card
from train.hub.licences import BaseLicence
from train.hub.markdown import recipe_text, text

NAME = "mesolitica/demo"


def card(run: Path, **more: Any) -> str:
    return make_card(run / "export" / "model", run, **({"name": NAME, "licence": "mit"} | more))


def front(text_: str) -> dict[str, Any]:
    loaded = yaml.safe_load(text_.split("---\n")[1])
    assert isinstance(loaded, dict)
    return loaded


def section(text_: str, title: str) -> str:
    return text_.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_front_matter_is_in_the_hubs_schema(run: Path) -> None:
    from huggingface_hub import ModelCard

    told = front(card(run))
    assert told["language"] == ["ms", "en"]
    assert (told["license"], told["library_name"]) == ("mit", "sentence-transformers")
    assert told["pipeline_tag"] == "sentence-similarity"
    results = ModelCard(card(run)).data.eval_results
    assert results is not None
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in results}
    assert found == {("news", m): v for m, v in _own(run).items()}


def _own(run: Path) -> dict[str, float]:
    rows = read_json(run / "eval" / "results.json")["rows"]
    cells = next(row["metrics"] for row in rows if row["system"] == "finetuned")
    return {name: cell["mean"] for name, cell in cells.items()}


def test_figures_are_those_of_the_files(run: Path) -> None:
    told = card(run)
    assert "0.625 [0.525, 0.725]" in section(told, "Results")  # recall@10 of ours
    assert "0.500 [0.400, 0.600]" in section(told, "Results")  # of BM25
    assert "| forum\\_bcari | 1,001 |" in section(told, "Training data")
    assert "documents read: 1,234, kept: 1,001" in told
    assert "mined pairs: 321, teacher tfidf" in told
    clean = section(told, "Evaluation text in the training data")
    assert "1,001 of corpus" in clean
    assert "180 evaluation texts of 1 sets" in clean
    assert "repeat evaluation text: 7." in clean
    assert "1.5e-07" in section(told, "Is this the trained model?")
    assert "| finetune | 40 | 99,000 | 4 × cuda | 0.500 | 2.000 | bf16 |" in section(told, "Training")
    assert "2 of its 8 layers are kept" in told


def test_the_same_run_gives_the_same_card(run: Path) -> None:
    assert card(run) == card(run)


def test_the_lineage_changes_with_any_stage_behind_the_weights(run: Path) -> None:
    def lineage() -> str:
        match = re.search(r"lineage \| `([0-9a-f]{64})`", card(run))
        assert match
        return match[1]

    first = lineage()
    record = read_json(run / "mine" / "stage.json")
    write_json(run / "mine" / "stage.json", record | {"content": "0" * 64})
    assert lineage() != first
    write_json(run / "mine" / "stage.json", record)
    write_json(run / "eval" / "stage.json", read_json(run / "eval" / "stage.json") | {"content": "0" * 64})
    assert lineage() == first, "the evaluation is not behind the weights"


def test_without_a_run_nothing_is_invented(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    told = make_card(model, None, name=NAME, licence=None)
    assert set(front(told)) == {"library_name", "pipeline_tag", "tags"}
    for title in ("Results", "Evaluation text in the training data", "Is this the trained model?", "Training"):
        assert "not recorded" in section(told, title), title
        assert not re.search(r"\d\.\d{3}", section(told, title)), title
    assert "dimension of the vectors | 8 |" in told  # the folder says that itself


def test_results_of_other_weights_are_left_out(run: Path) -> None:
    record = read_json(run / "eval" / "stage.json")
    write_json(run / "eval" / "stage.json", record | {"inputs": {"finetune": "0" * 64}})
    assert "not recorded" in section(card(run), "Results")
    assert "model-index" not in front(card(run))


@pytest.mark.parametrize(
    "damage", [b"", b"[]", b"{", b'{"rows": 3, "systems": "x"}', b'{"rows": [1], "systems": [2], "sets": 4}']
)
def test_damaged_files_leave_a_gap_and_no_traceback(run: Path, damage: bytes) -> None:
    for path in run.rglob("*.json"):
        if path.parent.name != "model" and "export/model" not in path.as_posix():
            path.write_bytes(damage)
    assert "not recorded" in card(run)


def test_hostile_names_stay_names(run: Path) -> None:
    evil = "x](javascript:a) <script>alert(1)</script>\n---\nlicense: evil\n# Heading | `cell` &amp; \x1b[31m"
    report = read_json(run / "corpus" / "report.json")
    report["sources"][0]["source"] = evil
    write_json(run / "corpus" / "report.json", report)
    results = json.loads((run / "eval" / "results.json").read_text().replace('"news"', json.dumps(evil)))
    write_json(run / "eval" / "results.json", results)
    (run / "recipe.toml").write_text('name = "```\\n# out"\npath = "/mnt/somebody/data/corpora/x.jsonl"\n')
    told = card(run)
    body = told.split("---\n", 2)[2]
    assert "<script>" not in body
    assert "\x1b" not in told
    assert front(told)["license"] == "mit"
    assert "\n# Heading" not in told
    assert not re.search(r"(?<!\\)\]\(javascript", body)
    assert "/mnt/somebody" not in told
    assert "````toml" in told
    row = next(row for row in body.splitlines() if row.startswith("| x") and "not recorded" in row)
    assert len(re.findall(r"(?<!\\)\|", row)) == 4, "a name does not open a cell"


def test_a_text_is_itself_after_rendering() -> None:
    assert text("a_b*c|d<e>&`f`[g]#") == "a\\_b\\*c\\|d&lt;e&gt;&amp;\\`f\\`\\[g\\]\\#"
    assert text(None) == text("") == text(" \n") == "not recorded"
    assert text("token hf_" + "a" * 34) == "token &lt;token&gt;"


def test_a_recipe_keeps_its_values_and_loses_comments_and_places() -> None:
    recipe = 'a = "x  # no comment"  # one\n# whole line\nfiles = ["/data/me/c/*.gz", "{data}/d/*.gz"]\nb = 1 # two\n'
    told = recipe_text(recipe)
    assert "/data/me" not in told
    assert "…/*.gz" in told
    assert "{data}/d/*.gz" in told
    assert "x  # no comment" in told
    assert recipe_text('b = 1  # two\n\n[t]\nc = "d"  # e\n') == 'b = 1\n[t]\nc = "d"'


def test_licences_of_base_and_data_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", base={"model": "meta-llama/Llama-2-7b-hf", "revision": None})
    told = card(run, licence="llama2", data_licences={"forum_*": "cc-by-4.0"})
    assert front(told)["base_model"] == "meta-llama/Llama-2-7b-hf"
    assert "Llama 2 is licensed under the LLAMA 2 Community License" in section(told, "Licence")
    assert "| forum\\_bcari | 1,001 | cc-by-4.0 |" in told
    other = card(run, licence="own-1.0", base=BaseLicence("a/b", False, "own-1.0", "its card"))
    assert (front(other)["license"], front(other)["license_name"]) == ("other", "own-1.0")
    built = card(run, licence="llama3", base=BaseLicence("a/b", False, "llama3", "its card"))
    assert "**Built with Meta Llama 3**" in built
