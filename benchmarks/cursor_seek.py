"""What resuming and proving cost: the seek to a position, the ledger's share of a step, the verification.

    python benchmarks/cursor_seek.py [--quick] [--out benchmarks/results/cursor_seek.md]

Seek: a new order and the batch at a position of a blend of 2·10⁹ rows, at 0, 10⁶ and 10⁹ in turns; each ratio is to the
same turn's seek to 0. Ledger: the same steps of arithmetic in turns, without a ledger, with one that is synced by its
thread, and with one that every step waits for. Verification: the whole proof of a ledger of a million samples. Where no
disk is in the way it is CPU time, which a busy machine disturbs least.
`--quick` does less of each, prints, and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles

from _facts import RESULTS, machine_lines, table, versions

from train.cursor import GlobalOrder, Source
from train.draws import Draws
from train.history.ledger import Ledger
from train.history.verify import verify

ROWS = {"mine": 10**9, "pairs": 4 * 10**8, "synth": 6 * 10**8}
POSITIONS = (0, 10**6, 10**9)
BATCH = 1024


def blend(scale: float = 1.0) -> GlobalOrder:
    """The blend, or a smaller one of the same shares."""
    sources = [Source(name, round(rows * scale)) for name, rows in ROWS.items()]
    return GlobalOrder(sources, fingerprint="benchmark", seed=0)


def seek_s(position: int) -> float:
    """CPU seconds from nothing to the samples of the batch at a position."""
    started = time.process_time()
    Draws(blend(), batch=BATCH, end=position + BATCH, done_steps=1, done=position)(2)
    return time.process_time() - started


def seeks(turns: int) -> dict[int, list[float]]:
    """Seconds of each position, turn by turn."""
    found: dict[int, list[float]] = {p: [] for p in POSITIONS}
    for turn in range(turns + 1):
        for position in POSITIONS:
            seconds = seek_s(position)
            if turn:  # numpy loads in the first
                found[position].append(seconds)
    return found


def seek_memory_kb(position: int) -> float:
    """The most memory that a seek takes."""
    tracemalloc.start()
    seek_s(position)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 1e3


def opened(folder: Path, order: GlobalOrder, *, batch: int, end: int) -> Ledger:
    """A new ledger that has started."""
    header = order.facts() | {"phase": "benchmark", "order_batch": batch, "end": end}
    ledger = Ledger.open(Path(tempfile.mkdtemp(dir=folder)) / "ledger.jsonl", header)
    ledger.start(step=0, position=0, restart=0, ranks=1, nodes=1, hosts=["here"], job=None, zero_stage=1, batch=batch)
    return ledger


def steps_s(folder: Path, way: str, *, steps: int, work_s: float) -> tuple[float, float]:
    """(wall, CPU) seconds of `steps` steps of arithmetic that takes `work_s` of CPU each, recorded in some way."""
    import torch

    torch.set_num_threads(1)
    square = torch.randn(256, 256)
    order = blend(1e-3)
    ledger = opened(folder, order, batch=BATCH, end=steps * BATCH)
    draws = Draws(order, batch=BATCH, end=steps * BATCH)
    drawn = [draws(step) for step in range(1, steps + 1)]  # in training a thread makes them ahead
    ledger.mark()
    started, used = time.perf_counter(), time.process_time()
    for draw in drawn:
        until = time.thread_time() + work_s  # of this thread: the ledger's may run beside it
        while time.thread_time() < until:
            square @ square
        if way != "none":
            ledger.step(draw, samples=draw.samples, loss=1.0, norm=1.0, rate=1e-3)
        if way == "waiting":
            ledger.mark()
    found = time.perf_counter() - started, time.process_time() - used
    ledger.close()
    return found


def call_us(folder: Path, steps: int) -> float:
    """Microseconds that the loop itself spends in `Ledger.step`, with the queue never full."""
    order = blend(1e-3)
    ledger = opened(folder, order, batch=BATCH, end=steps * BATCH)
    draws = Draws(order, batch=BATCH, end=steps * BATCH)
    spent = []
    for step in range(1, steps + 1):
        draw = draws(step)
        started = time.perf_counter()
        ledger.step(draw, samples=draw.samples, loss=1.0, norm=1.0, rate=1e-3)
        spent.append(time.perf_counter() - started)
    ledger.close()
    return 1e6 * median(spent)


def records_per_s(folder: Path, *, batch: int, steps: int, wait: bool) -> float:
    """Steps recorded in a second, each on the disk: in pieces as they pile up, or one by one."""
    order = blend(1e-3)
    ledger = opened(folder, order, batch=batch, end=steps * batch)
    draws = Draws(order, batch=batch, end=steps * batch)
    drawn = [draws(step) for step in range(1, steps + 1)]
    started = time.perf_counter()
    for draw in drawn:
        ledger.step(draw, samples=draw.samples, loss=1.0, norm=1.0, rate=1e-3)
        if wait:
            ledger.mark()
    ledger.close()
    return steps / (time.perf_counter() - started)


def verify_s(folder: Path, *, batch: int, samples: int, turns: int) -> tuple[list[float], float]:
    """(CPU seconds of each verification of a ledger of `samples` samples, its bytes a step)."""
    order = blend(0.3 * samples / sum(ROWS.values()))  # three epochs and a bit
    ledger = opened(folder, order, batch=batch, end=samples)
    draws = Draws(order, batch=batch, end=samples)
    for step in range(1, draws.steps + 1):
        draw = draws(step)
        ledger.step(draw, samples=draw.samples, loss=1.0, norm=1.0, rate=1e-3)
    ledger.event("end", step=draws.steps)
    ledger.close()
    found = []
    for _ in range(turns):
        started = time.process_time()
        assert verify(ledger.path).complete == 3
        found.append(time.process_time() - started)
    return found, ledger.path.stat().st_size / draws.steps


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Median (lower to upper quartile)."""
    low, middle, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return f"{show(middle)} ({show(low)}-{show(high)})"


def main() -> None:
    """Measure, print; write the page unless quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, nothing is written")
    parser.add_argument("--out", type=Path, default=RESULTS / "cursor_seek.md")
    parser.add_argument(
        "--disk", type=Path, help="a folder on the disk to measure; the system's temporary one if unset"
    )
    args = parser.parse_args()
    load = os.getloadavg()[0]
    turns, steps, samples = (5, 50, 50_000) if args.quick else (200, 1000, 1_000_000)
    seconds = seeks(turns)
    seek_rows = [
        (
            f"{p:,}", spread(seconds[p], lambda s: f"{1e3 * s:.2f}"),
            spread([a / b for a, b in zip(seconds[p], seconds[0], strict=True)], lambda r: f"{r:.2f}"),
            f"{seek_memory_kb(p):,.0f}",
        )
        for p in POSITIONS
    ]  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.disk) as name:
        folder = Path(name)
        ways = ("none", "thread", "waiting")
        rounds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(2 if args.quick else 9):
            for way in ways:
                rounds[way].append(steps_s(folder, way, steps=steps // 5, work_s=0.01))
        both = {w: list(zip(rounds[w], rounds["none"], strict=True)) for w in ways[1:]}
        ratios = {w: [a[0] / b[0] for a, b in both[w]] for w in both}
        cpu_us = [1e6 * (a[1] - b[1]) / (steps // 5) for a, b in both["thread"]]
        ledger_rows = [
            ("loop's own time in `Ledger.step`, µs", f"{call_us(folder, steps // 2):.0f}"),
            ("CPU time of a recorded step, thread and loop, µs", spread(cpu_us, lambda us: f"{us:.0f}")),
            ("a step of 10 ms, synced by the thread / no ledger", spread(ratios["thread"], lambda r: f"{r:.3f}")),
            ("a step of 10 ms, waiting for the disk / no ledger", spread(ratios["waiting"], lambda r: f"{r:.3f}")),
            (
                "steps recorded a second, piled up",
                f"{records_per_s(folder, batch=64, steps=5 * steps, wait=False):,.0f}",
            ),
            ("steps recorded a second, one by one", f"{records_per_s(folder, batch=64, steps=steps, wait=True):,.0f}"),
        ]
        verify_rows = []
        for batch in (64, 1024):
            took, size = verify_s(folder, batch=batch, samples=samples, turns=1 if args.quick else 3)
            each = [s * 1e6 / samples for s in took]
            verify_rows.append((batch, spread(each, lambda s: f"{s:.1f}"), f"{size:,.0f}"))
    seek_table = table(
        (f"position of {sum(ROWS.values()):,}", "seek, CPU ms", "ratio to 0", "peak memory, KB"), seek_rows
    )
    ledger_table = table(("ledger", "measured"), ledger_rows)
    verify_table = table(("batch", "verification, CPU s for a million samples", "bytes a step"), verify_rows)
    print("\n\n".join((seek_table, ledger_table, verify_table)))
    if not args.quick:
        lines = machine_lines(threads=1, load_before=load, packages=versions(sys.executable, ["numpy", "torch"]))
        args.out.write_text(page(lines, seek_table, ledger_table, verify_table), encoding="utf-8")


def page(machine: list[str], seek_table: str, ledger_table: str, verify_table: str) -> str:
    """The page of results."""
    return "\n\n".join(
        [
            "# What resuming and proving cost",
            *machine,
            "## Seek",
            f"From nothing to the {BATCH:,} samples of the batch at a position of a blend of three sources. Median "
            "(quartiles) over 200 turns; ratios within a turn. No index is held or read: the position does not count.",
            seek_table,
            "## Ledger",
            "One line a step, written and synced (fdatasync) by a thread. Ratios are of wall time over 200 steps of "
            "arithmetic in one thread, 9 rounds in turns; with every core busy the thread's own work shows in them.",
            ledger_table,
            "## Verification",
            "The whole proof: the seals, every sample drawn anew, hashed, compared and counted, over three epochs and "
            "a third. Median (quartiles) of three.",
            verify_table,
            "",
        ]
    )


if __name__ == "__main__":
    main()
