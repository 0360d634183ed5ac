"""Starts the process groups of the suite, one for each world size, and compares what they found with the reference."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from invariance.cases import Case

from data_prep.files import read_json

TOLERANCE = 1e-5
"""Of the loss, relatively; and of every parameter's gradient, norm of the difference over norm of the reference."""
NO_INFLUENCE = 1e-12
"""A parameter whose gradient in float64 is a smaller share of the whole gradient is one that the loss does not depend on:
the bias of keys in BERT, which moves all scores of a query alike. Its gradient is compared with zero, as a share of the
whole gradient."""
TRAIN_TESTS = Path(__file__).resolve().parent.parent


def prepare(folder: Path) -> Path:
    """What the jobs read: pair and token shards, a tokenizer, and the models of the cases."""
    from invariance.models import make_models
    from invariance.shards import make_many_pairs, make_token_rows, make_watched_set
    from tiny import make_world

    make_world(folder)
    make_models(folder / "models", folder / "tokenizer")
    make_token_rows(folder / "token_rows")
    make_many_pairs(folder / "many_pairs")
    make_watched_set(folder / "watched")
    return folder


def run_world(
    folder: Path, out: Path, *, world: int, device: str = "cpu", only: str = "", forks: Any = None
) -> dict[str, Any]:
    """Run everything that is to be run on so many ranks. Returns the facts that rank 0 wrote; files are in `out`.

    Args:
        device: `cpu` runs over gloo even where there are GPUs; `cuda` over NCCL, one rank a GPU.
        only: part of the name of what is to be run; empty runs all.
        forks: what starts the ranks (forks.py), on CPUs alone; None: torch.distributed.run, with imports of their own.
    """
    out.mkdir(parents=True, exist_ok=True)
    job = TRAIN_TESTS / "invariance" / "job.py"
    if forks is not None and device == "cpu":
        started = time.perf_counter()
        forks.run(job, folder, out, only, ranks=world, log=out / "log")
        return {**read_json(out / "facts.json"), "seconds": time.perf_counter() - started}
    environment = {k: v for k, v in os.environ.items() if k != "DS_ACCELERATOR"} | {
        "PYTHONPATH": os.pathsep.join([str(TRAIN_TESTS.parents[1]), str(TRAIN_TESTS)]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
    }
    if device == "cpu":
        environment |= {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    started = time.perf_counter()
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world),
            str(job), str(folder), str(out), only,
        ],
        capture_output=True,
        text=True,
        env=environment,
        timeout=560,
    )  # fmt: skip
    if done.returncode:
        raise AssertionError(f"{world} ranks failed\n{done.stdout[-1500:]}\n{done.stderr[-4000:]}")
    facts: dict[str, Any] = read_json(out / "facts.json")
    return facts | {"seconds": time.perf_counter() - started}


@dataclass(frozen=True)
class Errors:
    """How far a case is from the reference.

    Attributes:
        loss: relative error. gradients: of each parameter. worst: the largest of them.
    """

    loss: float
    gradients: dict[str, float]

    @property
    def worst(self) -> float:
        return max(self.gradients.values())


def compare(loss: float, gradients: Mapping[str, Any], wanted: Mapping[str, Any]) -> Errors:
    """Errors of a loss and of gradients (fp32 tensors) against a reference (float64 tensors)."""
    import torch

    names = set(wanted) - {"loss"}
    if set(gradients) != names:
        raise AssertionError(f"other parameters than the reference: {sorted(set(gradients) ^ names)}")
    whole = float(torch.stack([wanted[n].norm() for n in names]).norm())
    found = {}
    for name in sorted(names):
        size = float(wanted[name].norm())
        difference = float((gradients[name].double() - wanted[name]).norm())
        found[name] = difference / (size if size > NO_INFLUENCE * whole else whole)
    return Errors(abs(loss / float(wanted["loss"]) - 1), found)


class Suite:
    """Runs of one test session, each made when it is first asked for."""

    def __init__(self, folder: Path, forks: Any = None) -> None:
        self._folder, self._forks = folder, forks
        self._inputs: Path | None = None
        self._worlds: dict[tuple[int, str], dict[str, Any]] = {}
        self.reference = cache(self._reference)

    @property
    def inputs(self) -> Path:
        """The folder that `prepare` makes."""
        if self._inputs is None:
            self._inputs = prepare(self._folder / "inputs")
        return self._inputs

    def out(self, world: int, device: str = "cpu") -> Path:
        """Where the files of a world are."""
        return self._folder / f"{device}-{world}"

    def facts(self, world: int, device: str = "cpu") -> dict[str, Any]:
        """What the ranks of a world found."""
        key = (world, device)
        if key not in self._worlds:
            self._worlds[key] = run_world(
                self.inputs, self.out(world, device), world=world, device=device, forks=self._forks
            )
        return self._worlds[key]

    def _reference(self, definition: tuple[tuple[str, str], ...]) -> dict[str, Any]:
        from invariance.reference import reference

        return reference(self.inputs / "models", dict(definition))

    def errors(self, case: Case, *, name: str | None = None, device: str = "cpu") -> Errors:
        """How far a case (or `name`, another run of its settings) is from its reference."""
        from safetensors.torch import load_file

        name = name or f"case-{case.number}"
        facts = self.facts(case.world, device)[name]
        gradients = load_file(self.out(case.world, device) / f"{name}.safetensors")
        return compare(facts["loss"], gradients, self.reference(case.definition))

    def weights_error(self, world: int, stage: int, *, device: str = "cpu") -> dict[str, float]:
        """After the run of 20 steps: |difference| / |weight| of every weight from that of one rank under ZeRO-0."""
        from safetensors.torch import load_file

        self.facts(1, device)
        self.facts(world, device)
        found: dict[str, float] = {}
        for file in ("model.safetensors", "projection.safetensors"):
            one, other = (
                load_file(self.out(ranks, device) / f"finetune-zero{zero}" / "model" / file)
                for ranks, zero in ((1, 0), (world, stage))
            )
            if set(one) != set(other):
                raise AssertionError(f"other weights: {sorted(set(one) ^ set(other))}")
            found |= {name: float((other[name] - weight).norm() / weight.norm()) for name, weight in one.items()}
        return found
