"""How fast one pass over texts of long-tailed lengths is, packed and padded: forward and backward of whole models.

    python benchmarks/packed_attention.py [--quick] [--threads 1 2] [--out benchmarks/results/packed_attention.md]

Lengths are log-normal with a median of 60 and a 95th percentile of 500 tokens, cut at 512. All ways of a model run in
turns in one process; the table gives the median over the turns of CPU seconds (what a busy machine disturbs least) and
wall seconds, as ratios to packing by runs of equal lengths. Two threads tell something on two idle cores only.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

MODELS = {"llama": "Llama, 4 layers of 256", "minilm": "MiniLM, 6 layers of 384 (BERT)"}
WAYS = {
    "runs": "packed, a call for each run of equal lengths",
    "loop": "packed, a call for each sequence",
    "sorted": "padded, 32 rows a batch, sorted by length",
    "arrival": "padded, 32 rows a batch, in order of arrival",
}


def make_model(kind: str) -> Any:
    """A randomly initialised model of `MODELS`, in evaluation mode (no dropout)."""
    import torch
    from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

    torch.manual_seed(0)
    if kind == "llama":
        shape = LlamaConfig(
            vocab_size=8192, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2,
        )  # fmt: skip
        return LlamaModel(shape).eval()
    shape = BertConfig(hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=12)
    return BertModel(shape, add_pooling_layer=False).eval()


def measure(kind: str, texts: int, turns: int) -> None:
    """Print `way tokens computed cpu_s wall_s` for every way, medians over the turns."""
    import numpy as np
    import torch

    from train.attention_layout import attention_layout, token_states
    from train.packing import pack, token_chunks

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    rng = np.random.default_rng(0)
    lengths = (
        np.exp(np.log(60) + np.log(500 / 60) / 1.645 * rng.standard_normal(texts)).round().clip(3, 512).astype(int)
    )
    sequences = [rng.integers(5, 8000, n).tolist() for n in lengths]
    by_length = sorted(sequences, key=len, reverse=True)
    model = make_model(kind)

    def packed(single: bool) -> None:
        for rows in token_chunks([len(s) for s in sequences], 16384):
            stream = pack([sequences[r] for r in rows])
            inputs = stream.model_inputs()
            if single:
                inputs["packed_runs"] = [(n, 1) for n in stream.lengths]
            model(**inputs).last_hidden_state.square().mean().backward()

    def padded(rows: list[list[int]]) -> None:
        for first in range(0, texts, 32):
            token_states(model, pack(rows[first : first + 32]), "padded").square().mean().backward()

    ways: dict[str, Callable[[], None]] = {
        "runs": lambda: packed(False),
        "loop": lambda: packed(True),
        "sorted": lambda: padded(by_length),
        "arrival": lambda: padded(sequences),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, way in ways.items():
            attention_layout(model, "packed" if name in ("runs", "loop") else "padded")
            cpu, wall = time.process_time(), time.perf_counter()
            way()
            if turn:  # the first turn warms up
                found[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    for name, pairs in found.items():
        cpu, wall = np.median(pairs, axis=0)
        rows = by_length if name == "sorted" else sequences
        batches = [rows[i : i + 32] for i in range(0, texts, 32)]
        computed = sum(len(b) * max(map(len, b)) for b in batches) if name in ("sorted", "arrival") else sum(lengths)
        print(name, sum(lengths), computed, cpu, wall)


def main() -> None:
    """Run every model with one and two threads, each in a process of its own, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the Llama alone, few texts, one turn, one thread")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="OpenMP threads of the processes")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        kind, texts, turns = options.measure
        return measure(kind, int(texts), int(turns))
    import torch

    lines = [
        "# Packed attention on CPU",
        "",
        f"torch {torch.__version__}, {platform.machine()}, {os.cpu_count()} cores; forward and backward of the whole "
        "model; see benchmarks/packed_attention.py. Ratios to the first line of each block: above 1 is slower.",
        "",
        "| model | threads | way | tokens computed | CPU s | ratio, CPU | ratio, wall |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, title in MODELS.items():
        if options.quick and kind != "llama":
            continue
        for threads in [1] if options.quick else options.threads:
            texts, turns = ("32", "1") if options.quick else ("96" if kind == "llama" else "64", "3")
            answer = subprocess.run(
                [sys.executable, __file__, "--measure", kind, texts, turns],
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
                check=True,
                capture_output=True,
                text=True,
            )
            base: tuple[float, float] | None = None
            for line in answer.stdout.splitlines():
                name, tokens, computed, cpu, wall = line.split()
                base = base or (float(cpu), float(wall))
                lines.append(
                    f"| {title} | {threads} | {WAYS[name]} | {int(computed) / int(tokens):.2f} × {tokens} "
                    f"| {float(cpu):.2f} | {float(cpu) / base[0]:.2f} | {float(wall) / base[1]:.2f} |"
                )
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
