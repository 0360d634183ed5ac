"""The sides of benchmarks/neighbors.py, one process each: it prints one JSON line.

python _neighbors_sides.py compare '{"rows": …}' and so on; see `main`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
PERCENTILES = [5.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0]


def embeddings(rows: int, dimension: int, *, seed: int = 0) -> Any:
    """Unit rows [rows, dimension] float32 in a thousand loose clusters around a common direction, as texts lie."""
    import numpy as np

    draw = np.random.default_rng(seed)
    centres = draw.standard_normal((1000, dimension), dtype=np.float32) + 0.8
    vectors = np.empty((rows, dimension), dtype=np.float32)
    for start in range(0, rows, 8192):
        part = vectors[start : start + 8192]
        draw.standard_normal(out=part, dtype=np.float32)
        part += centres[draw.integers(0, 1000, len(part))]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return vectors


def timed(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


class Stub:
    """What `mine_hard_negatives` asks of a model, answered with rows that are there already."""

    class model_card_data:
        """Names no base model."""

        base_model = ""

    def __init__(self, vectors: Any) -> None:
        import torch
        from sentence_transformers import util

        self._vectors, self.device = vectors, torch.device("cpu")
        self.similarity, self.similarity_pairwise = util.dot_score, util.pairwise_dot_score

    def encode_document(self, texts: list[str], **_: Any) -> Any:
        """Rows by the numbers that the texts are."""
        return self._vectors[[int(text.split()[-1]) for text in texts]]

    encode_query = encode_document


def matmul(rows: int, dimension: int, threads: int) -> float:
    """The best rate of a float32 product here, GFLOP/s: by MKL and by oneDNN, several shapes, one or more calls."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from data_prep.neighbors.sweep import multiply

    left, right = torch.randn(2048, dimension), torch.randn(8192, dimension)

    def work(number: int, workers: int, height: int, width: int, fused: bool) -> None:
        torch.set_num_threads(1 if workers > 1 else threads)
        out = torch.empty(height, width)
        tiles = [(a, b) for a in range(0, 2048, height) for b in range(0, 8192, width)]
        for a, b in tiles[number::workers]:
            x, y = left[a : a + height], right[b : b + width]
            if fused:
                multiply(x, y, out)
            else:
                torch.mm(x, y.T, out=out)

    best = 0.0
    for workers in {1, threads}:
        with ThreadPoolExecutor(workers) as pool:
            for height, width in ((512, 512), (1024, 1024), (2048, 4096)):
                for fused in (False, True):
                    settings = [[value] * workers for value in (workers, height, width, fused)]
                    for _ in range(2):
                        started = time.perf_counter()
                        list(pool.map(work, range(workers), *settings))
                        best = max(best, 2 * 2048 * 8192 * dimension / (time.perf_counter() - started) / 1e9)
    torch.set_num_threads(threads)
    return best


def compare(given: dict[str, Any]) -> dict[str, Any]:
    """Rounds in which every side answers a sample of queries over the same vectors."""
    import faiss
    import torch
    from datasets import Dataset
    from scipy.spatial import KDTree
    from sentence_transformers.util import mine_hard_negatives

    from data_prep.embed.vectors import ArrayVectors
    from data_prep.neighbors.search import search

    rows, dimension, k, threads = given["rows"], given["dimension"], given["k"], given["threads"]
    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    vectors = embeddings(rows, dimension)
    corpus = ArrayVectors(vectors, normalised=True)
    index = faiss.IndexFlatIP(dimension)
    add = timed(lambda: index.add(vectors))
    wide = vectors.astype("float64")
    trees: list[Any] = []
    build = timed(lambda: trees.append(KDTree(wide, leafsize=10)))
    model = Stub(vectors)
    many, some, few = given["queries"], given["tree_queries"], given["paper_queries"]

    def mine(first: int) -> None:
        pairs = {"anchor": [f"q {first + i}" for i in range(many)], "positive": [f"d {i}" for i in range(many)]}
        mine_hard_negatives(
            Dataset.from_dict(pairs), model, corpus=[f"d {i}" for i in range(rows)], range_max=k - 1, num_negatives=5,
            faiss_batch_size=many, verbose=False, output_format="n-tuple",
        )  # fmt: skip

    def ours(first: int, percentiles: Any = PERCENTILES) -> None:
        asked = ArrayVectors(vectors[first : first + many], normalised=True)
        search(asked, corpus, k=k, percentiles=percentiles)

    ours(0)
    found: list[dict[str, Any]] = []
    for number in range(given["rounds"]):
        first = number * many % max(1, rows - many)
        pick = slice(first, first + some)
        one: dict[str, Any] = {"matmul": matmul(rows, dimension, threads)}
        sides: dict[str, tuple[Callable[[], Any], int]] = {
            "ours": (lambda first=first: ours(first), many),
            "ours, top-k only": (lambda first=first: ours(first, False), many),
            "faiss": (lambda first=first: index.search(vectors[first : first + many], k), many),
            "mine_hard_negatives": (lambda first=first: mine(first), many),
            "kdtree": (lambda pick=pick: trees[0].query(wide[pick], k=k, workers=threads), some),
            "paper": (lambda first=first: trees[0].query(wide[first : first + few], k=rows, workers=threads), few),
        }
        for name, (work, queries) in sides.items():
            spent = timed(work)
            one[name] = {clock: seconds / queries for clock, seconds in spent.items()}
        one["matmul after"] = matmul(rows, dimension, threads)
        found.append(one)
    return {"rounds": found, "kdtree build": build, "faiss add": add, "check": same_as_faiss(index, vectors, corpus, k)}


def same_as_faiss(index: Any, vectors: Any, corpus: Any, k: int) -> float:
    """The share of the neighbours of 200 queries that faiss' flat index finds too."""
    from data_prep.embed.vectors import ArrayVectors
    from data_prep.neighbors.search import search

    ours = search(ArrayVectors(vectors[:200], normalised=True), corpus, k=k).indices
    theirs = index.search(vectors[:200], k)[1]
    return sum(len(set(a) & set(b)) for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)) / ours.size


@contextmanager
def watched(key: str) -> Iterator[list[float]]:
    """The highest value of a line of /proc/self/status inside the block, bytes; looked at a hundred times a second."""
    peak, stop = [0.0], threading.Event()

    def look() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], memory(key))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()


def memory(key: str) -> float:
    """Bytes in a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return float(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


def whole(given: dict[str, Any]) -> dict[str, Any]:
    """All rows against all rows, with percentiles: seconds and the memory of the whole process."""
    import torch

    from data_prep.embed.vectors import ArrayVectors
    from data_prep.neighbors.search import search

    torch.set_num_threads(given["threads"])
    vectors = embeddings(given["rows"], given["dimension"])
    corpus = ArrayVectors(vectors, normalised=True)
    rate = matmul(given["rows"], given["dimension"], given["threads"])
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    spent = timed(lambda: search(corpus, corpus, k=given["k"], percentiles=PERCENTILES))
    return {
        **spent, "bytes": vectors.nbytes, "peak": memory("VmHWM"), "matmul": rate,
        "matmul after": matmul(given["rows"], given["dimension"], given["threads"]),
    }  # fmt: skip


def grow(given: dict[str, Any]) -> dict[str, Any]:
    """A sample of queries against `rows` vectors in a memory-mapped float16 file."""
    import numpy as np
    import torch

    from data_prep.embed.vectors import ArrayVectors
    from data_prep.neighbors.search import search

    torch.set_num_threads(given["threads"])
    rows, dimension = given["rows"], given["dimension"]
    queries = embeddings(given["queries"], dimension, seed=1)
    with tempfile.TemporaryDirectory(dir=given.get("folder")) as folder:
        path = Path(folder) / "vectors.npy"
        stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(rows, dimension))
        for start in range(0, rows, 65_536):
            stop = min(start + 65_536, rows)
            stored[start:stop] = embeddings(stop - start, dimension, seed=2 + start)
        stored.flush()
        del stored
        corpus = ArrayVectors(np.load(path, mmap_mode="r"), normalised=True)
        asked = ArrayVectors(queries, normalised=True)
        search(asked, ArrayVectors(queries, normalised=True), k=10, percentiles=PERCENTILES)
        before, rate = memory("RssAnon"), matmul(rows, dimension, given["threads"])
        with watched("RssAnon") as peak:
            spent = timed(lambda: search(asked, corpus, k=given["k"], percentiles=PERCENTILES))
    return {**spent, "rows": rows, "working": peak[0] - before, "matmul": rate, "queries": len(queries)}


def gpu(given: dict[str, Any]) -> dict[str, Any]:
    """Blocks of queries against a corpus that stays on the GPU; seconds of the first block and of each later one."""
    import numpy as np
    import torch

    from data_prep.embed.vectors import ArrayVectors
    from data_prep.neighbors.blocks import ROWS, Computer, Inputs, Plan

    rows, dimension = given["rows"], given["dimension"]
    stored = np.empty((rows, dimension), dtype=np.float16)
    for start in range(0, rows, 65_536):
        stop = min(start + 65_536, rows)
        stored[start:stop] = embeddings(stop - start, dimension, seed=start)
    corpus = ArrayVectors(stored, normalised=True)
    plan = Plan(
        task="top", k=given["k"], euclidean=False, corpus_norm=1.002, bins=4096, low=-1.01, high=1.01,
        percentiles=tuple(PERCENTILES),
    )  # fmt: skip
    computer = Computer(corpus, corpus, plan, Inputs(), budget_gb=8.0)
    block = min(ROWS, rows)
    seconds = [timed(lambda: computer.compute(0, block))["wall"] for _ in range(given["rounds"] + 1)]
    rate = 0.0
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("highest")
        a, b = torch.randn(8192, dimension, device="cuda"), torch.randn(65_536, dimension, device="cuda")
        out = torch.empty(8192, 65_536, device="cuda")
        for _ in range(4):
            torch.cuda.synchronize()
            started = time.perf_counter()
            torch.mm(a, b.T, out=out)
            torch.cuda.synchronize()
            rate = max(rate, 2 * 8192 * 65_536 * dimension / (time.perf_counter() - started) / 1e9)
    return {"rows": rows, "block": block, "first": seconds[0], "later": seconds[1:], "matmul": rate}


def main() -> None:
    """Run one side."""
    sides = {"compare": compare, "whole": whole, "grow": grow, "gpu": gpu}
    answer = sides[sys.argv[1]](json.loads(sys.argv[2]))
    sys.stdout.flush()
    os.write(1, ("\n" + json.dumps(answer) + "\n").encode())


if __name__ == "__main__":
    main()
