"""Memory and time of the contrastive loss with and without its score matrix.

`python benchmarks/info_nce_memory.py` measures batches of 1,024 to 65,536 pairs and writes results/info_nce_memory.md
and .svg (some minutes); `--quick` measures small ones, prints, and writes nothing.

Each point is a process of its own: forward and backward on one thread of the CPU. Time is CPU time of that process,
which a busy machine disturbs least. Memory is the highest resident set during the loss minus the one before it, so the
embeddings and the program are not counted; the gradients of the embeddings are. Both sides get the same batch and must
agree on loss and gradient. `plain` is what one writes first: scores, a mask from the same tables, log-softmax.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from train.relations import Relations

DIMENSION, TEMPERATURE = 32, 0.05
BATCHES = (1024, 2048, 4096, 8192, 16384, 32768, 65536)
QUICK_BATCHES = (1024, 2048, 4096)
PLAIN_LIMIT_GB = 6.0
REPEATS, REPEATED_UP_TO = 3, 8192
RESULTS = Path(__file__).resolve().parent / "results"


def relations(batch: int) -> Relations:
    """A batch of `batch` queries with a positive each; a hundredth of the passages is there twice."""
    import torch

    from train.relations import Relations

    own = torch.arange(batch)
    passages = own % (batch - batch // 100)
    known = torch.stack([passages, batch + own], dim=1)
    return Relations(
        query_ids=batch + own,
        passage_ids=passages,
        anchor_query=own,
        anchor_passage=own,
        anchor_weight=torch.ones(batch),
        passage_query=own,
        passage_positive=torch.ones(batch, dtype=torch.bool),
        known_ids=known,
        passage_documents=passages,
        known_documents=passages[:, None],
        scores=torch.full((batch,), float("nan")),
    )


def plain(queries: torch.Tensor, passages: torch.Tensor, tables: Relations) -> torch.Tensor:
    """The same loss through the whole matrix."""
    import torch
    import torch.nn.functional as F

    hidden = tables.passage_documents[None, :] == tables.known_documents
    for known in tables.known_ids.T:
        hidden |= tables.passage_ids[None, :] == known[:, None]
    hidden.fill_diagonal_(False)
    scores = (queries @ passages.T / TEMPERATURE).masked_fill_(hidden, float("-inf"))
    return F.cross_entropy(scores, torch.arange(len(queries)))


def memory_gb(key: str) -> float:
    """VmRSS or VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"/proc/self/status has no {key}")


def measure(side: str, batch: int) -> dict[str, Any]:
    """One point, in this process."""
    import torch
    import torch.nn.functional as F

    from train.objectives.info_nce import info_nce

    torch.set_num_threads(1)

    def run(size: int) -> tuple[float, float, float, float]:
        draw = torch.Generator().manual_seed(0)
        queries = F.normalize(torch.randn(size, DIMENSION, generator=draw), dim=1)
        passages = F.normalize(queries + 0.3 * torch.randn(size, DIMENSION, generator=draw), dim=1)
        queries.requires_grad_()
        passages.requires_grad_()
        tables = relations(size)
        before = memory_gb("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        started = time.process_time()
        if side == "plain":
            loss = plain(queries, passages, tables)
        else:
            loss = info_nce(queries, passages, tables, temperature=TEMPERATURE)
        loss.backward()
        seconds = time.process_time() - started
        peak = memory_gb("VmHWM") - before
        assert queries.grad is not None and passages.grad is not None
        size_of_gradient = float(queries.grad.double().norm() + passages.grad.double().norm())
        return peak, seconds, float(loss.detach()), size_of_gradient

    run(256)  # libraries load and threads start at their first use
    runs = [run(batch) for _ in range(REPEATS if batch <= REPEATED_UP_TO else 1)]
    peak, _, loss, gradient = runs[0]  # later runs find memory that the first one freed
    return {"side": side, "batch": batch, "gb": peak, "s": [r[1] for r in runs], "loss": loss, "gradient": gradient}


def points(batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every point in a fresh process; `plain` stops before it would pass its limit (twice the batch, four times)."""
    found: list[dict[str, Any]] = []
    plain_gb = 0.0
    for batch in batches:
        for side in ("blockwise", "plain"):
            if side == "plain" and 4 * plain_gb > PLAIN_LIMIT_GB:
                continue
            command = [sys.executable, __file__, "--point", side, str(batch)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
            output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            point = json.loads(output)
            found.append(point)
            if side == "plain":
                plain_gb = point["gb"]
            print(f"{side:10} {batch:7,} pairs  {1e3 * point['gb']:8,.0f} MB  {median(point['s']):8.2f} s", flush=True)
    return found


def check(found: list[dict[str, Any]]) -> None:
    """Raise where the two sides computed different things."""
    for batch in {p["batch"] for p in found}:
        sides = [p for p in found if p["batch"] == batch]
        for key in ("loss", "gradient"):
            values = [p[key] for p in sides]
            if max(values) - min(values) > 1e-5 * max(values):
                raise RuntimeError(f"at {batch} pairs the sides disagree on the {key}: {values}")


def page(found: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    import torch

    rows = []
    for batch in BATCHES:
        block, *rest = [p for p in found if p["batch"] == batch]
        whole = rest[0] if rest else None
        gradients_mb = 2 * batch * DIMENSION * 4 / 1e6
        cells = [f"{batch:,}", f"{gradients_mb:.1f}", f"{1e3 * block['gb']:,.0f}", *"–" * 5]
        cells[4] = f"{median(block['s']):.2f}"
        if whole:
            low, high = min(whole["s"]) / max(block["s"]), max(whole["s"]) / min(block["s"])
            cells[3] = f"{1e3 * whole['gb']:,.0f}"
            cells[5] = f"{median(whole['s']):.2f}"
            cells[6] = f"{whole['gb'] / block['gb']:.0f}"
            cells[7] = f"{median(whole['s']) / median(block['s']):.1f} ({low:.1f}-{high:.1f})"
        rows.append(f"| {' | '.join(cells)} |")
    return f"""# Contrastive loss without its score matrix

Command: `python benchmarks/info_nce_memory.py`, {time.strftime("%Y-%m-%d")}, torch {torch.__version__}, Python
{platform.python_version()}, {platform.machine()}, one thread of a shared machine.

Forward and backward of InfoNCE over B queries and B passages, {DIMENSION} dimensions, fp32, known texts and documents
masked. Loss and gradient of both sides agree to 1e-5. Plain was stopped where it would have passed {PLAIN_LIMIT_GB:.0f}
GB.

Memory is the peak above what was there before the loss: scratch, and the gradients of the embeddings, which any loss
needs (they are there twice while its two terms are added up). Times are CPU seconds of the process, medians of
{REPEATS} runs up to {REPEATED_UP_TO:,} pairs and one run above. Ratios are plain / blockwise; the span of the time
ratio is from the least to the most favourable runs.

| pairs | gradients, MB | blockwise, MB | plain, MB | blockwise, s | plain, s | memory ratio | time ratio |
|---:|---:|---:|---:|---:|---:|---:|---:|
{chr(10).join(rows)}

![memory and time against the batch](info_nce_memory.svg)
"""


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Memory and time against the batch, both axes logarithmic."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "rumpun",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        for axes, value, title in zip(
            figure.subplots(1, 2),
            (lambda p: p["gb"], lambda p: median(p["s"])),
            ("peak memory, GB", "CPU time, s"),
            strict=True,
        ):
            for side, colour in (("plain", "#b5512f"), ("blockwise", "#1f6f8b")):
                chosen = [p for p in found if p["side"] == side]
                axes.plot([p["batch"] for p in chosen], [value(p) for p in chosen], marker="o", color=colour, lw=2)
                last = chosen[-1]
                axes.annotate(
                    side,
                    (last["batch"], value(last)),
                    xytext=(0, 8),
                    textcoords="offset points",
                    ha="right",
                    color=colour,
                )
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.xaxis.set_major_locator(FixedLocator(list(BATCHES)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{int(x) // 1024}k"))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
            axes.set_xlabel("pairs in the global batch")
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(axis="y", color="#dddddd", lw=0.6)
            axes.margins(y=0.12)
        figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure, check, print; write the page unless quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches, nothing is written")
    parser.add_argument("--point", nargs=2, metavar=("SIDE", "BATCH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        side, batch = arguments.point
        print(json.dumps(measure(side, int(batch))))
        return
    found = points(QUICK_BATCHES if arguments.quick else BATCHES)
    check(found)
    if not arguments.quick:
        (RESULTS / "info_nce_memory.md").write_text(page(found), encoding="utf-8")
        plot(found, RESULTS / "info_nce_memory.svg")


if __name__ == "__main__":
    main()
