"""Near-duplicate removal of short texts: minutes, memory, and what is found, beside datatrove.

`python benchmarks/near_dedup.py --datatrove PYTHON` measures 10^5 to 10^6 texts and writes results/near_dedup.md and
.svg (tens of minutes, of which datatrove takes most); `--quick` measures small ones, prints, and writes nothing. PYTHON
is the interpreter of an environment with `datatrove==0.10.1`, `xxhash<4`, `regex`, `orjson` and `tokenizers`; without
it that side is left out.

Texts: 8 to 60 words drawn by Zipf's law from 30,000 made-up words, in four files. Three in ten are members of a pair: a
text and a copy of it with a few words replaced, added or left out, so that the Jaccard similarity of every pair is
known. A pair of at least the threshold should lose exactly one text; nothing else should be lost. Both sides use the
same shingles of three words, the same bands and the same number of hashes, one process each, one side at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from _facts import RESULTS, machine_lines, table, versions

SIZES, QUICK_SIZES = (100_000, 300_000, 1_000_000), (2_000, 6_000)
FILES = 4
SIDES = ("rumpun", "datatrove")
CLEAR = (0.75, 0.85)
"""Similarities that an estimate from 128 hashes takes for another side of 0.8 in one case of ten."""


def _words(generator: np.random.Generator) -> list[str]:
    """30,000 made-up words of one to four syllables."""
    syllables = [a + b for a in "bcdghjklmnprstwy" for b in ("a", "e", "i", "o", "u", "an", "ang", "ar", "ik", "uh")]
    words = {"".join(generator.choice(syllables, 1 + int(generator.integers(4)))) for _ in range(60_000)}
    return sorted(words)[:30_000]


def write_texts(folder: Path, count: int, *, seed: int = 0) -> dict[str, Any]:
    """Write the texts; returns the pairs: rows of both members (numbered through all files) and their similarity."""
    generator = np.random.default_rng(seed)
    words = np.array(_words(generator))
    weights = 1 / np.arange(1, len(words) + 1) ** 0.9
    weights /= weights.sum()
    pairs = int(0.15 * count)
    lengths = generator.integers(8, 61, count - pairs)
    drawn = generator.choice(len(words), int(lengths.sum()), p=weights)
    rows = np.split(drawn, np.cumsum(lengths)[:-1])
    similarities = []
    for number in range(pairs):
        copy = rows[number].tolist()
        for _ in range(int(generator.integers(0, max(2, len(copy) // 6)))):
            place, how = int(generator.integers(len(copy))), int(generator.integers(3))
            if how == 0:
                copy[place] = int(generator.integers(len(words)))
            elif how == 1:
                copy.append(int(generator.integers(len(words))))
            elif len(copy) > 4:
                copy.pop()
        rows.append(np.array(copy))
        similarities.append(_jaccard(rows[number].tolist(), copy))
    order = generator.permutation(count)
    place = np.empty(count, np.int64)
    place[order] = np.arange(count)
    cuts = np.linspace(0, count, FILES + 1).astype(int)
    size = 0
    for file in range(FILES):
        with (folder / f"{file}.jsonl").open("w") as stream:
            for row in order[cuts[file] : cuts[file + 1]]:
                line = " ".join(words[rows[row]])
                size += len(line)
                stream.write(json.dumps({"text": line}) + "\n")
    first, second = place[:pairs], place[count - pairs :]
    return {"pairs": np.stack([first, second]), "similarity": np.array(similarities), "cuts": cuts, "mb": size / 1e6}


def _jaccard(first: list[int], second: list[int]) -> float:
    a, b = ({tuple(row[i : i + 3]) for i in range(len(row) - 2)} for row in (first, second))
    return len(a & b) / len(a | b)


def measure(texts: Path, out: Path) -> dict[str, Any]:
    """Our side, in this process: signatures of each file, then the verdicts."""
    from data_prep.corpus.near import NearConfig, SignatureWriter, find_duplicates
    from data_prep.progress import Progress

    told, folders = {}, []
    wall, cpu = time.perf_counter(), time.process_time()
    for path in sorted(texts.glob("*.jsonl")):
        folders.append(out / path.stem)
        with SignatureWriter(folders[-1], NearConfig()) as writer, path.open() as stream:
            for line in stream:
                writer.add(json.loads(line)["text"])
    told["signatures"] = [time.perf_counter() - wall, time.process_time() - cpu]
    wall, cpu = time.perf_counter(), time.process_time()
    find_duplicates(folders, NearConfig(), out / "scratch", Progress())
    told["verdicts"] = [time.perf_counter() - wall, time.process_time() - cpu]
    lost = [np.flatnonzero(np.load(folder / "verdict.npy")) for folder in folders]
    removed = np.concatenate([np.stack([np.full(len(rows), i), rows], axis=1) for i, rows in enumerate(lost)])
    np.save(out / "removed.npy", removed)
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    return {"stages": told, "peak_gb": peak * 1024 / 1e9}


def run_side(side: str, python: str, texts: Path, out: Path) -> dict[str, Any]:
    """One side in a fresh process."""
    from data_prep.corpus.near import NearConfig

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    here = Path(__file__).resolve()
    bands, rows = NearConfig().bands()
    if side == "rumpun":
        command = [sys.executable, str(here), "--side", str(texts), str(out)]
    else:
        numbers = map(str, (bands, rows, NearConfig().shingle_words))
        command = [python, str(here.with_name("_near_datatrove.py")), str(texts), str(out), *numbers]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1")
    path = os.pathsep.join([str(here.parents[1]), str(here.parent)]) if side == "rumpun" else ""
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **one_thread, "PYTHONPATH": path})
    if done.returncode:
        raise RuntimeError(f"{side} failed:\n{done.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    told["wall_s"], told["cpu_s"] = (sum(stage[i] for stage in told["stages"].values()) for i in (0, 1))
    return told


def judge(truth: dict[str, Any], removed: np.ndarray[Any, Any], threshold: float) -> dict[str, float]:
    """How many pairs of at least the threshold lost exactly one text, and what else was lost."""
    gone = np.zeros(truth["cuts"][-1], bool)
    gone[truth["cuts"][removed[:, 0]] + removed[:, 1]] = True
    lost = gone[truth["pairs"]].sum(axis=0)
    near, clear = truth["similarity"] >= threshold, truth["similarity"] >= CLEAR[1]
    rightly = (lost == 1) & (truth["similarity"] >= CLEAR[0])
    return {
        "near_pairs": int(near.sum()),
        "recall": float((lost[near] == 1).mean()),
        "recall_clear": float((lost[clear] == 1).mean()),
        "precision": float(rightly.sum() / max(1, gone.sum())),
        "removed": int(gone.sum()),
    }


def points(sizes: tuple[int, ...], python: str, work: Path) -> list[dict[str, Any]]:
    """Every size on every side, one after the other."""
    from data_prep.corpus.near import NearConfig

    found = []
    for count in sizes:
        texts = work / "texts"
        shutil.rmtree(texts, ignore_errors=True)
        texts.mkdir(parents=True)
        truth = write_texts(texts, count)
        for side in SIDES if python else SIDES[:1]:
            told = run_side(side, python, texts, work / side)
            found.append(
                {
                    "side": side,
                    "texts": count,
                    "mb": truth["mb"],
                    **told,
                    **judge(truth, np.load(work / side / "removed.npy"), NearConfig().threshold),
                }
            )
            shutil.rmtree(work / side)
            point = found[-1]
            print(
                f"{side:10} {count:9,} texts  {point['wall_s']:8.1f} s  CPU {point['cpu_s']:8.1f} s  "
                f"{point['peak_gb']:5.2f} GB  recall {point['recall']:.4f}  precision {point['precision']:.4f}",
                flush=True,
            )
    return found


def page(found: list[dict[str, Any]], machine: list[str]) -> str:
    """The tables as Markdown."""
    from data_prep.corpus.near import NearConfig

    bands, rows = NearConfig().bands()
    cells = []
    for point in found:
        peer = next((p for p in found if p["texts"] == point["texts"] and p["side"] != point["side"]), None)
        ratio = "" if peer is None or point["side"] != "rumpun" else f"{peer['cpu_s'] / point['cpu_s']:.1f}"
        memory = "" if peer is None or point["side"] != "rumpun" else f"{peer['peak_gb'] / point['peak_gb']:.1f}"
        cells.append(
            [
                f"{point['texts']:,}",
                point["side"],
                f"{point['wall_s'] / 60:.2f}",
                f"{point['cpu_s'] / 60:.2f}",
                f"{point['mb'] / point['cpu_s']:.1f}",
                f"{point['peak_gb']:.2f}",
                f"{point['recall']:.4f}",
                f"{point['recall_clear']:.4f}",
                f"{point['precision']:.4f}",
                ratio,
                memory,
            ]
        )
    head = ["texts", "side", "minutes", "CPU minutes", "MB per CPU s", "peak GB"]
    head += ["recall", f"recall, {CLEAR[1]} and more", "precision", "CPU ratio", "memory ratio"]
    largest = max(p["texts"] for p in found)
    stages = [
        [p["side"], name, f"{wall:.1f}", f"{cpu:.1f}"]
        for p in found
        if p["texts"] == largest
        for name, (wall, cpu) in p["stages"].items()
    ]
    lines = [
        "# Near-duplicate removal of short texts",
        *machine,
        f"Texts of 8 to 60 words; three in ten are members of a pair whose Jaccard similarity is known (shingles of "
        f"{NearConfig().shingle_words} words). Threshold {NearConfig().threshold}, {bands} bands of {rows} hashes on "
        "both sides. One process and one thread each, one side at a time. datatrove cuts words at spaces here (its own "
        "tokenisers are slower) and hashes with xxhash; it takes every pair that shares a band for a copy, rumpun "
        "compares the whole signatures of such pairs.",
        "Recall: the share of pairs of at least the threshold that lost exactly one text. Precision: the share of "
        f"removed texts that are such a one of a pair of {CLEAR[0]} or more. Peak memory counts memory-mapped tables. "
        "Ratios are datatrove / rumpun.",
        table(head, cells),
        f"Stages at {largest:,} texts:",
        table(["side", "stage", "s", "CPU s"], stages),
        "![minutes and memory against the number of texts](near_dedup.svg)",
    ]
    return "\n\n".join(lines) + "\n"


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Minutes and memory against the number of texts."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rumpun",
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        for axes, key, unit, title in zip(
            figure.subplots(1, 2), ("cpu_s", "peak_gb"), (60, 1), ("CPU minutes", "peak memory, GB"), strict=True
        ):
            for side, colour in (("datatrove", "#b5512f"), ("rumpun", "#1f6f8b")):
                chosen = [p for p in found if p["side"] == side]
                if not chosen:
                    continue
                axes.plot([p["texts"] for p in chosen], [p[key] / unit for p in chosen], marker="o", color=colour, lw=2)
                last = (chosen[-1]["texts"], chosen[-1][key] / unit)
                axes.annotate(side, last, xytext=(0, 8), textcoords="offset points", ha="right", color=colour)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator(sorted({p["texts"] for p in found})))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{int(x):,}"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.set_xlabel("texts")
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(axis="y", color="#dddddd", lw=0.6)
            axes.margins(y=0.15)
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure, print; write the page unless quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few texts, nothing is written")
    parser.add_argument(
        "--datatrove", default="", metavar="PYTHON", help="interpreter of an environment with datatrove"
    )
    parser.add_argument("--side", nargs=2, metavar=("TEXTS", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(Path(arguments.side[0]), Path(arguments.side[1]))))
        return
    load = os.getloadavg()[0]
    if not arguments.datatrove:
        print("datatrove is left out: give --datatrove PYTHON")
    with tempfile.TemporaryDirectory(prefix="near-dedup-") as work:
        found = points(QUICK_SIZES if arguments.quick else SIZES, arguments.datatrove, Path(work))
    if arguments.quick:
        return
    packages = versions(sys.executable, ["numpy", "numba", "rensa"])
    if arguments.datatrove:
        packages |= versions(arguments.datatrove, ["datatrove", "xxhash"])
    machine = machine_lines(threads=1, load_before=load, packages=packages)
    (RESULTS / "near_dedup.md").write_text(page(found, machine), encoding="utf-8")
    plot(found, RESULTS / "near_dedup.svg")


if __name__ == "__main__":
    main()
