from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.corpus.build import CorpusConfig, build_corpus
from data_prep.corpus.keys import text_key
from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.progress import Progress
from data_prep.shards import Shards


def _build(out: Path, sets: list[Path] | None = None, **config: Any) -> dict[str, int | float]:
    return build_corpus(CorpusConfig(**config), evaluation_sets=sets or [], out=out, progress=Progress())


def test_counts_rows_and_order(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [
        {"text": "Dokumen pertama tentang padi.", "source": "ladang", "lang": "ms"},
        {"text": "pendek"},
        {"text": "dokumen  PERTAMA tentang padi."},
        {"text": "The second document, in English.", "language": "en"},
    ]
    write_jsonl(tmp_path / "in" / "b.jsonl.gz", rows)
    (tmp_path / "in" / "a.txt").write_text("Perenggan satu baris satu\nbaris dua\n\n\nPerenggan dua yang panjang\n")
    counts = _build(tmp_path / "out", files=[str(tmp_path / "in")], min_chars=10)
    assert counts == {
        "files": 2,
        "read": 6,
        "repaired": 1,
        "too_short": 1,
        "duplicates": 1,
        "near_duplicates": 0,
        "evaluation_overlap": 0,
        "kept": 4,
        "characters": sum(map(len, Shards(tmp_path / "out", "documents").column("text"))),
    }
    written = list(Shards(tmp_path / "out", "documents"))
    assert [(r["source"], r["language"]) for r in written] == [
        ("a", "ms"),
        ("a", "ms"),
        ("ladang", "ms"),
        ("b", "en"),
    ]
    assert written[0]["text"] == "Perenggan satu baris satu\nbaris dua"
    assert all(r["id"] == content_id(r["text"]) for r in written)


@pytest.mark.parametrize(("unit", "expected"), [("line", 3), ("paragraph", 2), ("file", 1)])
def test_units_of_plain_text(tmp_path: Path, unit: str, expected: int) -> None:
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"satu baris\ndua baris\n\ntiga baris\n"))
    assert _build(tmp_path / "o", files=[str(tmp_path / "a.txt.gz")], txt_unit=unit, min_chars=1)["kept"] == expected


def test_cap_is_per_file(tmp_path: Path, write_jsonl: Any) -> None:
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"fail {name} dokumen nombor {n}"} for n in range(5)])
    counts = _build(tmp_path / "o", files=[str(tmp_path / "*.jsonl")], max_documents_per_file=2)
    assert counts["kept"] == 4
    assert [r["source"] for r in Shards(tmp_path / "o", "documents")] == ["a", "a", "b", "b"]


def test_no_evaluation_text_in_the_corpus(tmp_path: Path, evaluation_set: Path, write_jsonl: Any) -> None:
    texts = [
        "berapa HARGA minyak esok  hari",  # a query
        "kucing itu tidur di atas meja makan.",  # a document
        "Harga minyak naik\nharga minyak naik lima sen mulai esok pagi.",  # a document with its title
        "Tajuk lain sama sekali\nHarga minyak naik lima sen mulai esok pagi.",  # its body under another title
        "Harga minyak sawit naik lagi minggu ini.",
    ]
    source = write_jsonl(tmp_path / "c.jsonl", [{"text": t} for t in texts])
    removing = {"on_overlap": "remove"}
    counts = _build(tmp_path / "o", [evaluation_set], files=[str(source)], decontaminate=removing)
    assert counts["evaluation_overlap"] == 4
    assert Shards(tmp_path / "o", "documents").column("text") == [texts[-1]]


def test_same_bytes_every_time(tmp_path: Path, topics: Any, write_jsonl: Any) -> None:
    source = write_jsonl(tmp_path / "c.jsonl.gz", [{"text": t} for t in topics(50)])
    for name in "xy":
        _build(tmp_path / name, files=[str(source)])
    assert all((tmp_path / "y" / p.name).read_bytes() == p.read_bytes() for p in (tmp_path / "x").iterdir())


def test_bad_input(tmp_path: Path, write_jsonl: Any) -> None:
    for name, says in (
        ("missing.jsonl", "no such file"),
        ("a.pdf", "is none of .jsonl"),
        ("a.csv", "none is named 'text'"),
        ("a.jsonl", "'text' is missing"),
        ("short.jsonl", r"leaves no document \(1 read, 1 under 20"),
    ):
        (tmp_path / "a.pdf").write_text("x")
        (tmp_path / "a.csv").write_text("x\ny\n")
        write_jsonl(tmp_path / "a.jsonl", [{"title": "tanpa teks"}])
        write_jsonl(tmp_path / "short.jsonl", [{"text": "pendek"}])
        with pytest.raises(UserError, match=says):
            _build(tmp_path / "o", files=[str(tmp_path / name)])
        assert not (tmp_path / "o" / "manifest.json").exists()


@pytest.mark.parametrize("bad", [{"min_chars": -1}, {"max_documents_per_file": 0}, {"files": []}, {"min_char": 5}])
def test_bad_settings(bad: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CorpusConfig(**{"files": ["x"], **bad})


def test_real_texts(tmp_path: Path, shared_data: Path) -> None:
    sets = [shared_data / "eval_dev" / "research_title_abstract"]
    files = [str(shared_data / "corpora" / name) for name in ("forum_iium.jsonl.gz", "research_ms_id.jsonl.gz")]
    removing = {"on_overlap": "remove"}
    counts = _build(tmp_path / "o", sets, files=files, max_documents_per_file=300, decontaminate=removing)
    documents = Shards(tmp_path / "o", "documents")
    assert counts["kept"] == len(documents) > 500
    assert len({text_key(t) for t in documents.column("text")}) == len(documents)
