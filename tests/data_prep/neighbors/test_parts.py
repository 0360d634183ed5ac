"""Searches in blocks on disk: same result in processes, after a kill, under another budget."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.store import embed_texts
from data_prep.embed.vectors import ArrayVectors
from data_prep.errors import UserError
from data_prep.fanout import Part, Result, finished, record_of, result_of, run_part
from data_prep.neighbors import blocks, parts
from data_prep.neighbors.search import Found, in_window, search
from data_prep.progress import Progress

from .reference import crowded, unit

REPO = Path(__file__).resolve().parents[3]


class Processes:
    """Parts in two new processes."""

    workers = 2

    def map(
        self, function: str, parts: Sequence[Part], *, scratch: Path, label: str, progress: Progress
    ) -> list[Result]:
        records = [record_of(function, part, scratch=scratch, label=label) for part in parts]
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
            for part, record in zip(parts, records, strict=True):
                if finished(record) is None:
                    pool.submit(run_part, function, part, record)
        return [result_of(record, function=function) for record in records]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    defaults = dict(parts.run_in_parts.__kwdefaults__ or {})
    monkeypatch.setattr(parts.run_in_parts, "__kwdefaults__", {**defaults, "block_rows": 512})
    yield


def _vectors() -> ArrayVectors:
    return ArrayVectors(np.concatenate([unit(1200, 24), crowded("near", 1), crowded("ties", 2)]), normalised=True)


def _same(found: Found, expected: Found) -> None:
    for name in ("scores", "indices", "levels", "available"):
        a, b = getattr(found, name), getattr(expected, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b)
    assert (found.histogram is None) == (expected.histogram is None)
    if found.histogram is not None and expected.histogram is not None:
        np.testing.assert_array_equal(found.histogram.counts, expected.histogram.counts)


def _searches(**settings: Any) -> list[Found]:
    vectors = _vectors()
    own = np.arange(vectors.rows)
    low, high = np.full(vectors.rows, -0.2, np.float32), np.full(vectors.rows, 0.4, np.float32)
    return [
        search(vectors, vectors, k=9, percentiles=[10.0, 90.0], exclude=own, **settings),
        in_window(vectors, vectors, low=low, high=high, count=4, seed=7, exclude=own, **settings),
    ]


@pytest.mark.slow
def test_processes_find_the_same(tmp_path: Path) -> None:
    expected = _searches()
    found = _searches(fanout=Processes(), scratch=tmp_path)
    for one, other in zip(found, expected, strict=True):
        _same(one, other)


def test_blocks_on_disk_hold_the_same_and_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = _searches()
    for one, other in zip(_searches(scratch=tmp_path), expected, strict=True):
        _same(one, other)

    def never(*_: Any) -> None:
        raise AssertionError("a finished block was computed again")

    monkeypatch.setattr(blocks.Computer, "compute", never)
    for budget in (1.0, 0.5):
        for one, other in zip(_searches(scratch=tmp_path, budget_gb=budget), expected, strict=True):
            _same(one, other)
    # results above a quarter of the budget are memory-mapped
    mapped = _searches(scratch=tmp_path, budget_gb=0.0002)
    assert isinstance(mapped[0].indices, np.memmap)
    for one, other in zip(mapped, expected, strict=True):
        _same(one, other)
    changed = ArrayVectors(-_vectors().read(0, 2500), normalised=True)
    with pytest.raises(RuntimeError, match="computed again"):
        search(changed, changed, k=9, percentiles=[10.0, 90.0], scratch=tmp_path)


def test_a_block_whose_file_is_gone_is_computed_again(tmp_path: Path) -> None:
    expected = _searches(scratch=tmp_path)
    for file in (tmp_path / "neighbors").glob("*.npz"):
        file.unlink()
    for one, other in zip(_searches(scratch=tmp_path), expected, strict=True):
        _same(one, other)


@pytest.mark.slow
def test_killed_and_run_again(tmp_path: Path) -> None:
    """SIGKILL while the third of five blocks is computed; the first two are not computed again."""
    script = tmp_path / "job.py"
    script.write_text(
        "import sys, time, json\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from data_prep.embed.vectors import ArrayVectors\n"
        "from data_prep.neighbors import blocks, parts\n"
        "from data_prep.neighbors.search import search\n"
        "folder, slow = Path(sys.argv[1]), sys.argv[2] == 'slow'\n"
        "parts.run_in_parts.__kwdefaults__['block_rows'] = 512\n"
        "plain = blocks.Computer.compute\n"
        "def compute(self, start, stop, told=None):\n"
        "    with open(folder / 'log', 'a') as log: log.write(f'{start}\\n')\n"
        "    if slow and start == 1024: time.sleep(600)\n"
        "    return plain(self, start, stop, told)\n"
        "blocks.Computer.compute = compute\n"
        "vectors = ArrayVectors(np.load(folder / 'vectors.npy'), normalised=True)\n"
        "found = search(vectors, vectors, k=9, percentiles=[10.0, 90.0], exclude=np.arange(vectors.rows),\n"
        "               scratch=folder / 'scratch')\n"
        "np.savez(folder / 'found.npz', scores=found.scores, indices=found.indices, levels=found.levels)\n"
    )
    np.save(tmp_path / "vectors.npy", _vectors().read(0, 10_000))
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    job = subprocess.Popen([sys.executable, script, tmp_path, "slow"], env=environment)
    log = tmp_path / "log"
    deadline = time.monotonic() + 120
    while not (log.exists() and "1024" in log.read_text()):
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert log.read_text().split() == ["0", "512", "1024"]
    subprocess.run([sys.executable, script, tmp_path, "fast"], env=environment, check=True, timeout=120)
    assert log.read_text().split() == ["0", "512", "1024", "1024", "1536", "2048"]
    expected = _searches()[0]
    with np.load(tmp_path / "found.npz") as found:
        _same(
            Found(scores=found["scores"], indices=found["indices"], levels=found["levels"], level_error=0.0), expected
        )


class InOrder(Processes):
    """As elsewhere, but in this process: only `Serial` may leave vectors in memory."""

    def __init__(self) -> None:
        self.handles: list[Any] = []

    def map(
        self, function: str, parts: Sequence[Part], *, scratch: Path, label: str, progress: Progress
    ) -> list[Result]:
        for part in parts:
            self.handles += [part["queries"], part["corpus"]]
            run_part(function, part, record_of(function, part, scratch=scratch, label=label))
        return [result_of(record_of(function, p, scratch=scratch, label=label), function=function) for p in parts]


def test_vectors_in_memory_are_copied_once_for_others(tmp_path: Path) -> None:
    fanout = InOrder()
    _same(_searches(fanout=fanout, scratch=tmp_path)[0], _searches()[0])
    (copy,) = (tmp_path / "neighbors").glob("vectors-*.npy")
    assert all(handle == {"file": str(copy), "normalised": True} for handle in fanout.handles)


class Numbers:
    """A teacher of random rows."""

    name, hash, dimension, normalised, may_be_zero = "numbers", "0" * 32, 24, True, False

    def prompt(self, role: str) -> str:
        return ""

    def embed(self, texts: Sequence[str], *, role: str, progress: Any = None) -> Any:
        return np.concatenate([unit(1, 24, seed=int(text)) for text in texts])


def test_stored_vectors_are_opened_where_they_lie(tmp_path: Path) -> None:
    texts = [(f"{number:016x}", str(number)) for number in range(700)]
    teacher: Any = Numbers()
    stored = embed_texts(texts, teacher, role="passage", folder=tmp_path / "vectors")
    fanout = InOrder()
    found = search(stored, stored, k=9, percentiles=[50.0], fanout=fanout, scratch=tmp_path / "scratch")
    assert {handle["folder"] for handle in fanout.handles} == {str(tmp_path / "vectors")}
    plain = ArrayVectors(stored.read(0, 700), normalised=True)
    _same(found, search(plain, plain, k=9, percentiles=[50.0]))


def test_a_fanout_needs_scratch() -> None:
    vectors = ArrayVectors(unit(20, 4), normalised=True)
    with pytest.raises(ValueError, match="needs a scratch folder"):
        search(vectors, vectors, k=2, fanout=Processes())


def test_a_mistake_inside_a_part_reaches_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a memory budget of 0.0001 GB: must be at least 0.\d+ GB"):
        _searches(scratch=tmp_path, budget_gb=0.0001)
