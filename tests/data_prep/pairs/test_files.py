from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.pairs.files import PairsConfig, import_pairs
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import Shards


def _import(out: Path, *files: Path, sets: list[Path] | None = None, **config: Any) -> dict[str, int | float]:
    removing = DecontaminateConfig(on_overlap="remove")
    settings = PairsConfig(files=[str(f) for f in files], decontaminate=removing, **config)
    return import_pairs(settings, evaluation_sets=sets or [], out=out, progress=Progress())


def test_pair_row_ids_are_content_ids() -> None:
    row = pair_row("q", ["p"], ["n", "m"], "s", "ms", [0.9], [0.5, 0.4])
    assert row["query_id"] == content_id("q") and row["positive_ids"] == [content_id("p")]
    assert row["negative_ids"] == [content_id("n"), content_id("m")] and row["negative_scores"] == [0.5, 0.4]
    with pytest.raises(ValueError, match="1 texts with 2 scores"):
        pair_row("q", ["p"], [], "s", "ms", [0.9, 0.8])


def test_every_form_of_a_pair(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [
        {"query": " soalan  satu", "positive": "jawapan satu", "source": "x", "lang": "ms"},
        {"query": "soalan dua", "positives": ["jawapan dua", "Jawapan  DUA", "lagi satu"]},
        {"query": "soalan tiga", "pos": ["jawapan tiga"], "neg": ["salah", "", "Salah", "jawapan TIGA", "soalan tiga"]},
        {"query": "soalan empat", "positive": "jawapan empat", "negatives": ["a", "b", "c"], "negative": None},
    ]
    counts = _import(tmp_path / "o", write_jsonl(tmp_path / "p.jsonl.gz", rows), max_negatives=2)
    made = list(Shards(tmp_path / "o", "pairs"))
    assert [r["query"] for r in made] == ["soalan satu", "soalan dua", "soalan tiga", "soalan empat"]
    assert [r["positives"] for r in made][1:3] == [["jawapan dua", "lagi satu"], ["jawapan tiga"]]
    assert [r["negatives"] for r in made] == [[], [], ["salah"], ["a", "b"]]
    assert [(r["source"], r["language"]) for r in made[:2]] == [("x", "ms"), ("p", "und")]
    assert counts["kept"] == 4 and counts["positives"] == 5
    assert counts["negatives"] == 3 and counts["negatives_dropped"] == 5


def test_what_is_refused(tmp_path: Path, write_jsonl: Any, evaluation_set: Path) -> None:
    rows = [
        {"query": "  ", "positive": "a"},
        {"query": "tiada jawapan", "positives": []},
        {"query": "tiada jawapan", "positive": " \u200b"},
        {"query": "sama sahaja", "positive": "Sama  sahaja"},
        {"query": "betul", "positive": "jawapan betul"},
        {"query": "BETUL", "positive": "jawapan betul"},
        {"query": "di mana kucing itu tidur", "positive": "entah"},
        {"query": "lain", "positive": "Harga minyak naik lima sen mulai esok pagi."},
        {"query": "baik", "positive": "jawapan", "neg": ["Kucing itu tidur di atas meja makan."]},
    ]
    counts = _import(tmp_path / "o", write_jsonl(tmp_path / "p.jsonl", rows), sets=[evaluation_set])
    assert counts == {
        "files": 1,
        "read": 9,
        "kept": 2,
        "positives": 2,
        "negatives": 0,
        "negatives_dropped": 1,
        "duplicates": 1,
        "evaluation_overlap": 2,
        "refused_empty_query": 1,
        "refused_no_positive": 2,
        "refused_positive_is_query": 1,
    }
    assert Shards(tmp_path / "o", "pairs").column("query") == ["betul", "baik"]


def test_cap_is_per_file(tmp_path: Path, write_jsonl: Any) -> None:
    files = [
        write_jsonl(tmp_path / f"{n}.jsonl", [{"query": f"q{n}{i}", "positive": f"p{n}{i}"} for i in range(4)])
        for n in "ab"
    ]
    assert _import(tmp_path / "o", *files, max_pairs_per_file=3)["kept"] == 6


def test_bad_input(tmp_path: Path, write_jsonl: Any) -> None:
    for row, says in (
        ({"positive": "a"}, "line 1: 'query' is missing"),
        ({"query": "q", "pos": ["a", 3]}, "line 1: 'pos' holds a int"),
        ({"query": "q", "negatives": {"a": 1}, "positive": "p"}, "line 1: 'negatives' holds a dict"),
        ({"query": "q"}, "leaves no pair"),
    ):
        with pytest.raises(UserError, match=says):
            _import(tmp_path / "o", write_jsonl(tmp_path / "p.jsonl", [row]))
    with pytest.raises(UserError, match="no such file"):
        _import(tmp_path / "o", tmp_path / "missing.jsonl")


@pytest.mark.parametrize("bad", [{"max_pairs_per_file": 0}, {"max_negatives": -1}, {"files": "p.jsonl"}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PairsConfig(**{"files": ["x"], **bad})


def test_real_pairs(tmp_path: Path, shared_data: Path) -> None:
    sets = [shared_data / "eval_dev" / "research_title_abstract"]
    counts = _import(tmp_path / "o", shared_data / "pairs" / "research_title_abstract.jsonl.gz", sets=sets)
    assert (
        counts["kept"] > 1000 and counts["kept"] + counts["evaluation_overlap"] + counts["duplicates"] <= counts["read"]
    )


def test_pair_row_keeps_the_documents_that_texts_come_from() -> None:
    row = pair_row("q", ["p"], ["n"], "s", "ms", query_document="d0", positive_documents=["d1"])
    assert (row["query_document"], row["positive_documents"], row["negative_documents"]) == ("d0", ["d1"], None)
    with pytest.raises(ValueError, match="1 texts with 2 scores or documents"):
        pair_row("q", ["p"], [], "s", "ms", positive_documents=["a", "b"])


def test_scored_pairs_keep_their_score(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{"query": "satu", "positive": "dua", "score": 3.5}, {"query": "tiga", "positive": "empat"}]
    _import(tmp_path / "o", write_jsonl(tmp_path / "p.jsonl", rows))
    assert [r["positive_scores"] for r in Shards(tmp_path / "o", "pairs")] == [[3.5], None]
    for row, says in (
        ({"query": "a", "positive": "b", "score": "high"}, "'score' is 'high', must be a finite number"),
        ({"query": "a", "positives": ["b", "c"], "score": 1}, "gives one score to 2 positives"),
    ):
        with pytest.raises(UserError, match=says):
            _import(tmp_path / "x", write_jsonl(tmp_path / "q.jsonl", [row]))
