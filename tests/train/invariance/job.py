"""What every rank of a process group runs for the invariance suite, one thing after another.

Run on each rank as `job.py FOLDER OUT [NAME]`, by forks.py or `python -m torch.distributed.run`; FOLDER holds what
`suite.py` makes, NAME is a part of the name of what is to be run. Rank 0 writes `NAME.safetensors` (gradients) and
`facts.json` (everything else) into OUT.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch.distributed as dist
from invariance.case_run import run_case
from invariance.cases import Case, all_cases
from invariance.plan import FINETUNED, PRETRAINED, SMALL_BUCKET, bucket_cases, lopsided_cases, mutated
from invariance.runs import detached, lopsided, small_pretraining, small_training, spreads_nan, wrong_scale

from data_prep.files import write_json
from train.engine import start_ranks, stop_ranks

Run = Callable[[], dict[str, Any]]


def runs(ranks: int, folder: Path, out: Path) -> dict[str, Run]:
    """Name → what is to be run on so many ranks."""
    found: dict[str, Run] = {}

    def add(name: str, run: Callable[..., dict[str, Any]], *args: Any, **more: Any) -> None:
        found[name] = lambda: run(*args, **more)

    def patched(target: str, replacement: Any, case: Case, path: Path) -> dict[str, Any]:
        with mock.patch(target, replacement):
            return run_case(case, folder, path)

    for case in all_cases():
        if case.world == ranks:
            add(f"case-{case.number}", run_case, case, folder, out / f"case-{case.number}.safetensors")
    if ranks == 2:
        for case in mutated():
            for name, wrong in (("scale", wrong_scale), ("detached", detached)):
                name = f"{name}-{case.number}"
                add(name, patched, "train.gradcache.sum_gradients", wrong, case, out / f"{name}.safetensors")
        for name, case in bucket_cases().items():
            add(name, run_case, case, folder, out / f"{name}.safetensors", reduce_bucket_size=SMALL_BUCKET)
    if ranks == 3:
        for case in lopsided_cases():
            name = f"lopsided-{case.number}"
            add(name, patched, "train.pair_stream.deal", lopsided, case, out / f"{name}.safetensors")
        add("nan", spreads_nan, folder)
    for stage in PRETRAINED.get(ranks, ()):
        add(f"pretrain-zero{stage}", small_pretraining, folder, out / f"pretrain-zero{stage}", stage)
    for stage in FINETUNED.get(ranks, ()):
        add(f"finetune-zero{stage}", small_training, folder, out / f"finetune-zero{stage}", stage)
    return found


def main(folder: Path, out: Path, only: str) -> None:
    _, ranks = start_ranks()
    facts: dict[str, Any] = {}
    for name, run in runs(ranks, folder, out).items():
        if only in name:
            print("running", name, flush=True)
            started = time.perf_counter()
            facts[name] = run() | {"seconds": round(time.perf_counter() - started, 2)}
    if dist.get_rank() == 0:
        write_json(out / "facts.json", facts)
    stop_ranks()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else "")
