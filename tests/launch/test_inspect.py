"""`rumpun inspect`: what it says of every kind of folder is so, damage is found, and nothing gives a traceback."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from data_prep.inspect import Distribution, inspect
from data_prep.pairs.row import pair_row
from data_prep.progress import Progress
from data_prep.shards import SCHEMA_VERSION, ShardWriter
from launch.cli import main
from launch.inspect_command import plain_lines, printable, sections_of


def _said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *argv])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return int(ended.value.code or 0), out, err


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    rng = random.Random(3)

    def text(longest: int) -> str:
        return " ".join(rng.choice(("ikan", "hujan", "நீர்", "air")) for _ in range(rng.randint(1, longest)))

    made = []
    for i in range(500):
        negatives = [text(40) for _ in range(rng.randint(0, 4))]
        made.append(
            pair_row(
                f"soalan {rng.randrange(300)}",
                [text(30)],
                negatives,
                rng.choice(("hukum", "berita")),
                rng.choice(("ms", "en")),
                [rng.random()],
                [rng.random() for _ in negatives],
                query_document="d" if i % 5 == 0 else None,
            )
        )
    return made


@pytest.fixture(scope="module")
def pairs(rows: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "mine" / "pairs"
    with ShardWriter(folder, "pairs", rows_per_file=120) as writer:
        writer.extend(rows)
    return folder


def _by_hand(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    quantiles = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
    return {f"{q:g}": ordered[max(0, -int(-q * len(ordered) // 1) - 1)] for q in quantiles}


def test_facts_are_those_of_the_rows(pairs: Path, rows: list[dict[str, Any]]) -> None:
    facts = inspect(pairs, rows=4, seed=7)
    assert (facts["kind"], facts["rows"], facts["good"], len(facts["files"])) == ("pairs", 500, True, 5)
    assert facts["sources"] == dict(Counter(r["source"] for r in rows).most_common())
    assert facts["languages"] == dict(Counter(r["language"] for r in rows).most_common())
    texts = {"query": [r["query"] for r in rows]} | {
        side: [t for r in rows for t in r[side]] for side in ("positives", "negatives")
    }
    for name, found in texts.items():
        lengths = facts["lengths"][name]
        assert lengths["characters"]["quantiles"] == _by_hand([len(t) for t in found])
        assert lengths["words"]["quantiles"] == _by_hand([len(t.split()) for t in found])
        assert lengths["words"]["mean"] == pytest.approx(sum(len(t.split()) for t in found) / len(found))
    assert facts["per_row"]["negatives"]["quantiles"] == _by_hand([len(r["negatives"]) for r in rows])
    scores = [s for r in rows for s in r["negative_scores"] or ()]
    assert facts["scores"]["negative_scores"]["count"] == len(scores)
    for quantile, value in _by_hand(scores).items():
        assert facts["scores"]["negative_scores"]["quantiles"][quantile] == pytest.approx(value, rel=0.005)
    assert facts["repeated"] == {"queries": 500 - len({r["query"] for r in rows})}
    assert facts["rows_with"] == {
        "no negative": sum(not r["negatives"] for r in rows), "no positive": 0, "known documents": 100
    }  # fmt: skip
    assert [s["row"] for s in facts["sample"]] == sorted(random.Random(7).sample(range(500), 4))
    assert all(s["query"] == rows[s["row"]]["query"] for s in facts["sample"])


def test_json_and_lines_and_codes(pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _said(capsys, str(pairs), "--json", "--rows", "1")
    assert code == 0
    assert json.loads(out)["lengths"]["query"]["words"]["quantiles"]["0.5"] == 2
    code, out, _ = _said(capsys, str(pairs.parent.parent), "--rows", "2", "--seed", "1")  # the run: one folder in it
    assert code == 0
    assert "  rows: 500" in out
    assert len(re.findall(r"^row \d+$", out, flags=re.MULTILINE)) == 2
    assert "5 OK" in out
    assert _said(capsys, str(pairs), "--rows", "0")[1].count("\nrow ") == 0


def test_documents_tokens_and_a_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path / "corpus", "documents") as writer:
        for i in range(9):
            writer.append({"id": f"{i}", "text": f"teks {i // 2}", "source": "s", "language": "ms", "document": None})
    with ShardWriter(tmp_path / "tokens" / "train", "tokens") as writer:
        for i in range(4):
            writer.append({"input_ids": [1] * 8, "document_starts": [0, 3][: 1 + i % 2], "source": None})
    with ShardWriter(tmp_path / "synth", "pairs"):
        pass
    facts = inspect(tmp_path / "corpus")
    assert facts["repeated"] == {"texts": 4, "ids": 0}
    facts = inspect(tmp_path / "tokens" / "train")
    assert facts["per_row"]["tokens"]["quantiles"]["1"] == 8
    assert facts["per_row"]["documents"]["mean"] == 1.5
    assert facts["sources"] == {"(none)": 4}
    assert inspect(tmp_path / "synth")["rows"] == 0
    code, out, _ = _said(capsys, str(tmp_path))
    assert code == 0
    assert "holds 3 folders; inspect one of them" in out
    assert _said(capsys, str(tmp_path / "synth"))[0] == 0


def test_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from data_prep.embed.store import Kind, Parts, id_digests

    kind = Kind(teacher="t" * 8, name="guru", dimension=6, normalised=False, role="passage", prompt="")
    vectors = np.arange(60, dtype=np.float16).reshape(10, 6)
    vectors[4] = 0
    parts = Parts(tmp_path, kind)
    parts.finish([parts.write(0, "asked", id_digests([str(i // 2) for i in range(10)]), vectors)])
    facts = inspect(tmp_path, rows=2)
    assert (facts["kind"], facts["rows"], facts["teacher"], facts["dimension"]) == ("vectors", 10, "guru", 6)
    assert (facts["zero_rows"], facts["not_finite_rows"], facts["repeated"]) == (1, 0, {"ids": 5})
    told = facts["lengths"]["vector"]["norm as stored"]["quantiles"]
    assert told["1"] == pytest.approx(float(np.linalg.norm(np.arange(54, 60))), rel=0.005)
    code, out, _ = _said(capsys, str(tmp_path))
    assert (code, "teacher: guru" in out) == (0, True)


def test_text_stores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from data_prep.text_store import build_text_store

    with ShardWriter(tmp_path / "corpus", "documents") as writer:
        for i in range(9):
            writer.append({"id": f"{i}", "text": f"teks {i}", "source": "s", "language": "ms", "document": None})
    build_text_store(tmp_path / "corpus", tmp_path / "store", progress=Progress())
    code, out, _ = _said(capsys, str(tmp_path / "store"))
    assert (code, "store: texts" in out, "  rows: 9" in out) == (0, True, True)
    (tmp_path / "store" / "text").write_bytes(b"x")
    code, out, _ = _said(capsys, str(tmp_path / "store"))
    assert (code, "BAD: text" in out) == (1, True)


@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_found_and_named(
    rows: list[dict[str, Any]], tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with ShardWriter(tmp_path, "pairs", rows_per_file=200) as writer:
        writer.extend(rows)
    path = tmp_path / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "cut":
        path.write_bytes(data[:-1])
    else:
        path.unlink()
    code, out, _ = _said(capsys, str(tmp_path))
    assert code == 1
    says = {"flip": "its checksum differs", "cut": "bytes, the manifest says", "remove": "is missing"}[harm]
    assert f"1 of 3 BAD: {path.name}" in out
    assert says in out
    assert json.loads(_said(capsys, str(tmp_path), "--json")[1])["good"] is False


@pytest.mark.parametrize(
    ("make", "says"),
    [
        ({}, "is an empty folder"),
        ({"index.json": "{}", "shard.00000.mds": ""}, "is a MosaicML MDS data set"),
        ({"qrels.tsv": ""}, "is an evaluation set"),
        ({"config.json": "{}", "model.safetensors": ""}, "is a model folder"),
        ({"state.json": "{}"}, "of the library `datasets`"),
        ({"stage.json": "{}"}, "holds no finished shards"),
        ({"a.jsonl.gz": ""}, "holds raw files"),
        ({"notes.doc": ""}, "it holds notes.doc"),
        ({"manifest.json": "{"}, "is not valid JSON"),
        ({"manifest.json": "[]"}, "lists no files"),
        ({"manifest.json": '{"kind": "pairs", "files": [3]}'}, "lists no files"),
        ({"manifest.json": '{"kind": "pairs", "schema": 3, "files": []}'}, "lacks the rows"),
        (
            {"manifest.json": '{"kind": "pairs", "schema": 1, "rows": 0, "files": [], "fingerprint": ""}'},
            "schema version 1",
        ),
    ],
)
def test_what_is_no_folder_of_shards(
    tmp_path: Path, make: dict[str, str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in make.items():
        (tmp_path / name).write_text(text)
    code, _, err = _said(capsys, str(tmp_path))
    assert code == 2
    assert says in err
    assert "Fix: " in err


def test_rows_of_another_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data_prep.files import sha256_file, write_json

    path = tmp_path / "part-00000.parquet"
    for write in (lambda: pq.write_table(pa.table({"a": [1]}), path), lambda: path.write_bytes(b"PAR1 no")):
        write()
        file = {"name": path.name, "rows": 1, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
        told = {"kind": "pairs", "schema": SCHEMA_VERSION, "rows": 1, "files": [file], "fingerprint": ""}
        write_json(tmp_path / "manifest.json", told)
        code, _, err = _said(capsys, str(tmp_path))
        assert (code, "holds rows that are no pairs" in err) == (2, True)


def test_paths_that_are_no_folders(tmp_path: Path, pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, says in (
        (tmp_path / "none", "no such folder"),
        (pairs / "part-00000.parquet", f"give {pairs}"),
        (pairs.parent / "paris", "holds: pairs"),
    ):
        code, _, err = _said(capsys, str(path))
        assert code == 2
        assert says in err
    assert _said(capsys, str(pairs), "--rows", "-1")[0] == 2
    assert "no such folder" in _said(capsys, str(pairs), "--tokenizer", str(tmp_path / "x"))[2]


def test_texts_cannot_drive_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path, "pairs") as writer:
        writer.append(pair_row("\x1b[2Jhilang [bold]tebal[/bold]\r\n\x00\u202e", ["jawab " * 400], [], "s\x1b", "ms"))
    _, out, _ = _said(capsys, str(tmp_path))
    assert not set(out) & {"\x1b", "\x00", "\r", "\u202e"}
    assert "\\x1b[2Jhilang [bold]tebal[/bold]\\r\\n\\x00\\u202e" in out
    assert printable("k" * 500).endswith("…")


def test_tables_where_they_fit_and_lines_elsewhere(pairs: Path) -> None:
    import io

    from rich.console import Console

    from launch.inspect_command import show

    sections = sections_of(inspect(pairs, rows=1))
    for width, tables in ((120, True), (60, False)):
        stream = io.StringIO()
        show(sections, Console(file=stream, width=width, force_terminal=True, color_system=None))
        assert ("┃" in stream.getvalue() or "│" in stream.getvalue()) is tables
        assert "hukum" in stream.getvalue()
    assert plain_lines(sections[0])[0] == "  rows: 500"


def test_numbers_that_are_none() -> None:
    counted = Distribution()
    assert counted.facts() == {"count": 0}
    for value in (float("nan"), float("inf"), 2.0):
        counted.add(value)
    assert counted.facts()["not_finite"] == 2
    assert counted.facts()["quantiles"] == dict.fromkeys(("0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"), 2.0)
