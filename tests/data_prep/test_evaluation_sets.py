from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.corpus.keys import evaluation_keys, text_key
from data_prep.errors import UserError
from data_prep.evaluation_sets import find_sets, load_set, set_files


def test_load(evaluation_set: Path) -> None:
    (evaluation_set / "qrels_hard.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    loaded = load_set(evaluation_set)
    assert loaded.name == "mini" and loaded.document_ids == ["d1", "d2"] and loaded.query_ids == ["q1", "q2"]
    assert loaded.documents[0] == "Harga minyak naik\nHarga minyak naik lima sen mulai esok pagi."
    assert loaded.relevant == {"all": {"q1": {"d1"}, "q2": {"d2"}}, "hard": {"q1": {"d1"}}}
    assert find_sets([str(evaluation_set.parent / "*")]) == [evaluation_set]


@pytest.mark.parametrize(
    ("qrels", "says"),
    [
        ("query-id\tcorpus-id\tscore\nq1\td1\n", "line 2.*2 columns"),
        ("query-id\tcorpus-id\tscore\nq9\td1\t1\n", "query 'q9'"),
        ("query-id\tcorpus-id\tscore\nq1\td9\t1\n", "document 'd9'"),
        ("query-id\tcorpus-id\tscore\nq1\td1\tya\n", "'ya' is no number"),
        ("query-id\tcorpus-id\tscore\nq1\td1\tnan\n", "'nan' is no number"),
        ("q1\td1\t1\nq2\td2\t1\n", "must be a header"),
        ("query-id\tcorpus-id\tscore\nq1\td1\t0\n", "no relevant document"),
    ],
)
def test_bad_judgements(evaluation_set: Path, qrels: str, says: str) -> None:
    (evaluation_set / "qrels.tsv").write_text(qrels)
    with pytest.raises(UserError, match=says):
        load_set(evaluation_set)


def test_an_id_that_stands_twice_is_refused(evaluation_set: Path) -> None:
    (evaluation_set / "queries.jsonl.gz").unlink()
    (evaluation_set / "queries.jsonl").write_text('{"_id": "q1", "text": "a"}\n{"_id": "q1", "text": "b"}\n')
    with pytest.raises(UserError, match=r"line 2: _id 'q1' stands twice"):
        load_set(evaluation_set)


def queries(folder: Path, *lines: str) -> None:
    (folder / "queries.jsonl.gz").unlink()
    (folder / "queries.jsonl").write_text("".join(line + "\n" for line in lines))


def test_every_line_is_counted_and_queries_without_an_answer_are_named(evaluation_set: Path) -> None:
    row = '{"_id": "q%d", "text": "soalan %d"}'
    queries(evaluation_set, *(row % (i, i) for i in (1, 2, 3)))
    loaded = load_set(evaluation_set)
    assert (loaded.queries_in_file, loaded.query_ids, loaded.unjudged) == (3, ["q1", "q2"], ["q3"])
    assert loaded.documents_in_file == len(loaded.documents) == 2
    (evaluation_set / "qrels_more.tsv").write_text("query-id\tcorpus-id\tscore\nq3\td1\t1\nq1\td2\t0\n")
    loaded = load_set(evaluation_set)
    assert (loaded.query_ids, loaded.unjudged, loaded.irrelevant) == (["q1", "q2", "q3"], [], {"q1": {"d2"}})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"_id": "q2", "text": "  "}', r"line 2: the query 'q2' is empty"),
        ('{"_id": "q2", "text": "dua", "language": 3}', r"line 2: language 3 is no text"),
        ('{"_id": "q2", "text": "dua", "source": ""}', r"line 2: source '' is no text"),
    ],
)
def test_bad_queries(evaluation_set: Path, line: str, says: str) -> None:
    queries(evaluation_set, '{"_id": "q1", "text": "satu"}', line)
    with pytest.raises(UserError, match=says):
        load_set(evaluation_set)


def test_what_set_json_says(evaluation_set: Path) -> None:
    queries(evaluation_set, '{"_id": "q1", "text": "satu", "source": "forum"}', '{"_id": "q2", "text": "dua"}')
    assert load_set(evaluation_set).languages == [None, None] and not load_set(evaluation_set).facts.near_duplicates
    (evaluation_set / "set.json").write_text('{"kind": "news", "language": "ms", "near_duplicates": true}')
    assert {f.name for f in set_files(evaluation_set)} == {"corpus.jsonl.gz", "queries.jsonl", "qrels.tsv", "set.json"}
    assert set_files(evaluation_set / "qrels.tsv") == [evaluation_set / "qrels.tsv"]
    loaded = load_set(evaluation_set)
    assert (loaded.languages, loaded.sources, loaded.facts.kind) == (["ms", "ms"], ["forum", None], "news")
    assert loaded.facts.near_duplicates


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"near_duplicate": true}', r"set\.json: near_duplicate: unknown key. Fix: valid: kind, language, near_dup"),
        ('{"near_duplicates": "yes"}', r"set\.json: near_duplicates = 'yes': should be a valid boolean"),
        ("[1]", r"set\.json: is a JSON list, not an object"),
        ("{", r"set\.json: is not valid JSON"),
    ],
)
def test_bad_set_json(evaluation_set: Path, text: str, says: str) -> None:
    (evaluation_set / "set.json").write_text(text)
    with pytest.raises(UserError, match=says):
        load_set(evaluation_set)


def test_a_subset_must_not_be_called_all(evaluation_set: Path) -> None:
    (evaluation_set / "qrels_all.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    with pytest.raises(UserError, match="names its subset 'all'"):
        load_set(evaluation_set)


def test_no_set_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"matches no folder with a qrels\.tsv"):
        find_sets([str(tmp_path / "*")])


def test_key_ignores_case_space_and_width_but_not_words() -> None:
    assert text_key("Harga  MINYAK\nnaik") == text_key(" harga minyak naik ") == text_key("ｈarga minyak naik")
    assert text_key("harga minyak naik") != text_key("harga minyak turun")
    text_key("\ud800")  # a lone surrogate has a key as well


def test_evaluation_keys_hold_queries_documents_and_bodies(evaluation_set: Path) -> None:
    keys = evaluation_keys([evaluation_set])
    for text in (
        "Berapa harga minyak esok hari",
        "Harga minyak naik Harga minyak naik lima sen mulai esok pagi.",
        "harga minyak naik lima sen mulai esok pagi.",
        "Kucing itu tidur di atas meja makan.",
    ):
        assert text_key(text) in keys
    assert len(keys) == 5
