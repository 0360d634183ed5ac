"""Texts by row: what the shards hold, and nothing of it in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.errors import UserError
from data_prep.files import content_id
from data_prep.progress import Progress
from data_prep.shards import Shards, ShardWriter
from data_prep.text_store import TextStore, build_text_store, document_hash

REPO = Path(__file__).resolve().parents[2]


def _rows(count: int) -> list[dict[str, Any]]:
    texts = [f"teks {n}\nbaris dua 漢字 😋 " + "x" * (n % 13) for n in range(count)]
    texts[3] = ""
    return [
        {
            "id": f"nombor {n}\n{n}" if n % 10 == 7 else content_id(f"{n} {text}"),
            "text": text,
            "source": f"sumber {n % 3}" if n % 11 else None,
            "language": ["ms", "en", "zh"][n % 3],
            "document": f"d{n // 4}" if n % 2 else None,
        }
        for n, text in enumerate(texts)
    ]


def _write(folder: Path, rows: list[dict[str, Any]], *, rows_per_file: int = 1000) -> Path:
    with ShardWriter(folder, "documents", rows_per_file=rows_per_file) as writer:
        writer.extend(rows)
    return folder


def test_every_row_is_that_of_the_shards(tmp_path: Path) -> None:
    rows = _rows(500)
    documents = _write(tmp_path / "documents", rows, rows_per_file=70)
    store = build_text_store(documents, tmp_path / "store", progress=Progress())
    assert len(store) == store.rows == 500 and store.fingerprint == Shards(documents, "documents").fingerprint
    assert [store.text(n) for n in range(500)] == [row["text"] for row in rows]
    assert [store.id(n) for n in range(500)] == [row["id"] for row in rows]
    assert [store.language(n) for n in range(500)] == [row["language"] for row in rows]
    assert [store.source(n) for n in range(500)] == [row["source"] or "" for row in rows]
    assert store.lengths().tolist() == [len(row["text"].encode()) for row in rows]
    assert store.documents.tolist() == [document_hash(row["document"] or row["id"]) for row in rows]
    names = [row["document"] or row["id"] for row in rows]
    assert [store.document_name(n) for n in range(500)] == names and len({*names}) < 500
    picked = np.array([499, 0, 3, 3, 250])
    assert store.document_names(picked) == [names[n] for n in picked]
    assert store.texts(picked) == [rows[n]["text"] for n in picked] and store.ids(picked)[1] == rows[0]["id"]
    assert list(store.items(10, 13)) == [(row["id"], row["text"]) for row in rows[10:13]]
    assert len(list(store.items())) == 500 == len(store.language_codes) == len(store.source_codes)
    assert store.id_digests.shape == (500, 16)
    for row in (-1, 500):
        for ask in (store.text, store.id, store.document_name):
            with pytest.raises(IndexError):
                ask(row)


def test_rows_of_one_document_share_its_hash_with_the_document_itself(tmp_path: Path) -> None:
    rows = [{"id": "d1", "text": "a"}, {"id": "x", "text": "b", "document": "d1"}, {"id": "y", "text": "c"}]
    store = build_text_store(_write(tmp_path / "d", rows), tmp_path / "s", progress=Progress())
    assert store.documents[0] == store.documents[1] != store.documents[2]
    assert store.languages == ["und"]
    assert store.document_names([0, 1, 2]) == ["d1", "d1", "y"]


def test_no_names_take_no_room(tmp_path: Path) -> None:
    """Also in a folder that held a store with names."""
    for rows, there in ((_rows(50), True), ([{**row, "document": None} for row in _rows(50)], False)):
        store = build_text_store(_write(tmp_path / "d", rows), tmp_path / "s", progress=Progress())
        assert (tmp_path / "s" / "name").exists() == (tmp_path / "s" / "name.offsets").exists() == there
        assert store.document_name(41) == (rows[41]["document"] if there else rows[41]["id"])


def test_it_is_built_once_for_the_same_shards(tmp_path: Path) -> None:
    documents, folder = _write(tmp_path / "d", _rows(50)), tmp_path / "s"
    build_text_store(documents, folder, progress=Progress())
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert build_text_store(documents, folder, progress=Progress()).rows == 50
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    _write(documents, _rows(60))
    again = build_text_store(documents, folder, progress=Progress())
    assert again.rows == 60 and TextStore(folder, verify=True).text(59) == _rows(60)[59]["text"]
    (folder / "manifest.json").unlink()  # killed while it was built
    with pytest.raises(UserError, match="no text store, or half a one"):
        TextStore(folder)
    assert build_text_store(documents, folder, progress=Progress()).rows == 60


def test_damage_is_named(tmp_path: Path) -> None:
    documents, folder = _write(tmp_path / "d", _rows(50)), tmp_path / "s"
    build_text_store(documents, folder, progress=Progress())
    data = (folder / "text").read_bytes()
    (folder / "text").write_bytes(b"T" + data[1:])
    TextStore(folder)
    with pytest.raises(UserError, match=r"text: its checksum differs.*delete"):
        TextStore(folder, verify=True)
    (folder / "text").write_bytes(data[:-1])
    with pytest.raises(UserError, match="text: is missing or cut off"):
        TextStore(folder)
    assert build_text_store(documents, folder, progress=Progress()).texts([49]) == [_rows(50)[49]["text"]]
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="is no manifest of a text store"):
        TextStore(folder)


def test_no_documents(tmp_path: Path) -> None:
    store = build_text_store(_write(tmp_path / "d", []), tmp_path / "s", progress=Progress())
    assert store.rows == 0 and list(store.items()) == [] and store.texts([]) == []


MEASURED = """
import sys
from pathlib import Path
from data_prep.progress import Progress
from data_prep.text_store import build_text_store

def private_kb():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

build_text_store(Path(sys.argv[1]), Path(sys.argv[2]), progress=Progress())
before = private_kb()
store = build_text_store(Path(sys.argv[3]), Path(sys.argv[4]), progress=Progress())
assert len(store.text(store.rows - 1)) > 2000
print(private_kb() - before)
"""


def test_memory_does_not_grow_with_the_documents(tmp_path: Path) -> None:
    """60 MB of text pass; what stays after a fifth as much did is a few megabytes."""
    generator = np.random.default_rng(0)
    words = "".join(chr(97 + n) for n in generator.integers(0, 26, 100_000))
    folders = []
    for name, count in (("small", 6000), ("large", 30_000)):
        folder = tmp_path / name
        with ShardWriter(folder, "documents", rows_per_file=10_000) as writer:
            for number in range(count):
                text = f"{number} {words[number : number + 2000]}"
                writer.append({"id": content_id(text), "text": text, "source": "s", "language": "ms"})
        folders += [str(folder), str(tmp_path / f"{name} store")]
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *folders],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 25_000, done.stdout
