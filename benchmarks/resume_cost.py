"""What saving and resuming cost a real training: blocking seconds, share of time, bytes, and the way to the first step.

`python benchmarks/resume_cost.py` trains a random Llama of 523 M parameters (fp32, AdamW, one process; 20 GiB of
memory, 15 GB of disk, some minutes) and writes results/resume_cost.md; `--quick` takes 3 M, prints and writes nothing.

Two trainings of the same steps, one that copies and writes in the background and one that waits for the disk; both save
every third step. Then one is stopped, and resumed in a new process: from the start of that process to the end of its
first step, by place.
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
from statistics import median
from typing import Any

from _facts import RESULTS, machine_lines, table, versions

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

HERE = Path(__file__).resolve().parent
FULL = {"hidden": 2048, "feed_forward": 5504, "heads": 16, "layers": 10}
SMALL = {"hidden": 256, "feed_forward": 688, "heads": 4, "layers": 3}
VOCABULARY, ROW_TOKENS, ROWS, BATCH, STEPS, EVERY = 8192, 64, 64, 4, 9, 3
INTERVAL_S = 600.0  # the default of checkpoint.every_s


def make_inputs(folder: Path, shape: dict[str, int]) -> int:
    """A random model with a tokenizer of nothing and token shards in `folder`; returns its parameters."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from data_prep.shards import ShardWriter

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=shape["hidden"],
            intermediate_size=shape["feed_forward"],
            num_hidden_layers=shape["layers"],
            num_attention_heads=shape["heads"],
            tie_word_embeddings=True,
        )
    )
    model.save_pretrained(folder / "model")
    numbers = np.random.default_rng(0)
    for name in ("train", "validation"):
        with ShardWriter(folder / "tokens" / name, "tokens") as writer:
            for _ in range(ROWS):
                ids = numbers.integers(3, VOCABULARY, ROW_TOKENS).tolist()
                writer.append({"input_ids": ids, "document_starts": [0], "source": None})
    return sum(p.numel() for p in model.parameters())


def start(folder: Path, name: str, *, background: bool, stop_after: int = 0) -> dict[str, Any]:
    """One start of the training `name`, in a process of its own; what it printed, and its seconds."""
    job = {
        "model": str(folder / "model"),
        "tokens": str(folder / "tokens"),
        "out": str(folder / name),
        "history": str(folder / f"{name}-history"),
        "config": {"precision": "fp32", "batch_rows": BATCH, "max_steps": STEPS, "validation_rows": 0},
        "checkpoint": {"every_steps": EVERY, "every_s": None, "background": background},
        "stop_after": stop_after,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(job))
    (folder / f"{name}-history.store").unlink(missing_ok=True)
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / "_resume_job.py"), str(path)], capture_output=True, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"error: the training ended with {done.returncode}\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    metrics = (folder / f"{name}-history" / "metrics.jsonl").read_text().splitlines()
    return found | {"wall_s": time.perf_counter() - began, "steps": [json.loads(line) for line in metrics]}


def checkpoint_bytes(history: Path) -> int:
    """Bytes of the newest checkpoint."""
    newest = history / "checkpoints" / (history / "checkpoints" / "latest").read_text().strip()
    return sum(path.stat().st_size for path in newest.iterdir())


def measure(folder: Path, shape: dict[str, int]) -> dict[str, Any]:
    """All starts, the two kinds of saving in turn."""
    parameters = make_inputs(folder, shape)
    ahead = start(folder, "background", background=True)
    size = checkpoint_bytes(folder / "background-history")
    for name in ("background", "background-history"):
        shutil.rmtree(folder / name)
    waiting = start(folder, "waiting", background=False)
    for name in ("waiting", "waiting-history"):
        shutil.rmtree(folder / name)
    stopped = start(folder, "resumed", background=True, stop_after=EVERY + 1)
    resumed = start(folder, "resumed", background=True)
    return {
        "parameters": parameters,
        "bytes": size,
        "background": ahead,
        "waiting": waiting,
        "first": stopped,
        "resumed": resumed,
    }


def step_s(run: dict[str, Any]) -> tuple[float, float]:
    """(median step while nothing is written, median of the steps right after a save)."""
    steps = {r["step"]: r["step_s"] for r in run["steps"]}
    quiet = [s for n, s in steps.items() if n % EVERY == 0]
    during = [s for n, s in steps.items() if n % EVERY == 1 and n > 1]
    return median(quiet), median(during)


def write(found: dict[str, Any]) -> list[str]:
    """The lines of the result."""
    ahead, waiting = found["background"], found["waiting"]
    rows = []
    for name, run in (("background = true", ahead), ("background = false", waiting)):
        quiet, during = step_s(run)
        first, *later = run["saves_s"]
        blocked = median(later)
        rows.append(
            [name, f"{first:.2f}", f"{blocked:.2f}", f"{100 * blocked / (INTERVAL_S + blocked):.2f} %",
             f"{quiet:.2f}", f"{during:.2f}", f"{blocked + max(0.0, during - quiet):.2f}"]
        )  # fmt: skip
    ratio = median(waiting["saves_s"][1:]) / max(1e-9, median(ahead["saves_s"][1:]))
    starts = [found[name]["start_parts_s"] for name in ("first", "resumed")]
    parts = {name: [run.get(name, 0.0) for run in starts] for name in dict.fromkeys([*starts[0], *starts[1]])}
    lines = [
        f"{found['parameters'] / 1e6:,.0f} M parameters, fp32, AdamW, one process; {found['bytes'] / 1e9:.2f} GB a "
        f"checkpoint = {found['bytes'] / found['parameters']:.2f} bytes a parameter (fp32 weight and two moments).",
        "",
        "## What a save holds up",
        "",
        table(
            ["[checkpoint]", "first save, s", "later saves, s", f"share at every_s = {INTERVAL_S:.0f}",
             "step without a save in flight, s", "step beside one, s", "a save costs in all, s"], rows,
        ),
        "",
        f"Waiting for the disk blocks {ratio:.1f} times as long as copying. The first copy also gets its memory.",
        "",
        "## From the start of the process to the end of its first step",
        "",
        table(
            ["place", "first start, s", "resumed, s"],
            [[name, f"{a:.2f}", f"{b:.2f}"] for name, (a, b) in parts.items()]
            + [["all", *(f"{sum(column):.2f}" for column in zip(*parts.values(), strict=True))]],
        ),
        "",
        "`opening the history` checks every byte of the checkpoint; `restoring` reads it into the engine.",
    ]  # fmt: skip
    return lines


def main() -> None:
    """Measure, print, and write the result unless --quick."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="3 M parameters; print, write nothing")
    parser.add_argument(
        "--scratch", type=Path, help="where 15 GB may be written (default: the system's temporary folder)"
    )
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        found = measure(Path(name), SMALL if arguments.quick else FULL)
    lines = ["# What saving and resuming cost", "", *write(found), ""]
    lines += machine_lines(
        threads=1, load_before=load, packages=versions(sys.executable, ["torch", "deepspeed", "safetensors"])
    )
    text = "\n".join(lines) + "\n"
    print(text)
    if not arguments.quick:
        (RESULTS / "resume_cost.md").write_text(text)


if __name__ == "__main__":
    main()
