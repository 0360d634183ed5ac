"""The cache: found by what was sent and by whom, whole or not at all, shared by processes, small in memory."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.cache import VectorCache
from data_prep.embed.part import text_keys
from data_prep.embed.store import embed_texts
from data_prep.files import content_id

REPO = Path(__file__).resolve().parents[3]


def _items(count: int, *, start: int = 0) -> list[tuple[str, str]]:
    texts = [f"teks nombor {number}" for number in range(start, start + count)]
    return [(content_id(text), text) for text in texts]


def _cache(root: Path, *, dimension: int = 24, **more: Any) -> VectorCache:
    return VectorCache(root, teacher="f" * 64, dimension=dimension, normalised=True, **more)


def _rows(count: int, *, dimension: int = 24, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(count, dimension)).astype(np.float16)


def test_a_corpus_that_shares_nine_tenths_embeds_one_tenth(tmp_path: Path, plain_teacher: Any) -> None:
    embed_texts(_items(1000), plain_teacher(), role="passage", folder=tmp_path / "a", cache=tmp_path / "cache")
    teacher, second = plain_teacher(), _items(1000, start=100)
    mixed = second[500:] + second[:500]
    stored = embed_texts(
        mixed, teacher, role="passage", folder=tmp_path / "b", cache=tmp_path / "cache", rows_per_file=70
    )
    assert sorted(teacher.asked) == sorted(text for _, text in _items(100, start=1000))
    fresh = embed_texts(mixed, plain_teacher(), role="passage", folder=tmp_path / "fresh", rows_per_file=70)
    assert stored.fingerprint == fresh.fingerprint  # cached and fresh are the same bits


def test_what_was_sent_and_by_whom_is_the_key(tmp_path: Path, plain_teacher: Any) -> None:
    embed_texts(_items(50), plain_teacher(), role="passage", folder=tmp_path / "a", cache=tmp_path / "cache")
    cases = [
        (plain_teacher(), "query", 0),  # no prompt in either role: the same text was sent
        (plain_teacher(query="tanya: "), "query", 50),
        (plain_teacher(query="tanya: "), "passage", 0),
        (plain_teacher(normalised=False), "passage", 50),
        (plain_teacher(dimension=32), "passage", 50),
        (plain_teacher(name="other"), "passage", 50),
    ]
    for number, (teacher, role, asked) in enumerate(cases):
        stored = embed_texts(_items(50), teacher, role=role, folder=tmp_path / str(number), cache=tmp_path / "cache")
        assert len(teacher.asked) == asked, (number, role)
        plain = embed_texts(_items(50), teacher, role=role, folder=tmp_path / f"{number} plain")
        assert stored.fingerprint == plain.fingerprint


def test_where_the_prompt_ends_counts() -> None:
    keys = text_keys(["b c", "c", "\ud800"], "a ")
    assert len({key.tobytes() for key in [*keys, *text_keys(["a b c", "b c"], "")]}) == 5
    assert keys.shape == (3, 16) and text_keys([], "").shape == (0, 16)


def test_get_and_add(tmp_path: Path) -> None:
    keys, rows = text_keys([str(n) for n in range(300)], ""), _rows(300)
    cache = _cache(tmp_path)
    assert [len(part) for part in cache.get(keys)] == [0, 0]
    cache.add(keys[:200], rows[:200])
    cache.add(keys[100:250], rows[100:250])  # what two processes computed twice
    places, found = _cache(tmp_path).get(keys[::-1])
    assert places.tolist() == list(range(50, 300)) and np.array_equal(found, rows[:250][::-1])
    assert len(cache.get(keys)[0]) == 0  # a cache is what was there when it was opened
    only = _cache(tmp_path, only=_cache(tmp_path).files[:1])
    assert len(only.get(keys)[0]) in (150, 200)
    # keys that end in zero bytes are told apart from shorter ones
    odd = np.zeros((3, 16), dtype=np.uint8)
    odd[1, 0], odd[2, 15] = 1, 1
    cache.add(odd, rows[:3])
    assert np.array_equal(_cache(tmp_path).get(odd[[2, 0, 1]])[1], rows[[2, 0, 1]])


@pytest.mark.parametrize("how", ["cut", "row", "key", "header", "empty"])
def test_what_is_damaged_is_computed_again(tmp_path: Path, plain_teacher: Any, how: str) -> None:
    embed_texts(_items(50), plain_teacher(), role="passage", folder=tmp_path / "a", cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").rglob("*.vectors")
    data = bytearray(path.read_bytes())
    if how == "cut":
        del data[-1]
    elif how == "empty":
        data.clear()
    else:
        data[{"row": -1, "key": 300, "header": 2}[how]] ^= 1
    path.write_bytes(data)
    teacher = plain_teacher()
    stored = embed_texts(_items(50), teacher, role="passage", folder=tmp_path / "b", cache=tmp_path / "cache")
    assert len(teacher.asked) == (1 if how == "row" else 50)
    fresh = embed_texts(_items(50), plain_teacher(), role="passage", folder=tmp_path / "fresh")
    assert stored.fingerprint == fresh.fingerprint
    (path.parent / ".x.1.tmp").write_bytes(b"half")
    os.utime(path.parent / ".x.1.tmp", (0, 0))
    teacher = plain_teacher()
    embed_texts(_items(50), teacher, role="passage", folder=tmp_path / "c", cache=tmp_path / "cache")
    assert teacher.asked == [] and not (path.parent / ".x.1.tmp").exists()


def test_a_row_is_checked_by_itself(tmp_path: Path) -> None:
    keys, rows = text_keys([str(n) for n in range(20)], ""), _rows(20)
    _cache(tmp_path).add(keys, rows)
    (path,) = tmp_path.rglob("*.vectors")
    data = path.read_bytes()
    head = 256 + 16 * 20
    order = np.argsort(keys.view("S16").ravel())
    sums = np.frombuffer(data[head : head + 80], dtype="<u4")
    assert sums.tolist() == [zlib.crc32(rows[row].tobytes()) for row in order]
    assert data[256:head] == keys[order].tobytes() and data[head + 80 :] == rows[order].tobytes()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from conftest import PlainTeacher
from data_prep.embed.store import embed_texts
from data_prep.files import content_id
start = int(sys.argv[1])
texts = [f"teks nombor {{n}}" for n in range(start, start + 600)]
embed_texts([(content_id(t), t) for t in texts], PlainTeacher(), role="passage", folder=Path(sys.argv[2]),
            rows_per_file=20, cache=Path({cache!r}))
"""


def test_two_processes_fill_one_cache(tmp_path: Path, plain_teacher: Any) -> None:
    cache = tmp_path / "cache"
    script = WRITER.format(tests=str(Path(__file__).parent), cache=str(cache))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(start), str(tmp_path / str(start))],
            env={**os.environ, "PYTHONPATH": str(REPO)},
        )
        for start in (0, 300)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0, 0]
    teacher = plain_teacher()
    stored = embed_texts(_items(900), teacher, role="passage", folder=tmp_path / "all", cache=cache)
    assert teacher.asked == []
    fresh = embed_texts(_items(900), plain_teacher(), role="passage", folder=tmp_path / "fresh")
    assert stored.fingerprint == fresh.fingerprint


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from data_prep.embed.cache import VectorCache

def private_kb():
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("RssAnon"))

cache = VectorCache(Path(sys.argv[1]), teacher="f" * 64, dimension=256, normalised=True)
keys = np.fromfile(sys.argv[2], dtype=np.uint8).reshape(-1, 16)
cache.get(keys[:100])
before = private_kb()
for start in range(0, len(keys), 5000):
    places, rows = cache.get(keys[start : start + 5000])
    assert len(places) == 5000
print(private_kb() - before)
"""


def test_memory_does_not_grow_with_the_cache(tmp_path: Path) -> None:
    """100 MB of vectors and 4 MB of keys pass; what stays is less than a tenth."""
    generator = np.random.default_rng(0)
    keys = generator.integers(0, 256, (200_000, 16), dtype=np.uint8)
    rows = generator.normal(size=(20_000, 256)).astype(np.float16)
    cache = _cache(tmp_path, dimension=256)
    for start in range(0, len(keys), 20_000):
        cache.add(keys[start : start + 20_000], rows)
    keys.tofile(tmp_path / "keys")
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, str(tmp_path), str(tmp_path / "keys")],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 12_000
