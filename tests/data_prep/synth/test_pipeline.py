"""Chunk, ask, filter, find again, write: whole runs over small corpora, with rules and with a real server."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.corpus.private import PrivateConfig
from data_prep.errors import UserError
from data_prep.files import content_id, read_json
from data_prep.mine.policy import RULES
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.synth import synthesize
from data_prep.synth.chunks import ChunksConfig
from data_prep.synth.config import SynthConfig
from data_prep.synth.filters import REFUSALS
from data_prep.synth.synthesize import synthesize_pairs
from tests.data_prep.endpoint_server import Asked, EndpointServer

_PLACES = "Temoh Kuang Sadao Bakri Lubok Senai Pulai Jerlun Rawang Serom Tampin Parit Melor Gerik Baling Kodiang"
PLACES = _PLACES.split()
_FRUITS = (
    "durian manggis rambutan cempedak langsat pulasan ciku nangka jambu belimbing kuini sentul duku bidara salak ceri"
)
FRUITS = _FRUITS.split()


def village(number: int) -> str:
    """A document about a village of its own: a title and facts that rules can ask about."""
    place, fruit = f"Kampung {PLACES[number % 16]} {'ABCDEFGH'[number // 16]}", FRUITS[number % 16]
    return (
        f"Perihal {place} dan kebun {fruit}\n"
        f"{place} terletak di Lembah Sungai {PLACES[(number + 5) % 16]}. Penduduk menanam {fruit} sejak dahulu lagi.\n"
        f"Balai raya {place} dirasmikan pada {1 + number % 28} Mac {1950 + number}. Ramai yang datang melihatnya.\n"
        f"Koperasi {place} bertujuan menjual {fruit} ke bandar besar. Keuntungannya dibahagi sama rata setiap tahun."
    )


@pytest.fixture
def villages(tmp_path: Path, write_documents: Any) -> Path:
    folder: Path = write_documents(tmp_path / "documents", [village(n) for n in range(40)])
    return folder


def _run(documents: Path, out: Path, *, seed: int = 0, **more: Any) -> dict[str, int | float]:
    keys = ("evaluation_sets", "teacher", "fanout", "scratch", "cache", "decontaminate", "private")
    how = {key: more.pop(key) for key in keys if key in more}
    return synthesize_pairs(SynthConfig(**more), documents=documents, out=out, seed=seed, progress=Progress(), **how)


def _pairs(folder: Path) -> list[dict[str, Any]]:
    return list(Shards(folder, "pairs"))


def test_extractive_pairs_are_found_again(tmp_path: Path, villages: Path) -> None:
    counts = _run(villages, tmp_path / "out", styles=["extractive"], max_pairs_per_document=2)
    rows = _pairs(tmp_path / "out")
    assert counts["pairs"] == counts["extractive"] == len(rows) >= 60 and counts["chunks"] == 40
    texts = {row["id"]: row["text"] for row in Shards(villages, "documents")}
    for row in rows:
        assert row["source"] == "synth:extractive" and row["positives"] == [texts[row["query_document"]]]
        assert row["positive_documents"] == [row["query_document"]]
        place = re.search(r"Kampung \w+ \w", row["query"])
        assert place and place.group() in row["positives"][0]
    report = read_json(tmp_path / "out" / "report.json")
    assert report["round_trip"] == {"name": "tfidf-random", "k": 10, "chunks": 40, "styles": ["extractive"]}
    style = report["styles"]["extractive"]
    assert style["made"] == style["kept"] + sum(
        value for name, value in style.items() if name.startswith(("refused", "dup"))
    )
    assert style["asked"] == 40 and report["languages"] == {"ms": {"documents": 40, "pairs": len(rows)}}
    assert 0 < len(report["examples"]) <= 50 and set(REFUSALS) <= set(report["filters"])
    assert report["generator_counts"] == {"asks": 40} and counts["generator_asks"] == 40


class Deaf:
    """A teacher that hears nothing but one word; the real ones are tested elsewhere."""

    name, dimension, hash, normalised, may_be_zero = "deaf", 2, "deaf", True, False

    def prompt(self, role: str) -> str:
        """No prompt."""
        return ""

    def embed(self, texts: Sequence[str], *, role: str, progress: Progress | None = None) -> Any:
        """(1, 0) for texts with the word, else (0, 1)."""
        return np.array([[1, 0] if "Temoh" in text else [0, 1] for text in texts], dtype=np.float32)


def test_the_round_trip_refuses_what_its_teacher_does_not_find(tmp_path: Path, villages: Path) -> None:
    free = _run(villages, tmp_path / "free", styles=["extractive"], filters={"round_trip": None})
    assert read_json(tmp_path / "free" / "report.json")["round_trip"] is None and free["refused_round_trip"] == 0
    counts = _run(villages, tmp_path / "out", styles=["extractive", "title"], filters={"round_trip": 3}, teacher=Deaf())
    assert counts["title"] == 40  # titles are the document's own words and are not tried
    kept = [row for row in _pairs(tmp_path / "out") if row["source"] == "synth:extractive"]
    # three villages are called Temoh; of all others the first three rows win every tie
    rows = {row["id"]: number for number, row in enumerate(Shards(villages, "documents"))}
    temoh = [number for number in range(40) if "Temoh" in village(number)][:3]
    others = [number for number in range(40) if "Temoh" not in village(number)][:3]
    for row in kept:
        assert rows[row["query_document"]] in (temoh if "Temoh" in row["query"] else others)
    assert counts["refused_round_trip"] == free["extractive"] - len(kept) > 50
    samples = read_json(tmp_path / "out" / "report.json")["filters"]["refused_round_trip"]
    assert samples["refused"] == counts["refused_round_trip"] and len(samples["samples"]) == 5


def test_chunks_headings_and_two_hops(tmp_path: Path, write_documents: Any) -> None:
    text = "Panduan Buah Tempatan\n" + "\n".join(
        f"Kebun {name.capitalize()}\nKebun {name} milik Koperasi Seri Buah bernilai RM{n + 2} juta. {'Tanah di situ subur dan rata. ' * 5}"
        for n, name in enumerate(FRUITS[:6])
    )
    write_documents(tmp_path / "documents", [text])
    chunks = {
        "tokens_per_word": 1.0,
        "target_tokens": 40,
        "max_tokens": 70,
        "min_tokens": 10,
        "prefix_title": True,
        "title_tokens": 16,
    }
    counts = _run(
        tmp_path / "documents",
        tmp_path / "out",
        styles=["title", "heading", "extractive", "multi_hop"],
        chunks=chunks,
        multi_hop_share=1.0,
    )
    rows = _pairs(tmp_path / "out")
    assert counts["chunks"] == 6 and counts["title"] == 1 and counts["heading"] == 5
    headings = [row for row in rows if row["source"] == "synth:heading"]
    assert headings[0]["query"] == "Panduan Buah Tempatan: Kebun Manggis"
    # the prefix names title and heading and would give a heading away: a heading's passage has none
    assert all(row["query"].partition(": ")[2] not in row["positives"][0] for row in headings)
    extractive = [row for row in rows if row["source"] == "synth:extractive"]
    assert any(row["positives"][0].startswith("Panduan Buah Tempatan › Kebun Manggis\n") for row in extractive)
    hops = [row for row in rows if row["source"] == "synth:multi_hop"]
    assert hops and all(len(row["positives"]) == 2 == len(set(row["positive_ids"])) for row in hops)
    assert all(row["query"].count("Koperasi Seri Buah") == 2 for row in hops)


def _fingerprint(folder: Path) -> tuple[str, str]:
    report = read_json(folder / "report.json")
    return Shards(folder, "pairs").fingerprint, json.dumps(report, sort_keys=True)


def test_parts_fan_out_and_runs_give_the_same(tmp_path: Path, villages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how: dict[str, Any] = {
        "styles": ["title", "extractive", "colloquial", "cloze"],
        "filters": {"samples": 50},
        "max_pairs_per_document": 6,
    }
    _run(villages, tmp_path / "whole", **how)
    _run(villages, tmp_path / "again", **how)
    assert _fingerprint(tmp_path / "whole") == _fingerprint(tmp_path / "again")
    _run(villages, tmp_path / "other", seed=1, **how)
    assert _fingerprint(tmp_path / "whole")[0] != _fingerprint(tmp_path / "other")[0]
    monkeypatch.setattr(synthesize, "PART_ROWS", 7)
    scratch = tmp_path / "scratch"
    _run(villages, tmp_path / "parts", scratch=scratch, **how)
    assert Shards(tmp_path / "parts", "pairs").fingerprint == Shards(tmp_path / "whole", "pairs").fingerprint
    whole, parts = (read_json(tmp_path / name / "report.json") for name in ("whole", "parts"))
    assert {k: v for k, v in whole.items() if k != "styles"} == {k: v for k, v in parts.items() if k != "styles"}
    assert whole["styles"] == parts["styles"] and len(list(scratch.glob("part-*"))) == 6
    for path in scratch.glob("part-*/candidates.jsonl"):  # a finished part is not computed again
        path.touch()
    times = {path: path.stat().st_mtime_ns for path in scratch.glob("part-*/candidates.jsonl")}
    _run(villages, tmp_path / "resumed", scratch=scratch, **how)
    assert times == {path: path.stat().st_mtime_ns for path in scratch.glob("part-*/candidates.jsonl")}
    assert Shards(tmp_path / "resumed", "pairs").fingerprint == Shards(tmp_path / "whole", "pairs").fingerprint


def test_copies_across_parts_are_told(tmp_path: Path, villages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardWriter(tmp_path / "twice", "documents") as writer:
        for number in (*range(4), *range(4)):
            text = village(number)
            writer.append({"id": content_id(text), "text": text, "source": "test", "language": "ms"})
    for name, rows in (("one", 100), ("two", 4)):
        monkeypatch.setattr(synthesize, "PART_ROWS", rows)
        counts = _run(tmp_path / "twice", tmp_path / name, styles=["title", "extractive"], filters={"round_trip": 2})
        assert counts["title"] == 4 and counts["extractive"] == 8
        assert counts["duplicates"] == (0 if rows == 100 else 12)  # one document of two rows is one document
    assert Shards(tmp_path / "one", "pairs").fingerprint == Shards(tmp_path / "two", "pairs").fingerprint


def test_evaluation_questions_never_become_pairs(tmp_path: Path, villages: Path, write_jsonl: Any) -> None:
    folder = tmp_path / "sets" / "mini"
    write_jsonl(
        folder / "corpus.jsonl.gz", [{"_id": "d", "title": "", "text": "Teks lain yang tiada kaitan dengan kampung."}]
    )
    write_jsonl(folder / "queries.jsonl.gz", [{"_id": "q", "text": "di manakah kampung temoh a  TERLETAK"}])
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    asked = "Di manakah Kampung Temoh A terletak?"
    _run(villages, tmp_path / "open", styles=["extractive"])
    assert asked in [row["query"] for row in _pairs(tmp_path / "open")]
    counts = _run(villages, tmp_path / "out", styles=["extractive"], evaluation_sets=[folder])
    queries = [row["query"] for row in _pairs(tmp_path / "out")]
    assert counts["refused_evaluation_overlap"] >= 1 and asked not in queries
    assert "Bilakah Balai raya Kampung Temoh A dirasmikan?" in queries


def test_what_counts_as_an_overlap_reaches_every_part(
    tmp_path: Path, villages: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sets" / "mini"
    write_jsonl(
        folder / "corpus.jsonl", [{"_id": "d", "title": "", "text": "Teks lain yang tiada kaitan sama sekali."}]
    )
    asked = [f"Di manakah Kampung {place} terletak?" for place in ("Temoh A", "Kodiang A", "Temoh B")]
    queries = [{"_id": f"q{n}", "text": one.replace("terletak", "terletak sekarang")} for n, one in enumerate(asked)]
    write_jsonl(folder / "queries.jsonl", queries)
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td\t1\n" for n in range(3)))
    monkeypatch.setattr(synthesize, "PART_ROWS", 7)
    how: dict[str, Any] = {"styles": ["extractive"], "filters": {"round_trip": None}, "evaluation_sets": [folder]}
    _run(villages, tmp_path / "near", **how)
    assert not {*asked} & {row["query"] for row in _pairs(tmp_path / "near")}
    how |= {"decontaminate": DecontaminateConfig(near=1.0), "private": PrivateConfig(enabled=False)}
    _run(villages, tmp_path / "same", **how)
    assert {*asked} <= {row["query"] for row in _pairs(tmp_path / "same")}


@pytest.mark.parametrize("cut", [False, True])
def test_passages_of_one_document_are_no_negatives_of_each_other(tmp_path: Path, cut: bool) -> None:
    with ShardWriter(tmp_path / "documents", "documents") as writer:
        for number in range(40):
            text = village(number)
            for part, body in enumerate((text, f"Lagi {text}\nSekian sahaja kisah kampung ini buat masa sekarang.")):
                row = {"id": content_id(body), "text": body, "source": "test", "language": "ms"}
                writer.append({**row, "document": None if number == 3 and part else f"daerah {number}"})
    chunks = {"tokens_per_word": 1.0, "target_tokens": 30, "max_tokens": 50, "min_tokens": 10}
    counts = _run(
        tmp_path / "documents", tmp_path / "out", styles=["title", "extractive"], scratch=tmp_path / "scratch",
        negatives={"negatives_per_query": 3, "negative_ranks": [1, 12], "without": [r for r in RULES if r != "same_document"]},
        **({"chunks": chunks} if cut else {}),
    )  # fmt: skip
    made = tmp_path / "scratch" / "chunks" if cut else tmp_path / "documents"
    texts: dict[str, set[str]] = {}
    for row in Shards(made, "documents"):
        texts.setdefault(row["text"], set()).add(row["document"] or row["id"])
    rows = _pairs(tmp_path / "out")
    alone = content_id(f"Lagi {village(3)}\nSekian sahaja kisah kampung ini buat masa sekarang.")
    assert counts["negatives_skipped_negative_same_document"] > 50
    assert {row["query_document"] for row in rows} <= {alone, *(f"daerah {number}" for number in range(40))}
    assert alone in {row["query_document"] for row in rows}
    for row in rows:
        assert set(row["positive_documents"]) == {row["query_document"]}
        assert row["query_document"] not in row["negative_documents"]
        assert all(name in texts[text] for name, text in zip(row["negative_documents"], row["negatives"], strict=True))


def test_negatives_are_mined(tmp_path: Path, villages: Path) -> None:
    counts = _run(
        villages,
        tmp_path / "out",
        styles=["extractive"],
        max_pairs_per_document=1,
        negatives={"negatives_per_query": 2, "negative_ranks": [2, 20]},
    )
    rows = _pairs(tmp_path / "out")
    assert counts["pairs"] == len(rows) and counts["negatives_negatives"] == sum(len(r["negatives"]) for r in rows) > 0
    assert all(set(row["negatives"]).isdisjoint(row["positives"]) for row in rows)
    assert (tmp_path / "out" / "negatives.json").exists() and not (tmp_path / "out" / ".scratch").exists()


def test_what_is_refused_alone_is_named(tmp_path: Path, villages: Path, write_documents: Any) -> None:
    write_documents(tmp_path / "more", ["Baris tanpa soalan apa pun di dalamnya", *(village(n) for n in range(20))])
    wanted = (
        r"finds no pair in 21 documents \(\d+ questions made; .*refused_round_trip [1-9]\d.*raise synth.filters.round"
    )
    with pytest.raises(UserError, match=wanted):
        _run(tmp_path / "more", tmp_path / "out", styles=["extractive"], filters={"round_trip": 1}, teacher=_Nothing())
    with pytest.raises(UserError, match="holds no tokenizer"):
        _run(villages, tmp_path / "out", styles=["title"], chunks={"tokenizer": str(tmp_path)})
    assert not (tmp_path / "out" / "manifest.json").exists()
    write_documents(tmp_path / "empty", [])
    with pytest.raises(UserError, match="finds no pair in 0 documents"):
        _run(tmp_path / "empty", tmp_path / "out", styles=["extractive"])


class _Nothing(Deaf):
    def embed(self, texts: Sequence[str], *, role: str, progress: Progress | None = None) -> Any:
        """Questions find the passage with one word and no other."""
        return np.array([[1, 0] if role == "query" or "tanpa" in text else [0, 1] for text in texts], dtype=np.float32)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"styles": ["cross_lingual"]}, 'needs generator = "llm"'),
        ({"styles": ["poem"]}, "must be distinct and among question, title"),
        ({"styles": ["heading"]}, r"add \[synth.chunks\]"),
        ({"generator": "llm"}, r"needs \[synth.llm\]"),
        ({"chunks": {"max_tokens": 10}}, "must hold"),
    ],
)
def test_bad_settings(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SynthConfig(**config)


def _reply(asked: Asked) -> str:
    """Questions about the village that the prompt shows; one of them is talk about the task."""
    prompt = json.dumps(asked.body["messages"], ensure_ascii=False)
    place = re.search(r"Kampung \w+ \w", prompt)
    name = place.group() if place else "?"
    return json.dumps(
        {"questions": [f"Bilakah balai raya di {name} mula dibuka?", f"Berdasarkan teks di atas, apakah {name}?"]}
    )


def test_a_model_writes_and_a_second_run_asks_nothing(tmp_path: Path, villages: Path) -> None:
    with EndpointServer(answer=_reply) as server:
        llm = {"base_url": server.url, "model": server.model, "backoff_s": 0.01, "price_in": 1.0, "price_out": 2.0}
        how: dict[str, Any] = {
            "generator": "llm", "llm": llm, "styles": ["question", "title"], "cache": tmp_path / "cache",
            "chunks": ChunksConfig().model_dump(),
        }  # fmt: skip
        counts = _run(villages, tmp_path / "out", **how)
        asked = len(server.asked)
        again = _run(villages, tmp_path / "again", **how)
        assert len(server.asked) == asked >= 40
    assert (
        counts["refused_meta"] == 40
        and counts["title"] == 40
        and counts["question"] + counts["refused_round_trip"] == 40
    )
    assert counts["question"] > 30 and counts["pairs"] == again["pairs"]
    report = read_json(tmp_path / "out" / "report.json")
    assert report["generator"] == "llm" and report["generator_counts"]["questions"] == 80
    assert any("cost" in name or "spent" in name for name in report["generator_counts"])
    assert Shards(tmp_path / "out", "pairs").fingerprint == Shards(tmp_path / "again", "pairs").fingerprint


def test_a_run_that_stops_at_its_budget_goes_on_later(tmp_path: Path, villages: Path) -> None:
    with EndpointServer(answer=_reply) as server:
        llm = {
            "base_url": server.url,
            "model": server.model,
            "backoff_s": 0.01,
            "price_in": 1.0,
            "price_out": 2.0,
            "concurrency": 2,
        }
        how: dict[str, Any] = {"generator": "llm", "styles": ["question"], "cache": tmp_path / "cache"}
        with pytest.raises(UserError, match="spending_limit"):
            _run(villages, tmp_path / "out", llm={**llm, "spending_limit": 0.006}, **how)
        first = len(server.asked)
        assert 0 < first < 40 and not (tmp_path / "out" / "manifest.json").exists()
        counts = _run(villages, tmp_path / "out", llm=llm, **how)
        assert len(server.asked) == 40  # nothing was asked twice
    assert counts["pairs"] > 30


def test_a_model_writes_every_style_beside_the_rules(tmp_path: Path, villages: Path) -> None:
    seen: list[str] = []

    def reply(asked: Asked) -> str:
        seen.append(json.dumps(asked.body["messages"], ensure_ascii=False))
        place = re.search(r"Kampung \w+ \w", seen[-1])
        return json.dumps(
            {"questions": [f"Perkara {len(seen)} tentang {place.group() if place else '?'} bila dibuka?"]}
        )

    with EndpointServer(answer=reply) as server:
        counts = _run(
            villages, tmp_path / "out", generator="llm", llm={"base_url": server.url, "model": server.model},
            styles=["cross_lingual", "multi_hop", "colloquial", "keywords", "question", "extractive", "title"],
            filters={"language": False, "round_trip": None}, max_documents=12, max_pairs_per_document=9,
            cross_lingual_share=1.0, multi_hop_share=1.0, colloquial_share=1.0, keywords_share=1.0,
        )  # fmt: skip
    rows = _pairs(tmp_path / "out")
    for style in ("cross_lingual", "colloquial", "keywords", "question", "extractive", "title"):
        assert counts[style] >= 12, style
    assert {row["language"] for row in rows if row["source"] == "synth:cross_lingual"} == {"en"}
    assert {row["language"] for row in rows if row["source"] != "synth:cross_lingual"} == {"ms"}
    hops = [row for row in rows if row["source"] == "synth:multi_hop"]
    assert all(len(row["positives"]) == 2 for row in hops) and counts["multi_hop"] == len(hops) > 0
    assert len(seen) == 48 + len(hops)  # rules ask nobody
