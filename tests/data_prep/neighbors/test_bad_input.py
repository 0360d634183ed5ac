from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.vectors import ArrayVectors
from data_prep.errors import UserError
from data_prep.neighbors.search import search
from data_prep.progress import Progress

from .reference import unit

REPO = Path(__file__).resolve().parents[3]


class Told(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def _unit(rows: int, dimension: int = 4, seed: int = 0) -> ArrayVectors:
    return ArrayVectors(unit(rows, dimension, seed), normalised=True)


def test_vectors_of_two_kinds() -> None:
    with pytest.raises(UserError, match="query vectors of dimension 4, corpus vectors of dimension 5"):
        search(_unit(3), _unit(9, 5), k=1)
    with pytest.raises(UserError, match="corpus vectors not normalised"):
        search(_unit(3), ArrayVectors(unit(9, 4), normalised=False), k=1)
    plain = ArrayVectors(unit(9, 4), normalised=False)
    with pytest.raises(UserError, match="search with the euclidean metric"):
        search(plain, plain, k=1)


@pytest.mark.parametrize("k", [0, -3, 9, 10])
def test_fewer_texts_than_neighbours(k: int) -> None:
    with pytest.raises(UserError, match=f"{k} neighbours: must be between 1 and 8 for 9 texts"):
        search(_unit(9), _unit(9), k=k, exclude=np.arange(9))


@pytest.mark.parametrize("backend", ["exact", "kdtree", "faiss"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite(backend: Any, value: float) -> None:
    if backend == "faiss":
        pytest.importorskip("faiss")
    rows = unit(6000, 4)
    rows[5123, 2] = value
    bad = ArrayVectors(rows, normalised=True)
    with pytest.raises(UserError, match="corpus vector of row 5123: holds NaN or infinity"):
        search(_unit(3), bad, k=1, backend=backend)
    with pytest.raises(UserError, match="query vector of row 5123: holds NaN or infinity"):
        search(bad, _unit(3), k=1, backend=backend)


def test_rows_that_are_not_what_they_claim() -> None:
    rows = unit(50, 4)
    rows[31] *= 1.5
    with pytest.raises(UserError, match=r"corpus vector of row 31: is marked as normalised and has length 1.5000"):
        search(_unit(3), ArrayVectors(rows, normalised=True), k=1)
    rows[31] *= 1e19
    huge = ArrayVectors(rows, normalised=False)
    with pytest.raises(UserError, match=r"query vector of row 31: is longer than 1e\+18"):
        search(huge, huge, k=1, metric="euclidean")


def test_zero_rows() -> None:
    rows = unit(50, 4)
    rows[8] = 0
    zero = ArrayVectors(rows, normalised=True)
    found = search(zero, zero, k=50)
    assert (found.scores[8] == 0).all() and found.indices[8].tolist() == list(range(50))
    with pytest.raises(UserError, match=r"row 8: has length 0.0000, the kdtree backend needs unit vectors"):
        search(zero, zero, k=2, backend="kdtree")
    assert search(zero, zero, k=2, backend="kdtree", metric="euclidean").indices[8, 0] == 8


def test_exclude_must_fit() -> None:
    for wrong in (np.arange(4), np.array([0, 1, 9]), np.array([0, 1, -2])):
        with pytest.raises(ValueError, match="exclude must hold"):
            search(_unit(3), _unit(9), k=1, exclude=wrong)


def test_a_budget_too_small_says_what_would_do() -> None:
    with pytest.raises(UserError, match=r"a memory budget of 0.001 GB: must be at least (\S+) GB") as told:
        search(_unit(900, 64), _unit(900, 64), k=5, percentiles=[50], budget_gb=0.001)
    enough = float(told.value.rule.split()[4])
    assert search(_unit(900, 64), _unit(900, 64), k=5, percentiles=[50], budget_gb=enough).levels is not None


def test_kdtree_says_when_it_is_pointless() -> None:
    for dimension, lines in ((20, 0), (21, 1)):
        told = Told()
        search(_unit(30, dimension), _unit(40, dimension), k=2, backend="kdtree", progress=told)
        assert len(told.lines) == lines
    assert "leave a KDTree nothing to prune" in told.lines[0]


def test_faiss_declares_its_recall() -> None:
    pytest.importorskip("faiss")
    corpus, told = _unit(3000, 32), Told()
    rough = search(corpus, corpus, k=10, backend="faiss", faiss_index="IVF64,Flat", progress=told)
    true = search(corpus, corpus, k=10).indices
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(true.tolist(), rough.indices.tolist(), strict=True)])
    assert rough.recall is not None and rough.recall == pytest.approx(recall, abs=0.05) and rough.recall < 0.8
    assert told.lines == [
        f"faiss index IVF64,Flat: {100 * rough.recall:.2f} % of the true 10 neighbours found, measured on 256 queries"
    ]
    with pytest.raises(UserError, match="faiss index 'Nonsense': cannot be built"):
        search(corpus, corpus, k=10, backend="faiss", faiss_index="Nonsense")


@pytest.mark.slow
def test_where_no_folder_can_be_written_the_loops_are_compiled_anyway(tmp_path: Path) -> None:
    """numba refuses to cache where it finds no folder; as root every folder can be written, so the finder is stubbed."""
    code = (
        "import numba.core.caching as c\n"
        "for kind in (c.CacheImpl, c.CompileResultCacheImpl, c.CodeLibraryCacheImpl): kind._locator_classes = []\n"
        "import numpy as np\n"
        "from data_prep.neighbors import kernels\n"
        "out = np.empty(1, np.float32); rows = np.ones((1, 3), np.float32)\n"
        "kernels.pairs(rows, rows, np.zeros(1, np.int64), np.zeros(1, np.int64), False, out)\n"
        "assert out[0] == 3.0 and type(kernels.pairs._cache).__name__ == 'NullCache'\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120, cwd=tmp_path)
