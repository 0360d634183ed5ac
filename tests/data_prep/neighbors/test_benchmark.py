"""The benchmark from start to end in its quick form, and that a search keeps to its memory."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .reference import unit

REPO = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_quick_form_measures_every_side(tmp_path: Path) -> None:
    pytest.importorskip("faiss")
    pytest.importorskip("datasets")
    page = tmp_path / "neighbors.md"
    done = subprocess.run(
        [sys.executable, "benchmarks/neighbors.py", "--quick", "--threads", "1", "--rounds", "1", "--out", str(page)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    told = page.read_text()
    assert "100.00 % of the neighbours of 200 queries are those of faiss" in told
    assert len(re.findall(r"^\| (?:SciPy|sentence|faiss|this).*\d", told, flags=re.MULTILINE)) == 5
    results = json.loads(page.with_suffix(".json").read_text())
    assert [one["rows"] for one in results["growth"]] == [1_000, 5_000]
    assert "<svg" in page.with_suffix(".svg").read_text()


@pytest.mark.slow
def test_a_corpus_larger_than_the_memory_streams(tmp_path: Path) -> None:
    """A mapped float16 corpus that takes 400 MB as float32, in a process that may take 250 MB more than it has."""
    rows, dimension = 400_000, 256
    stored = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype=np.float16, shape=(rows, dimension))
    block = unit(4000, dimension).astype(np.float16)
    for start in range(0, rows, 4000):
        stored[start : start + 4000] = np.roll(block, start // 4000, axis=1)
    stored.flush()
    code = (
        "import resource, sys\n"
        "import numpy as np\n"
        "from data_prep.embed.vectors import ArrayVectors\n"
        "from data_prep.neighbors.search import search\n"
        "corpus = ArrayVectors(np.load(sys.argv[1], mmap_mode='r'), normalised=True)\n"
        "queries = ArrayVectors(corpus.read(0, 300), normalised=True)\n"
        "search(queries, queries, k=5, percentiles=[50.0])\n"
        "data = [int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmData')][0] * 1024\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (data + 250_000_000, data + 250_000_000))\n"
        "try:\n"
        "    np.ones((rows := 400_000, 256), dtype=np.float32)\n"
        "    sys.exit('the limit does not hold')\n"
        "except MemoryError:\n"
        "    pass\n"
        "found = search(queries, corpus, k=5, percentiles=[50.0], budget_gb=0.1)\n"
        "assert (found.indices[:, 0] == np.arange(300)).all()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "v.npy")], check=True, env=environment, timeout=300)
