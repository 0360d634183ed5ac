"""What a checkpoint costs: how long training is held up, when it is safe, and how long finding and reading it takes.

`python benchmarks/checkpoint_cost.py` saves the state of 500 million parameters (fp32 weights and two moments) from one
process and of 200 million from two, and writes results/checkpoint_cost.md; `--quick` saves small ones, prints, and
writes nothing unless `--out` says where. `--device cuda` keeps the state on the GPU, as training there does.

Both sides run in the same processes and take turns: `background` copies the state to host memory and lets a thread
write, `waiting` holds training up until everything is on the disk, read back and named. Nothing else runs meanwhile;
what a save takes from training next to it is not measured here. Before the checkpoint is loaded, its files are dropped
from memory. What was read is compared with what was saved, bit for bit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from _facts import RESULTS, machine_lines, table, versions

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

KINDS = ("weight", "exp_avg", "exp_avg_sq")
ROW, PER_PIECE = 4096, 4096 * 4096
SETUPS = ((1, 500_000_000), (2, 200_000_000))
QUICK_SETUPS = ((1, 2_000_000), (2, 2_000_000))
ROUNDS, QUICK_ROUNDS = 3, 2


def state(parameters: int, rank: int, ranks: int, device: str) -> list[Any]:
    """This rank's pieces of matrices with 4096 columns, an equal part of each."""
    import torch

    from train.history.pieces import Piece

    draw = torch.Generator(device).manual_seed(rank)
    pieces, left, number = [], parameters // ROW * ROW, 0
    while left:
        size = min(left, PER_PIECE)
        first, end = (size * r // ranks for r in (rank, rank + 1))
        tensors = {kind: torch.rand(end - first, device=device, generator=draw) for kind in KINDS}
        pieces.append(Piece(f"layers.{number}.weight", (size // ROW, ROW), first, tensors))
        left, number = left - size, number + 1
    return pieces


def high_water_gb(*, reset: bool = False) -> float:
    """The largest resident set since the last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (held,) = (int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("VmHWM:"))
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return held


def forget(folder: Path) -> None:
    """Drop the files in a folder from memory, so that the next reader meets the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(parameters: int, rank: int, ranks: int, device: str, rounds: int, base: Path) -> dict[str, Any]:
    """All saves and a load, in this process; the ranks start each of them together."""
    import torch
    import torch.distributed as dist

    from train.agree import exchange
    from train.history.checkpoint import find
    from train.history.saver import Saver

    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{base}/meet", rank=rank, world_size=ranks)
    pieces = state(parameters, rank, ranks, device)
    sizes: list[int] = []
    options: dict[str, Any] = {"rank": rank, "ranks": ranks, "keep": 1, "committed": lambda _, size: sizes.append(size)}
    sides = {side: Saver(base / side, background=side == "background", **options) for side in ("background", "waiting")}
    told: dict[str, Any] = {"rank": rank, "background": [], "waiting": [], "gb": {}}
    for step in range(1, rounds + 2):
        for side, saver in sides.items():
            exchange(None)
            high_water_gb(reset=True)
            before_gb, started = high_water_gb(), time.perf_counter()
            held_up_s = saver.save(step, pieces, {}, {})
            saver.wait()
            told[side].append([held_up_s, time.perf_counter() - started])
            told["gb"].setdefault(side, high_water_gb() - before_gb)
            if (failure := saver.failure()) is not None:
                raise failure
    exchange(None)
    place = base / "background"
    forget(place)
    started = time.perf_counter()
    checkpoint = find(place, rank=rank, ranks=ranks, exchange=exchange, expected=rounds + 1).checkpoint
    assert checkpoint is not None
    told["verify_s"] = time.perf_counter() - started
    read_s = 0.0
    for piece in pieces:
        for kind, tensor in piece.tensors.items():
            started = time.perf_counter()
            read = checkpoint.read(piece.name, kind, piece.start, piece.start + len(tensor)).to(device)
            read_s += time.perf_counter() - started
            if not torch.equal(read, tensor):
                raise RuntimeError(f"{kind} of {piece.name} came back with other values")
    return told | {"read_s": read_s, "bytes": sizes[-1] if sizes else 0}


def run(parameters: int, ranks: int, device: str, rounds: int, folder: Path | None) -> dict[str, Any]:
    """One setup in processes of its own; seconds of the slowest rank."""
    with tempfile.TemporaryDirectory(dir=folder, prefix="checkpoint_cost.") as base:
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--rank", *map(str, (rank, ranks, parameters, rounds)), device, base],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            for rank in range(ranks)
        ]
        answers = [process.communicate()[0] for process in started]
        if any(process.returncode for process in started):
            raise RuntimeError(f"a rank failed: exit codes {[process.returncode for process in started]}")
    told = [json.loads(answer.splitlines()[-1]) for answer in answers]
    found: dict[str, Any] = {"ranks": ranks, "parameters": parameters // ROW * ROW, "bytes": told[0]["bytes"]}
    for side in ("background", "waiting"):
        each = [
            [max(times) for times in zip(*saves, strict=True)] for saves in zip(*(t[side] for t in told), strict=True)
        ]
        found[side] = {"held_up_s": [s[0] for s in each], "safe_s": [s[1] for s in each]}
        found[side]["gb"] = sum(t["gb"][side] for t in told)
    return found | {key: max(t[key] for t in told) for key in ("verify_s", "read_s")}


def _span(values: list[float], form: str = ".2f") -> str:
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


def page(found: list[dict[str, Any]], lines: list[str], device: str) -> str:
    """The tables as Markdown."""
    saves, loads = [], []
    for setup in found:
        who = (f"{setup['parameters'] / 1e6:,.0f} M", setup["ranks"])
        back, wait = setup["background"], setup["waiting"]
        ratios = [w / b for w, b in zip(wait["held_up_s"][1:], back["held_up_s"][1:], strict=True)]
        for side, told, ratio in (("background", back, _span(ratios, ".1f")), ("waiting", wait, "1")):
            later, safe = told["held_up_s"][1:], told["safe_s"][1:]
            saves.append(
                [*who, side, f"{told['held_up_s'][0]:.2f}", _span(later), _span(safe), f"{told['gb']:.2f}", ratio]
            )
        gb, whole = setup["bytes"] / 1e9, setup["verify_s"] + setup["read_s"]
        loads.append(
            [*who, f"{setup['bytes'] / setup['parameters']:.3f}", f"{setup['verify_s']:.2f}", f"{setup['read_s']:.2f}",
             f"{setup['verify_s'] / whole:.0%}", f"{gb / setup['verify_s']:.2f}", f"{gb / setup['read_s']:.2f}"]
        )  # fmt: skip
    where = "GPU" if device == "cuda" else "CPU"
    saves_head = ("parameters", "processes", "side", "held up, first, s", "held up, later, s", "until safe, s")
    saves_head += ("host memory, GB", "held up: waiting / side")
    loads_head = ("parameters", "processes", "bytes a parameter", "verify, s", "read, s", "verify's share")
    loads_head += ("verify, GB/s", "read, GB/s")
    return f"""# What a checkpoint costs

{chr(10).join(f"- {line}" for line in lines)}

State on the {where}: fp32 weights and two moments. `background` copies the state and lets a thread write; `waiting`
holds training up until the checkpoint is on the disk, read back and named. The sides took turns in the same processes,
with nothing beside them; seconds are those of the slowest rank, medians (and spans) of the saves after the first. In
the first save `background` also gets its memory. The ratio is formed in each round.

{table(saves_head, saves)}

Loading from the disk: `find` verifies every checksum (the processes share the files); then each process reads its part
by single parameters, from memory as far as verifying left the files there. What was read equals what was saved, bit for
bit.

{table(loads_head, loads)}
"""


def main() -> None:
    """Measure, print, and write the page unless quick."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small states; nothing is written without --out")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the state lies")
    parser.add_argument("--parameters", type=int, help="of the single process, instead of 500 million")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: the temporary folder")
    parser.add_argument("--out", type=Path, help="the page, with its numbers beside it as .json")
    parser.add_argument("--rank", nargs=6, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.rank:
        rank, ranks, parameters, rounds = map(int, asked.rank[:4])
        device, base = asked.rank[4], Path(asked.rank[5])
        print(json.dumps(measure(parameters, rank, ranks, device, rounds, base)))
        return
    load_before = os.getloadavg()[0]
    setups = QUICK_SETUPS if asked.quick else SETUPS
    if asked.parameters:
        setups = ((1, asked.parameters), setups[1])
    if asked.device == "cuda":
        setups = setups[:1]  # two processes on one GPU are no machine that anybody trains on
    found = []
    for ranks, parameters in setups:
        found.append(run(parameters, ranks, asked.device, QUICK_ROUNDS if asked.quick else ROUNDS, asked.folder))
        told = found[-1]
        held = [median(told[side]["held_up_s"][1:]) for side in ("background", "waiting")]
        print(
            f"{ranks} process(es), {parameters / 1e6:,.0f} M: held up {held[0]:.2f} s and {held[1]:.2f} s", flush=True
        )
        assert math.isclose(told["bytes"] / told["parameters"], 12, rel_tol=0.02)
    lines = machine_lines(
        threads=1, load_before=load_before, packages=versions(sys.executable, ("torch", "safetensors"))
    )
    text = page(found, lines, asked.device)
    print(text)
    suffix = "_cuda" if asked.device == "cuda" else ""
    out = asked.out or (None if asked.quick else RESULTS / f"checkpoint_cost{suffix}.md")
    if out is not None:
        out.write_text(text, encoding="utf-8")
        out.with_suffix(".json").write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
