"""A run folder like a real one, small: rankings and results by `evaluate` itself, the rest in the agreed formats."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_prep.files import write_json
from data_prep.progress import Progress
from eval.retrieval import EvalConfig, evaluate
from eval.systems.bm25 import BM25Ranker
from eval.systems.listing import System
from eval.systems.ranker import ordered_top_k

WORDS = ["hujan", "padi", "sawah", "pasar", "ikan", "murah", "kerajaan", "bantuan", "sekolah", "guru", "jalan", "harga"]
SYSTEMS = [
    ("untrained", "untrained", 1.5),
    ("all-minilm-l6-v2", "baseline", 2.7),
    ("teacher", "teacher", 3.1),
    ("pretrained", "pretrained", 2.1),
    ("finetuned", "finetuned", 3.5),
]


class PlantedRanker:
    """Finds the document that carries the query's number; the larger `strength`, the more often."""

    def __init__(self, strength: float, seed: int) -> None:
        self.strength, self.seed = strength, seed

    def rank(
        self, documents: Sequence[str], queries: Sequence[str], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rng = np.random.default_rng([self.seed, zlib.crc32(documents[0].encode())])
        numbers = [d.split()[0] for d in documents]
        rows = []
        for query in queries:
            scores = rng.normal(size=len(documents)).astype(np.float32)
            scores[numbers.index(query.split()[-1].replace("q", "d"))] += self.strength
            rows.append(ordered_top_k(scores, k))
        return np.stack([r[0] for r in rows]), np.stack([r[1] for r in rows])


def write_set(folder: Path, *, documents: int, queries: int, seed: int, hard: bool = True, text: str = "") -> Path:
    """A BEIR folder: query qI shares a few words with document dI; `text` is put into every text."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    texts = [[f"{WORDS[w]}{n}" for w, n in rng.integers(0, [len(WORDS), 20], (24, 2))] for _ in range(documents)]
    with gzip.open(folder / "corpus.jsonl.gz", "wt", encoding="utf-8") as stream:
        for i, words in enumerate(texts):
            stream.write(json.dumps({"_id": f"d{i}", "title": "", "text": f"d{i} {' '.join(words)}{text}"}) + "\n")
    with gzip.open(folder / "queries.jsonl.gz", "wt", encoding="utf-8") as stream:
        for i in range(queries):
            words = [*texts[i][: int(rng.integers(4))], *texts[int(rng.integers(documents))][:2]]
            stream.write(json.dumps({"_id": f"q{i}", "text": f"{' '.join(words)}{text} q{i}"}) + "\n")
    lines = [f"q{i}\td{i}\t1" for i in range(queries)]
    header = "query-id\tcorpus-id\tscore"
    (folder / "qrels.tsv").write_text("\n".join([header, *lines]) + "\n")
    if hard:
        (folder / "qrels_hard.tsv").write_text("\n".join([header, *lines[::4]]) + "\n")
    return folder


def write_run(root: Path, *, sets: Sequence[str] = ("news", "forum", "law"), queries: int = 60, text: str = "") -> Path:
    """`root/run`, complete: stages, training metrics, evaluation, mining audit, parity."""
    run = root / "run"
    folders = [
        write_set(root / "sets" / name, documents=queries * 2, queries=queries, seed=i, text=text)
        for i, name in enumerate(sets)
    ]
    out = run / "eval"
    out.mkdir(parents=True)
    systems = [System("bm25", "bm25", "BM25, k1 1.2, b 0.75", BM25Ranker)]
    for number, (name, kind, strength) in enumerate(SYSTEMS):
        systems.append(
            System(name, kind, f"planted, strength {strength}", lambda s=strength, n=number: PlantedRanker(s, n))
        )  # type: ignore[arg-type, misc]
    config = EvalConfig(sets=[str(root / "sets" / "*")], bootstrap_samples=500)
    counts = evaluate(config, sets=folders, systems=systems, out=out, seed=7, progress=Progress())
    _write_stages(run, {"eval": counts})
    _write_training(run / "pretrain", phase="pretrain", steps=300, first=7.4, last=3.1)
    _write_training(run / "finetune", phase="finetune", steps=180, first=2.2, last=0.4)
    edges = [round(x, 3) for x in np.linspace(-1, 1, 41).tolist()]
    centres = (np.array(edges[1:]) + np.array(edges[:-1])) / 2

    def bell(mean: float, width: float, top: int) -> list[int]:
        counts: list[int] = np.rint(top * np.exp(-(((centres - mean) / width) ** 2) / 2)).astype(int).tolist()
        return counts

    audit = {
        "histogram_edges": edges,
        "positive_scores": bell(0.78, 0.08, 600),
        "negative_scores": bell(0.45, 0.1, 1900),
        "counts": {"pairs": 2188, "negatives": 8752, "refused_no_positive": 3812, "skipped_negative_ratio": 411},
        "neighbors": {
            f"rank {r}": {q: round(0.9 - 0.02 * r + float(q) / 12, 4) for q in ("0.05", "0.50", "0.95")}
            for r in (1, 10)
        },
        "policy": {},
        "policy_in_words": ["Negatives come from ranks 10 to 50."],
        "rules": {"candidates": 9000, "in_order": {"ratio": 411, "margin": 0}, "alone": {"ratio": 502, "margin": 0}},
        "hubness": {"skewness": 1.2, "texts_used": 900, "texts": 1000, "most_used": [{"uses": 9, "text": "hub <b>"}]},
        "false_negatives": {
            "known": {"per_negative": {"hits": 2, "trials": 400, "rate": 0.005, "low": 0.0014, "high": 0.018}},
            "hidden": {"per_query": {"hits": 0, "trials": 0, "rate": 0.0, "low": 0.0, "high": 1.0}},
        },
        "examples": {"news": [{"query": "soalan", "positives": ["jawapan <script>"], "positive_scores": [0.8]}]},
    }
    write_json(run / "mine" / "audit.json", audit)
    _write_data_reports(run)
    write_json(
        run / "export" / "parity.json", {"max_abs_difference": 3.1e-7, "texts": 24, "dimension": 256, "tolerance": 1e-5}
    )
    (run / "recipe.toml").write_text('name = "demo"\nseed = 7\n\n[eval]\nsets = ["{data}/eval_dev/*"]\n')
    return run


def _write_data_reports(run: Path) -> None:
    rule = {"rule": "too_short", "meaning": "under min_chars", "removed": 402, "share": 0.0335}
    write_json(
        run / "corpus" / "report.json",
        {
            "counts": {"read": 12000, "kept": 10874, "files": 4},
            "rules": [
                {**rule, "samples": [{"text": "ok <i>", "source": "forum"}]},
                {**rule, "rule": "bad_lines", "removed": 0, "samples": []},
            ],
            "private": [{"kind": "phone", "replaced": 12, "samples": ["hubungi <PHONE>"]}],
            "languages": [{"language": "ms", "read": 12000, "kept": 10874, "characters": 5000}],
            "sources": [{"source": "forum", "language": "ms", "read": 12000, "kept": 10874, "characters": 5000}],
            "other": {"duplicate_ids": [{"id": "7"}]},
        },
    )
    write_json(
        run / "synth" / "report.json",
        {
            "counts": {"pairs": 7400, "chunks": 9000},
            "generator": "offline",
            "generator_counts": {"asks": 9000},
            "styles": {"title": {"asked": 9000, "made": 8000, "kept": 7400}},
            "filters": {"refused_round_trip": {"refused": 61, "samples": [{"question": "apa", "passage": "itu"}]}},
            "examples": [{"style": "title", "query": "soalan", "positives": ["jawapan"]}],
        },
    )
    for gate, checked in (("gate", {"corpus": 10874}), ("gate_pairs", {"mine": 63861, "synth": 14800})):
        measures = {"ngram_words": 13, "near": 0.75}
        proof = {"evaluation_sets": ["news"], "evaluation_texts": 180, "checked": checked, "measures": measures}
        write_json(run / gate / "proof.json", proof)


def _write_stages(run: Path, extra: dict[str, dict[str, int | float]]) -> None:
    stages: list[tuple[str, float, dict[str, float], dict[str, int | float]]] = [
        ("generate", 3.1, {"prepare": 2.9}, {"documents": 12000, "queries": 400}),
        (
            "corpus",
            4.2,
            {"prepare": 3.8},
            {"read": 12000, "kept": 10874, "duplicates": 610, "too_short": 402, "evaluation_overlap": 114},
        ),
        ("tokenizer", 2.5, {"tokenise": 2.2}, {"vocab_size": 8192}),
        ("tokens", 5.4, {"tokenise": 5.0}, {"documents": 10874, "tokens": 2412544, "train_rows": 4712}),
        ("mine", 9.7, {"mine": 8.8}, {"documents": 10874, "pairs": 9123, "negatives": 63861}),
        ("synth", 4.0, {"synthesise": 3.6}, {"pairs": 7400}),
        ("gate", 1.0, {"prepare": 0.9}, {"checked": 10874}),
        ("gate_pairs", 1.0, {"prepare": 0.9}, {"checked": 78661}),
        ("truncate", 1.2, {"prepare": 0.7}, {"layers": 2, "parameters": 12345678}),
        ("pretrain", 74.0, {"train": 68.5}, {"steps": 300, "tokens": 2457600}),
        ("finetune", 62.0, {"train": 57.0}, {"steps": 180, "pairs": 11520}),
        ("eval", 14.0, {"encode": 11.0, "score": 1.5}, extra.get("eval", {})),
        ("export", 6.0, {"encode": 1.0, "prepare": 2.0}, {"probe_texts": 24, "dimension": 256}),
    ]
    for name, seconds, work_s, counts in stages:
        (run / name).mkdir(parents=True, exist_ok=True)
        record: dict[str, Any] = {
            "stage": name, "key": "0" * 16, "content": "0" * 16, "version": 1, "inputs": {}, "external": {},
            "config": {"seed": 7}, "files": {}, "counts": counts, "seconds": seconds, "work_s": work_s,
            "peak_rss_gb": 0.9, "rumpun": "0.1.0", "commit": None, "started_at": "2026-01-02T03:04:05+00:00",
        }  # fmt: skip
        write_json(run / name / "stage.json", record)


def _write_training(folder: Path, *, phase: str, steps: int, first: float, last: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    records: list[dict[str, Any]] = [{"step": 0, "validation_loss": first + 0.05}]
    for step in range(1, steps + 1):
        loss = last + (first - last) * math.exp(-4 * step / steps) + float(rng.normal(0, 0.06))
        lr = 1e-3 * min(1.0, step / 20) * (0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2)
        records.append(
            {
                "step": step, "loss": loss, "lr": lr, "grad_norm": 0.8, "tokens": 8192, "sequences": 16, "step_s": 0.23,
                "elapsed_s": 0.23 * step, "tokens_per_s": 35600 + float(rng.normal(0, 900)),
            }
        )  # fmt: skip
    records.append({"step": steps // 2, "validation_loss": last + (first - last) * 0.16})
    records.append({"step": steps, "validation_loss": last + 0.12})
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps(r) + "\n" for r in sorted(records, key=lambda r: r["step"]))
    )
    write_json(
        folder / "summary.json",
        {
            "phase": phase, "steps": steps, "world_size": 2, "zero_stage": 2, "parameters": 12345678,
            "trunk_parameters": 8151040,
            "train_s": steps * 0.23, "startup_s": 3.1, "save_s": 0.4, "tokens": steps * 8192, "sequences": steps * 16,
            "loss_first": first, "loss_last": last, "validation_loss_before": first + 0.05,
            "validation_loss_after": last + 0.12,
            "peak_rss_gb": 1.4, "device": "cpu", "precision": "fp32",
            "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
        },
    )  # fmt: skip
