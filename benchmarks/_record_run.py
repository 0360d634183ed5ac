"""Write what a finished run measured as a Markdown page.

`python benchmarks/_record_run.py RUN --command "…" > results/X.md`.

Every number is read from the run folder; only the command line is given by hand, since a run does not know how it was
called.
"""

from __future__ import annotations

import argparse
import os
import platform
from pathlib import Path
from typing import Any

from data_prep.files import read_json
from eval.table import results_lines
from launch.pipeline import STAGES

COUNTS = {
    "corpus": ("read", "kept", "evaluation_overlap", "characters"),
    "tokenizer": ("vocab_size",),
    "tokens": ("train_rows", "train_tokens"),
    "pairs": ("read", "kept", "evaluation_overlap"),
    "mine": ("documents", "queries", "pairs", "negatives"),
    "synth": ("pairs", "title", "question", "cloze"),
    "gate": ("checked", "evaluation_texts", "overlapping"),
    "gate_pairs": ("checked", "overlapping"),
    "truncate": ("base_layers", "layers", "parameters"),
    "pretrain": ("steps", "world_size", "tokens", "validation_loss_before", "validation_loss_after"),
    "finetune": ("steps", "world_size", "tokens", "loss_first", "loss_last"),
    "eval": ("systems", "sets", "documents", "queries"),
    "export": ("dimension", "max_abs_difference"),
}


def _number(value: float) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:.3g}"
    return f"{int(value):,}"


def page(run: Path, command: str) -> str:
    """The page as text."""
    records: dict[str, dict[str, Any]] = {
        name: read_json(run / name / "stage.json") for name in STAGES if (run / name / "stage.json").exists()
    }
    seconds = sum(r["seconds"] for r in records.values())
    work = sum(sum(r["work_s"].values()) for r in records.values())
    versions = read_json(run / "finetune" / "summary.json")["versions"]
    parts = [
        f"# {run.name}",
        f"Command: `{command}`",
        f"Machine: {os.cpu_count()} cores, {platform.machine()}, no GPU, Python {platform.python_version()}, "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + f". rumpun {records['eval']['rumpun']}, commit {records['eval']['commit'] or 'unknown'}, "
        + f"{records['eval']['started_at'][:10]}.",
        f"Stages took {seconds / 60:.1f} minutes in all; "
        f"{100 * (1 - work / seconds):.1f} % of it was the pipeline's own overhead.",
        "| stage | minutes | counts |\n|---|---|---|",
    ]
    rows = []
    for name, record in records.items():
        shown = [f"{k} {_number(record['counts'][k])}" for k in COUNTS.get(name, ()) if k in record["counts"]]
        rows.append(f"| {name} | {record['seconds'] / 60:.2f} | {', '.join(shown)} |")
    text = "\n\n".join(parts) + "\n" + "\n".join(rows)
    table = "\n".join(results_lines(read_json(run / "eval" / "results.json")))
    return f"{text}\n\n## Results\n\n```\n{table}\n```\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--command", required=True)
    given = parser.parse_args()
    print(page(given.run, given.command), end="")
