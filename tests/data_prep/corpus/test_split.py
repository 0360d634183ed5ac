from __future__ import annotations

import os
from pathlib import Path

import pytest

from data_prep.corpus.decontaminate import Gate, check_training_text, training_texts
from data_prep.corpus.split import held_out_set, is_held_out, title_and_body
from data_prep.errors import UserError
from data_prep.evaluation_sets import load_set
from data_prep.shards import ShardWriter

BODY = " ".join(f"isi{i}" for i in range(30))


def test_the_fraction_is_held_out() -> None:
    names = [f"dokumen-{i}" for i in range(20_000)]
    for fraction in (0.0, 0.01, 0.3, 1.0):
        held = sum(is_held_out(name, fraction, 0) for name in names)
        assert abs(held - fraction * len(names)) <= 5 * (len(names) * fraction * (1 - fraction)) ** 0.5


def test_a_larger_fraction_moves_no_document_back() -> None:
    names = [f"dokumen-{i}" for i in range(2000)]
    assert {n for n in names if is_held_out(n, 0.1, 7)} < {n for n in names if is_held_out(n, 0.2, 7)}


def test_seeds_are_independent() -> None:
    names = [f"dokumen-{i}" for i in range(20_000)]
    both = sum(is_held_out(n, 0.5, 1) and is_held_out(n, 0.5, 2) for n in names)
    assert abs(both - 5000) < 5 * 61


def test_the_split_is_written_in_stone() -> None:
    # another hash would move documents of finished runs from one side to the other
    assert [i for i in range(15) if is_held_out(f"dokumen-{i}", 0.2, 0)] == [3, 4, 7, 8, 12, 13]


@pytest.mark.parametrize(
    "text,expected",
    [
        (f"Harga minyak naik\n{BODY}", ("Harga minyak naik", BODY)),
        (f"  Harga minyak naik \n\n{BODY}\nlagi", ("Harga minyak naik", f"{BODY}\nlagi")),
        (BODY, None),
        (f"Harga minyak\n{BODY}", None),
        ("Harga minyak naik\nlima sen", None),
        (f"{BODY}\n{BODY}", None),
        (f"“Harga minyak naik” - PM\n{BODY}", ("“Harga minyak naik” - PM", BODY)),
        (f"3 cara memasak nasi\n{BODY}", ("3 cara memasak nasi", BODY)),
        (f"(2) Akta ini mula\n{BODY}", None),
        (f"dan seterusnya bahagian lain\n{BODY}", None),
        (f"Harga minyak naik lagi.\n{BODY}", None),
        (f"Harga minyak naik\nHARGA MINYAK NAIK. {BODY}", None),
        ("", None),
    ],
)
def test_titles(text: str, expected: tuple[str, str] | None) -> None:
    assert title_and_body(text) == expected


def _documents(folder: Path, texts: list[tuple[str, str | None]]) -> Path:
    with ShardWriter(folder, "documents") as writer:
        for number, (text, document) in enumerate(texts):
            writer.append({"id": f"id{number}", "text": text, "source": "s", "language": "ms", "document": document})
    return folder


def test_held_out_documents_become_a_set_that_loads(tmp_path: Path) -> None:
    texts: list[tuple[str, str | None]] = [(f"Tajuk nombor {i} sahaja\n{BODY} {i}", None) for i in range(30)]
    texts += [
        (f"Tajuk yang sama\n{BODY} a", None),
        (f"Tajuk yang  sama\n{BODY} b", None),
        ("tanpa tajuk langsung", None),
    ]
    texts += [(f"Bab pertama buku ini\n{BODY} p", "buku"), (f"Bab kedua buku ini\n{BODY} q", "buku")]
    counts = held_out_set(_documents(tmp_path / "documents", texts), tmp_path / "sendiri", seed=0)
    assert counts == {"documents": 35, "queries": 31, "untitled": 1, "ambiguous": 1, "overlapping": 0}
    loaded = load_set(tmp_path / "sendiri")
    assert (loaded.name, len(loaded.documents), len(loaded.queries)) == ("sendiri", 35, 31)
    assert "Bab pertama buku ini" in loaded.queries and "Bab kedua buku ini" not in loaded.queries
    for query, ident in zip(loaded.queries, loaded.query_ids, strict=True):
        (relevant,) = loaded.relevant["all"][ident]
        answer = loaded.documents[loaded.document_ids.index(relevant)]
        assert query not in answer
        assert any(text == f"{query}\n{answer}" for text, _ in texts)


def test_fewer_queries_are_drawn_by_the_seed(tmp_path: Path) -> None:
    folder = _documents(tmp_path / "documents", [(f"Tajuk nombor {i} sahaja\n{BODY} {i}", None) for i in range(30)])
    drawn = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        held_out_set(folder, tmp_path / name, seed=seed, queries=10)
        drawn.append(load_set(tmp_path / name).queries)
    assert drawn[0] == drawn[1] != drawn[2]
    assert [len(d) for d in drawn] == [10, 10, 10]


def test_no_title_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text with a title line"):
        held_out_set(_documents(tmp_path / "documents", [("satu dua tiga", None)]), tmp_path / "set", seed=0)


def test_what_training_holds_is_left_out_of_the_set(tmp_path: Path) -> None:
    def article(number: int) -> str:
        return f"Tajuk rencana nombor {number}\n" + " ".join(f"kata{number}x{i}" for i in range(60))

    held = _documents(tmp_path / "held", [(article(i), None) for i in range(8)] + [("tanpa tajuk " * 8, None)])
    words = article(0).split("\n")[1].split()
    training = [
        " ".join(words[:40]),  # most of text 0
        article(1).upper(),
        "Tajuk lain sekali\n" + article(2).split("\n")[1],
        " ".join("lain" if i % 5 == 0 else w for i, w in enumerate(article(3).split("\n")[1].split())),
        "isi yang tidak kena mengena dengan apa-apa pun",
        " ".join(w for i in (5, 6) for w in article(i).split("\n")[1].split()),  # two at once
    ]
    folder = _documents(tmp_path / "training", [(text, None) for text in training])
    counts = held_out_set(held, tmp_path / "sets" / "sendiri", seed=0, training=folder)
    loaded = load_set(tmp_path / "sets" / "sendiri")
    assert sorted(loaded.queries) == ["Tajuk rencana nombor 4", "Tajuk rencana nombor 7"]
    assert counts["documents"] == len(loaded.documents) == 3
    assert os.listdir(tmp_path / "sets") == ["sendiri"]
    gate = Gate([tmp_path / "sets" / "sendiri"])
    assert check_training_text(training_texts(folder, "documents", "corpus"), gate) == len(training)


def test_a_set_that_shrinks_is_compared_again(tmp_path: Path) -> None:
    # five texts share a formula; training holds two of them, and the formula, which then is the words of three only
    formula = " ".join(f"rumus{i}" for i in range(20))
    bodies = [" ".join(f"kata{n}x{i}" for i in range(60)) for n in range(9)]
    texts: list[tuple[str, str | None]] = [
        (f"Tajuk rencana nombor {n}\n{formula + ' ' if n < 5 else ''}{body}", None) for n, body in enumerate(bodies)
    ]
    training = _documents(tmp_path / "training", [(bodies[0], None), (bodies[1], None), (f"{formula} dan lain", None)])
    counts = held_out_set(
        _documents(tmp_path / "held", texts), tmp_path / "sets" / "sendiri", seed=0, training=training
    )
    assert (counts["documents"], counts["queries"], counts["overlapping"]) == (4, 4, 5)
    gate = Gate([tmp_path / "sets" / "sendiri"])
    assert check_training_text(training_texts(training, "documents", "corpus"), gate) == 3
