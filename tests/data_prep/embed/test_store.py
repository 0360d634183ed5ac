"""Vectors on disk: exact, checked, taken up after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from data_prep.embed.embedder import Teacher
from data_prep.embed.store import Parts, StoredVectors, embed_texts, id_digests, kind_of
from data_prep.embed.vectors import Vectors, check_same_kind
from data_prep.errors import UserError
from data_prep.files import content_id

REPO = Path(__file__).resolve().parents[3]


def _items(count: int, *, start: int = 0) -> list[tuple[str, str]]:
    texts = [f"teks nombor {number}" for number in range(start, start + count)]
    return [(content_id(text), text) for text in texts]


def test_rows_are_the_teachers_rounded_once(tmp_path: Path, plain_teacher: Any) -> None:
    teacher, items = plain_teacher(dimension=24), _items(100)
    assert isinstance(teacher, Teacher)
    stored = embed_texts(iter(items), teacher, role="passage", folder=tmp_path, rows_per_file=32)
    assert isinstance(stored, Vectors) and (stored.rows, stored.dimension, stored.normalised) == (100, 24, True)
    answer = plain_teacher(dimension=24).embed([text for _, text in items], role="passage")
    assert np.array_equal(stored.raw(0, 100), answer.astype(np.float16))
    # what lies on disk is the rows and nothing else
    files = [np.fromfile(tmp_path / f"part-0000{n}.f16", dtype="<f2").reshape(-1, 24) for n in range(4)]
    assert [len(f) for f in files] == [32, 32, 32, 4] and np.array_equal(np.concatenate(files), stored.raw(0, 100))
    assert stored.ids.tobytes().hex() == "".join(name for name, _ in items)
    read = stored.read(0, 100)
    exact = answer.astype(np.float16).astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    assert read.dtype == np.float32 and np.abs(read - exact).max() < 1e-7
    assert np.abs(np.linalg.norm(read.astype(np.float64), axis=1) - 1).max() < 1e-6


def test_a_row_reads_the_same_in_every_block(tmp_path: Path, plain_teacher: Any) -> None:
    stored = embed_texts(_items(700), plain_teacher(dimension=37), role="passage", folder=tmp_path, rows_per_file=90)
    whole = stored.read(0, 700)
    for start, stop in [*sliding_window_view(np.r_[0, 1, 89, 90, 91, 300, 539, 541, 700], 2), (0, 0), (650, 9999)]:
        assert np.array_equal(stored.read(int(start), int(stop)), whole[start:stop])
    generator = np.random.default_rng(0)
    for rows in (generator.integers(0, 700, 1000), [699], [], [5, 5, 4], np.arange(700)[::-1]):
        assert np.array_equal(stored.take(rows), whole[np.asarray(rows, dtype=int)])
    for rows in ([700], [-1]):
        with pytest.raises(IndexError):
            stored.take(rows)
    single = [stored.take([row])[0] for row in range(700)]
    assert np.array_equal(single, whole)


def test_raw_rows_keep_their_length_and_are_not_mixed_with_unit_rows(tmp_path: Path, plain_teacher: Any) -> None:
    items = _items(40)
    raw = embed_texts(items, plain_teacher(normalised=False), role="passage", folder=tmp_path / "raw")
    unit = embed_texts(items, plain_teacher(), role="passage", folder=tmp_path / "unit")
    assert not raw.normalised and np.array_equal(raw.read(0, 40), raw.raw(0, 40).astype(np.float32))
    assert np.linalg.norm(raw.read(0, 40), axis=1).min() > 5
    with pytest.raises(UserError, match="query vectors not normalised, corpus vectors normalised"):
        check_same_kind(raw, unit)
    assert raw.teacher != unit.teacher


def test_ids(tmp_path: Path, plain_teacher: Any) -> None:
    items = [("satu", "a b"), (content_id("x"), "c d"), ("satu", "e f"), ("X" * 32, "g h"), ("dua", "i j")]
    stored = embed_texts(items, plain_teacher(), role="query", folder=tmp_path, rows_per_file=2)
    assert stored.rows_of(["dua", "satu", "tiada", content_id("x"), "X" * 32]).tolist() == [4, 0, -1, 1, 3]
    assert id_digests(["satu"]).tobytes().hex() == content_id("satu")
    empty = embed_texts([], plain_teacher(), role="query", folder=tmp_path / "none")
    assert empty.rows == 0 and empty.read(0, 5).shape == (0, 24) == empty.take([]).shape
    assert empty.rows_of(["x"]).tolist() == [-1]


def test_identical_texts_are_embedded_once(tmp_path: Path, plain_teacher: Any) -> None:
    teacher = plain_teacher()
    items = [(f"id {n}", f"teks {n % 7}") for n in range(50)]
    stored = embed_texts(items, teacher, role="passage", folder=tmp_path)
    assert teacher.asked == [f"teks {n}" for n in range(7)]
    assert np.array_equal(stored.raw(0, 50), stored.raw(0, 7)[np.arange(50) % 7])


def test_a_second_run_computes_nothing_and_writes_nothing(tmp_path: Path, plain_teacher: Any) -> None:
    first = embed_texts(_items(100), plain_teacher(), role="passage", folder=tmp_path, rows_per_file=32)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    teacher = plain_teacher()
    again = embed_texts(_items(100), teacher, role="passage", folder=tmp_path, rows_per_file=32)
    assert teacher.asked == [] and again.fingerprint == first.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", ["text", "id", "teacher", "role", "more", "fewer"])
def test_only_what_changed_is_embedded_again(tmp_path: Path, plain_teacher: Any, change: str) -> None:
    embed_texts(_items(100), plain_teacher(query="tanya: "), role="passage", folder=tmp_path, rows_per_file=32)
    items, teacher, role = _items(100), plain_teacher(query="tanya: "), "passage"
    asked = 32
    if change == "text":
        items[40] = (items[40][0], "lain")
    elif change == "id":
        items[40] = ("lain", items[40][1])
    elif change == "teacher":
        teacher, asked = plain_teacher(name="other"), 100
    elif change == "role":
        role, asked = "query", 100
    elif change == "more":
        items, asked = _items(120), 24  # the last file was not full
    else:
        items, asked = _items(64), 0
    stored = embed_texts(items, teacher, role=role, folder=tmp_path, rows_per_file=32)  # type: ignore[arg-type]
    assert len(teacher.asked) == asked
    fresh = embed_texts(items, teacher, role=role, folder=tmp_path / "fresh", rows_per_file=32)  # type: ignore[arg-type]
    assert stored.fingerprint == fresh.fingerprint and StoredVectors(tmp_path).rows == len(items)
    assert np.array_equal(stored.raw(0, 200), fresh.raw(0, 200))


def _spoil(path: Path, how: str) -> None:
    if how == "cut":
        os.truncate(path, path.stat().st_size - 10)
    elif how == "missing":
        path.unlink()
    else:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("how", "says"),
    [("cut", "bytes, its manifest says .*cut off"), ("bit", "checksum differs"), ("missing", "is missing but")],
)
@pytest.mark.parametrize("name", ["part-00001.f16", "ids"])
def test_a_spoiled_file_is_named_and_mended(tmp_path: Path, plain_teacher: Any, name: str, how: str, says: str) -> None:
    good = embed_texts(_items(100), plain_teacher(), role="passage", folder=tmp_path, rows_per_file=32).fingerprint
    _spoil(tmp_path / name, how)
    with pytest.raises(UserError, match=rf"{name}: .*{says}.*again"):
        StoredVectors(tmp_path)
    if how == "bit":
        assert StoredVectors(tmp_path, verify=False).rows == 100
    teacher = plain_teacher()
    mended = embed_texts(_items(100), teacher, role="passage", folder=tmp_path, rows_per_file=32)
    assert len(teacher.asked) == (32 if name != "ids" else 0)
    assert mended.fingerprint == good == StoredVectors(tmp_path).fingerprint


def test_folders_that_hold_no_vectors(tmp_path: Path, plain_teacher: Any) -> None:
    with pytest.raises(UserError, match="holds no vectors"):
        StoredVectors(tmp_path / "nowhere")
    embed_texts(_items(10), plain_teacher(), role="passage", folder=tmp_path, rows_per_file=4)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"only half embedded \(3 finished files.*again: what is whole in it is kept"):
        StoredVectors(tmp_path)
    for manifest in ("{}", "[]", '{"format": 1, "kind": {"x": 1}}', '{"format": 9}'):
        (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(UserError, match="is no manifest of vectors"):
            StoredVectors(tmp_path)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (np.nan, "is not finite"),
        (np.inf, "is not finite"),
        (0.0, "is all zero"),
        (1e-9, "is all zero"),
        (0.5, "is not of unit length"),
        (1e5, "holds a number that float16 cannot"),
    ],
)
def test_vectors_that_mean_nothing_are_refused(tmp_path: Path, plain_teacher: Any, value: float, says: str) -> None:
    teacher, items = plain_teacher(), _items(100)
    teacher.wrong = {"teks nombor 70": value, "teks nombor 77": value}
    with pytest.raises(UserError) as error:
        embed_texts(items, teacher, role="passage", folder=tmp_path, rows_per_file=32, cache=tmp_path / "cache")
    told = str(error.value)
    assert says in told and f"text {items[70][0]} (row 70: 'teks nombor 70') (and of 1 more)" in told
    # the two files before it stay, and nothing of the spoiled one is remembered
    with pytest.raises(UserError, match="2 finished files"):
        StoredVectors(tmp_path)
    again = plain_teacher()
    embed_texts(items, again, role="passage", folder=tmp_path, rows_per_file=32, cache=tmp_path / "cache")
    assert again.asked == [text for _, text in items[64:]]


def test_zero_rows_of_a_teacher_that_may_give_them(tmp_path: Path, plain_teacher: Any) -> None:
    teacher = plain_teacher()
    teacher.may_be_zero, teacher.wrong = True, {"teks nombor 3": 0.0}
    stored = embed_texts(_items(9), teacher, role="passage", folder=tmp_path)
    assert stored.zero_rows == 1 and not stored.read(3, 4).any() and np.isfinite(stored.read(0, 9)).all()


def test_another_dimension_than_announced(tmp_path: Path, plain_teacher: Any) -> None:
    teacher = plain_teacher()
    inner = plain_teacher(dimension=12)
    teacher.embed = inner.embed
    with pytest.raises(UserError, match=r"vectors of shape \[9, 12\] for 9 texts: must be \[9, 24\]"):
        embed_texts(_items(9), teacher, role="passage", folder=tmp_path)


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import PlainTeacher
from data_prep.embed.store import embed_texts
from data_prep.files import content_id

class Slow(PlainTeacher):
    def embed(self, texts, **more):
        time.sleep({pause})
        return super().embed(texts, **more)

texts = [f"teks nombor {{n}}" for n in range(320)]
embed_texts([(content_id(t), t) for t in texts], Slow(), role="passage", folder=Path({folder!r}), rows_per_file=32,
            cache=Path({cache!r}))
"""


def test_a_killed_run_is_taken_up(tmp_path: Path, plain_teacher: Any) -> None:
    """SIGKILL, again and again; no finished file is computed twice, and the end is that of a run that lived."""
    folder, cache = tmp_path / "killed", tmp_path / "cache"
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder), cache=str(cache), pause=0.05)
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    for wanted in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", script], env=environment)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("part-*.json"))) < wanted and time.monotonic() < deadline:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (folder / "manifest.json").exists()
    done = len(list(folder.glob("part-*.json")))
    assert done >= 5
    teacher = plain_teacher()
    found = embed_texts(_items(320), teacher, role="passage", folder=folder, rows_per_file=32, cache=cache)
    assert len(teacher.asked) == 320 - 32 * done
    whole = embed_texts(_items(320), plain_teacher(), role="passage", folder=tmp_path / "whole", rows_per_file=32)
    assert found.fingerprint == whole.fingerprint
    left = {path.name for path in folder.iterdir() if not path.name.startswith("part-")}
    assert left == {"ids", "manifest.json"}


def test_a_record_alone_is_not_believed(tmp_path: Path, plain_teacher: Any) -> None:
    teacher = plain_teacher()
    embed_texts(_items(64), teacher, role="passage", folder=tmp_path, rows_per_file=32)
    record = json.loads((tmp_path / "part-00001.json").read_text())
    parts = Parts(tmp_path, kind_of(teacher, "passage"))
    assert parts.finished(1, record["asked"]) == record
    _spoil(tmp_path / "part-00001.ids", "bit")
    assert parts.finished(1, record["asked"]) is None
    (tmp_path / "part-00001.json").write_text("{}")
    assert parts.finished(1, record["asked"]) is None
