"""Neighbour search beside its peers: KDTree as the paper used it, sentence-transformers, faiss, a bare matrix product.

    python benchmarks/neighbors.py [--quick] [--threads 2] [--out benchmarks/results/neighbors.md]

Every round lets all sides answer a sample of queries over the same vectors, one after the other in one process, and
ratios are formed inside a round. Then, each in a process of its own: all vectors against all, for the time and the
memory; samples of queries against memory-mapped corpora that grow; and, where there is a GPU, blocks of queries against
as many vectors as the paper's news set has. Without --quick it writes the page, a plot beside it and the raw figures.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from _facts import RESULTS, machine_lines, table, versions

SIDES = Path(__file__).resolve().parent / "_neighbors_sides.py"
FULL = {
    "rows": 100_000,
    "dimension": 1024,
    "k": 100,
    "queries": 8192,
    "tree_queries": 24,
    "paper_queries": 4,
    "rounds": 5,
}
QUICK = {"rows": 4_000, "dimension": 64, "k": 20, "queries": 512, "tree_queries": 64, "paper_queries": 16, "rounds": 2}
GROWTH, QUICK_GROWTH = (10_000, 30_000, 100_000, 300_000, 1_000_000), (1_000, 5_000)
NEWS, FORECAST = 2_190_000, 10_000_000
PEERS = {
    "paper": ("SciPy KDTree, k = N (the paper)", 100.0),
    "kdtree": ("SciPy KDTree, k = {k}", 20.0),
    "mine_hard_negatives": ("sentence-transformers `mine_hard_negatives`", 2.0),
    "faiss": ("faiss-cpu `IndexFlatIP`", 1.5),
    "ours, top-k only": ("this search without percentiles", None),
}


def side(name: str, given: dict[str, Any], threads: int) -> dict[str, Any]:
    """What a side answers, from a fresh process."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}
    command = [sys.executable, str(SIDES), name, json.dumps({**given, "threads": threads})]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def spread(values: list[float], digits: int = 1) -> str:
    """Median (lowest-highest)."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def rate_lines(found: dict[str, Any], given: dict[str, Any]) -> str:
    """The share of the matrix product's rate, round by round."""
    flops = 2 * given["rows"] * given["dimension"]
    shares, plain, rates = [], [], []
    for one in found["rounds"]:
        best = max(one["matmul"], one["matmul after"])
        rates.append(best)
        shares.append(100 * flops / one["ours"]["wall"] / 1e9 / best)
        plain.append(100 * flops / one["ours, top-k only"]["wall"] / 1e9 / best)
    return (
        f"Best rate of a float32 product around each round: {spread(rates, 0)} GFLOP/s. The search with percentiles "
        f"reaches {spread(shares, 0)} % of it (goal: 70), without them {spread(plain, 0)} %."
    )


def page(results: dict[str, Any], given: dict[str, Any], facts: list[str]) -> str:
    """The Markdown page."""
    found, rounds = results["compare"], results["compare"]["rounds"]
    rows = []
    for name, (label, goal) in PEERS.items():
        ratios = {c: [one[name][c] / one["ours"][c] for one in rounds] for c in ("wall", "cpu")}
        rows.append(
            [
                label.format(k=given["k"]),
                given.get({"kdtree": "tree_queries", "paper": "paper_queries"}.get(name, "queries")),
                f"{1e3 * median(one[name]['wall'] for one in rounds):.3g}",
                spread(ratios["wall"], 2),
                spread(ratios["cpu"], 2),
                f"{goal:g}" if goal else "",
            ]
        )
    own = f"{1e3 * median(one['ours']['wall'] for one in rounds):.3g}"
    whole = results["whole"]
    best = max(whole["matmul"], whole["matmul after"])
    flops = 2 * given["rows"] ** 2 * given["dimension"]
    grown = [
        [
            f"{one['rows']:,}",
            f"{one['wall']:.1f}",
            f"{1e9 * one['wall'] / one['rows'] / one['queries']:.2f}",
            f"{100 * 2 * one['rows'] * one['queries'] * given['dimension'] / one['wall'] / 1e9 / one['matmul']:.0f}",
            f"{one['working'] / 1e6:,.0f}",
        ]
        for one in results["growth"]
    ]
    lines = [
        "# Neighbour search beside its peers",
        "",
        *(f"{line}\n" for line in facts),
        f"{given['rows']:,} unit vectors of {given['dimension']:,} numbers in a thousand clusters, k = {given['k']}; "
        f"this search also gives {7} percentiles of every query's scores over the whole corpus, which no other side "
        "does. Ratios are formed inside a round "
        f"of {len(rounds)}; median (lowest-highest). Times a query are extrapolated from a sample of queries a round.",
        "",
        f"This search: {own} ms a query, from {given['queries']:,} queries a round.",
        "",
        table(
            ["other side", "queries a round", "ms a query", "ratio, wall", "ratio, CPU", "goal"],
            rows,
        ),
        "",
        f"Building the KDTree ({found['kdtree build']['wall']:.1f} s) and adding to faiss "
        f"({found['faiss add']['wall']:.1f} s) is not counted. `mine_hard_negatives` gets the "
        "embeddings through a stub model, scores by inner product and holds the scores of all its queries at once. CPU "
        "seconds of faiss and KDTree count threads that wait. "
        f"{100 * found['check']:.2f} % of the neighbours of 200 queries are those of faiss.",
        "",
        rate_lines(found, given),
        "",
        "## All against all",
        "",
        f"{given['rows']:,} × {given['rows']:,} with percentiles, in a process of its own: {whole['wall']:.1f} s "
        f"({whole['cpu']:.1f} CPU s), {flops / whole['wall'] / 1e9:.0f} GFLOP/s, "
        f"{100 * flops / whole['wall'] / 1e9 / best:.0f} % of the best product's rate. The whole "
        f"process held at most {whole['peak'] / 1e9:.2f} GB: its vectors of "
        f"{whole['bytes'] / 1e9:.2f} GB and {(whole['peak'] - whole['bytes']) / 2**30:.2f} GiB more (goal: 1), Python, "
        "torch, numba and the result included.",
        "",
        "## Growth",
        "",
        f"{results['growth'][0]['queries']:,} queries against memory-mapped float16 corpora, k = {given['k']} and "
        "percentiles; working memory is the rise of the process's own memory, the mapped file not counted.",
        "",
        table(["rows", "s", "ns a score", "% of the product's rate", "working memory, MB"], grown),
        "",
        "![time and memory against the rows](neighbors.svg)",
        "",
        *gpu_lines(results.get("gpu"), given),
    ]
    return "\n".join(lines).rstrip() + "\n"


def gpu_lines(found: dict[str, Any] | None, given: dict[str, Any]) -> list[str]:
    """The GPU's part of the page."""
    if not found or not found["matmul"]:
        return []
    block = median(found["later"])
    total = found["first"] + block * (found["rows"] / found["block"] - 1)
    share = 100 * 2 * found["rows"] * found["block"] * given["dimension"] / block / 1e9 / found["matmul"]
    forecast = total * (FORECAST / found["rows"]) ** 2
    return [
        "## On the GPU",
        "",
        f"{found['rows']:,} × {found['rows']:,}, k = {given['k']} and percentiles: {block:.2f} s for a block of "
        f"{found['block']:,} queries (median of {len(found['later'])}; the first, which also moves the corpus to the "
        f"GPU, {found['first']:.1f} s), so {total / 60:.1f} minutes for all, at {share:.0f} % of the measured rate of "
        f"its float32 product ({found['matmul'] / 1e3:.1f} TFLOP/s). Forecast for {FORECAST:,} rows: "
        f"{forecast / 3600:.1f} hours on one such GPU.",
    ]


def plot(grown: list[dict[str, Any]], path: Path) -> None:
    """Seconds and working memory against the rows of the corpus."""
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rumpun",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    rows = [one["rows"] for one in grown]
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        seconds = [one["wall"] for one in grown]
        left.plot(rows, seconds, marker="o", color="#1f6f8b", lw=2)
        line = [seconds[-1] * n / rows[-1] for n in rows]
        left.plot(rows, line, color="#999999", lw=1, ls="--")
        left.annotate(
            "proportional to the rows", (rows[0], line[0]), xytext=(8, -4), textcoords="offset points", color="#777777"
        )
        left.set_yscale("log")
        left.set_title(f"s for {grown[0]['queries']:,} queries", loc="left", fontsize=10)
        right.plot(rows, [one["working"] / 1e6 for one in grown], marker="o", color="#b5512f", lw=2)
        right.set_ylim(bottom=0)
        right.set_title("working memory, MB", loc="left", fontsize=10)
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xlabel("rows of the corpus (float16, memory-mapped)")
            axes.grid(axis="y", color="#dddddd", lw=0.6)
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure, print, and write unless quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and short vectors, nothing is written")
    parser.add_argument("--threads", type=int, default=2, help="threads of every side")
    parser.add_argument("--rounds", type=int, help="rounds of the comparison")
    parser.add_argument("--only", choices=["compare", "whole", "growth", "gpu"], help="one part, printed as JSON")
    parser.add_argument("--out", type=Path, help="the page (default: results/neighbors.md; with --quick: none)")
    options = parser.parse_args()
    given = dict(QUICK if options.quick else FULL)
    given["rounds"] = options.rounds or given["rounds"]
    threads, load = options.threads, os.getloadavg()[0]

    def growth() -> list[dict[str, Any]]:
        sizes = QUICK_GROWTH if options.quick else GROWTH
        return [side("grow", {**given, "rows": rows}, threads) for rows in sizes]

    parts = {
        "compare": lambda: side("compare", given, threads),
        "whole": lambda: side("whole", given, threads),
        "growth": growth,
        "gpu": lambda: side(
            "gpu", {**given, "rows": 3 * given["rows"] if options.quick else NEWS, "rounds": 3}, threads
        ),
    }
    if options.only:
        print(json.dumps(parts[options.only](), indent=1))
        return
    if not options.quick and not has_gpu():
        del parts["gpu"]
    results = {name: work() for name, work in parts.items()}
    packages = versions(sys.executable, ["torch", "numba", "numpy", "scipy", "faiss-cpu", "sentence-transformers"])
    told = page(results, given, machine_lines(threads=threads, load_before=load, packages=packages))
    print(told)
    out = options.out or (None if options.quick else RESULTS / "neighbors.md")
    if out:
        out.write_text(told, encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        plot(results["growth"], out.with_suffix(".svg"))


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


if __name__ == "__main__":
    main()
