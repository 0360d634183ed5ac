"""Encoding texts of very different lengths with one model: our encoder beside sentence-transformers' `encode`.

    python benchmarks/encode.py [--quick] [--data ../shared/data] [--threads 2] [--out benchmarks/results/encode.md]

MiniLM from one folder, loaded by both; the same texts, both at their defaults (`encode` with 32 texts a batch, and with
other batch sizes for fairness), in turns in one process. The largest difference of any number of any vector is printed.
Wall time: both use all threads that they are given. Without a data folder the texts are random words of the same
lengths. `--quick` takes fewer texts, prints, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _facts import REPO, RESULTS, machine_lines, table, versions
from embed_store import read_texts, spread
from minilm_finetune import copy_minilm

BATCHES = (32, 8, 128)
MAX_TOKENS = 256


def timed(sides: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each side, round by round in an order that rotates, and what each returned last."""
    names = list(sides)
    spent: dict[str, list[float]] = {name: [] for name in names}
    found: dict[str, Any] = {}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.perf_counter()
            found[name] = sides[name]()
            spent[name].append(time.perf_counter() - started)
    return spent, found


def compare(texts: list[str], folder: Path, rounds: int, batches: Sequence[int] = BATCHES) -> tuple[str, str]:
    """(a line about the texts, the table)."""
    from sentence_transformers import SentenceTransformer

    from train.encoder import EncoderConfig, TextEncoder

    copy_minilm(folder)
    ours = TextEncoder(folder, config=EncoderConfig(max_tokens=MAX_TOKENS))
    theirs = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    theirs.max_seq_length = MAX_TOKENS
    first = "sentence-transformers, encode(texts)"
    sides: dict[str, Callable[[], Any]] = {
        first if size == BATCHES[0] else f"the same, batch_size={size}": lambda size=size: theirs.encode(
            texts, batch_size=size, show_progress_bar=False, normalize_embeddings=True
        )
        for size in batches
    }
    sides["rumpun"] = lambda: ours.embed(texts, role="passage")
    for side in sides.values():  # kernels are made for each shape once
        side()
    spent, found = timed(sides, rounds)
    apart = max(float(np.abs(found[name] - found[first]).max()) for name in sides)
    lengths = [len(ids) for ids in theirs.tokenizer(texts, truncation=True, max_length=MAX_TOKENS)["input_ids"]]
    fastest = [min(spent[name][r] for name in sides if name != "rumpun") for r in range(rounds)]
    rows = [
        (
            name,
            spread([len(texts) / s for s in spent[name]], lambda v: f"{v:.0f}"),
            spread([b / a for a, b in zip(spent[name], spent[first], strict=True)], lambda v: f"{v:.2f}"),
            spread([b / a for a, b in zip(spent[name], fastest, strict=True)], lambda v: f"{v:.2f}"),
        )
        for name in sides
    ]
    said = (
        f"{len(texts):,} texts, {np.mean(lengths):.0f} tokens in the mean (median {np.median(lengths):.0f}, "
        f"longest {max(lengths)}). Largest difference of any number of any vector: {apart:.1e}."
    )
    head = ("MiniLM", "texts/s", "ratio to encode(texts)", "ratio to the fastest of theirs in the round")
    return said, table(head, rows)


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer texts; prints only")
    parser.add_argument("--data", type=Path, default=REPO.parent / "shared" / "data", help="folder of corpora/")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both sides")
    parser.add_argument("--out", type=Path, default=RESULTS / "encode.md", help="the page to write")
    args = parser.parse_args()
    load = os.getloadavg()[0]
    import torch

    torch.set_num_threads(args.threads)
    texts = read_texts(args.data, 24 if args.quick else 300)
    with tempfile.TemporaryDirectory(prefix="rumpun-encode-") as name:
        said, found = compare(texts, Path(name) / "model", *((1, BATCHES[:1]) if args.quick else (3,)))
    print(f"{said}\n\n{found}")
    if not args.quick:
        packages = versions(sys.executable, ["numpy", "torch", "transformers", "sentence-transformers"])
        lines = machine_lines(threads=args.threads, load_before=load, packages=packages)
        about = (
            "Median (quartiles) over the rounds; ratios within a round. The texts are posts, articles and clauses "
            "mixed. Ours packs texts end to end, so that nothing is padded, and takes the faster of PyTorch's two "
            "libraries for the processor at hand (train/host_linear.py)."
        )
        args.out.write_text(
            "\n\n".join(["# Encoding beside sentence-transformers", *lines, about, said, found, ""]), encoding="utf-8"
        )


if __name__ == "__main__":
    main()
