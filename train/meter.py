"""One meter for training and encoding: what a step did, at what rate, and what the whole came to.

Only sums over the global batch enter as work: every rank calls the meter with the same work, and rank 0's telemetry
writes it down. Times and memory are those of the process that writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from train.flops import CONVENTION, Flops, Work, peak_flops
from train.telemetry import Telemetry, library_versions, peak_memory_gb, peak_rss_gb

if TYPE_CHECKING:
    from train.phase import PhaseConfig


class Meter:
    """Counts steps from its creation on.

    Args:
        telemetry: where step records go; None keeps them nowhere.
        startup_s: seconds from the phase's start until now, for the summary.
        flops: operations of the network; None where they are not known, and then no MFU is claimed.
        device: where the network runs. ranks: processes that share the work. precision: `bf16` or `fp32`.
        training: whether steps have a backward pass.
    """

    def __init__(
        self,
        telemetry: Telemetry | None,
        *,
        startup_s: float = 0.0,
        flops: Flops | None = None,
        device: Any = "cpu",
        ranks: int = 1,
        precision: str = "fp32",
        training: bool = True,
    ) -> None:
        self._telemetry, self._startup_s = telemetry, startup_s
        self._flops, self._device, self._ranks, self._training = flops, device, ranks, training
        self._peak = device_peak(device, precision) if flops else None
        self._steps = 0
        self._first_loss: float | None = None
        self._last_loss: float | None = None
        self._work = Work()
        self._pauses: dict[str, float] = {}
        self._elapsed_before_s = 0.0
        self._parts: dict[str, float] = {}
        self._all_parts: dict[str, float] = {}
        self._steps_s = 0.0
        self._started = self._step_started = time.perf_counter()

    def begin_step(self) -> None:
        """Start the clock of a step."""
        self._parts = {}
        self._step_started = time.perf_counter()

    def add(self, name: str, seconds: float) -> None:
        """Count seconds of the running step under a name; the record holds them as a share of the step."""
        self._parts[name] = self._parts.get(name, 0.0) + seconds

    @contextmanager
    def timing(self, name: str) -> Iterator[None]:
        """Count the block's seconds under a name. On CUDA that is the time until the work is queued, not done."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - before)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for data: `data_wait`."""
        with self.timing("data_wait"):
            yield

    @contextmanager
    def gathering(self) -> Iterator[None]:
        """The block exchanges embeddings between ranks: `gather`. A slower rank is waited for in here."""
        with self.timing("gather"):
            yield

    def end_step(
        self,
        *,
        loss: float | None = None,
        rate: float | None = None,
        norm: float | None = None,
        work: Work,
        **more: Any,
    ) -> dict[str, Any]:
        """Record a step of the global batch, and return the record. What is written has `time` too, in epoch seconds.

        Args:
            loss: the global mean. rate: the learning rate used. norm: of the global gradient before clipping.
            work: of all ranks together. more: further values for the record.
        """
        now = time.perf_counter()
        step_s = now - self._step_started
        self._steps_s += step_s
        self._work += work
        for name, seconds in self._parts.items():
            self._all_parts[name] = self._all_parts.get(name, 0.0) + seconds
        head: dict[str, Any] = {}
        if loss is not None:
            self._steps += 1
            # JSON has no number for what is not finite
            loss, norm = _finite(loss), _finite(norm)
            self._first_loss = loss if self._steps == 1 else self._first_loss
            self._last_loss = loss
            head = {"step": self._steps, "loss": loss, "lr": rate, "grad_norm": norm}
        record = {
            **head,
            **more,
            "tokens": work.tokens,
            "sequences": work.sequences,
            "pairs": work.pairs,
            "step_s": step_s,
            "elapsed_s": self._elapsed_before_s + now - self._started,
            **self._rates(work, step_s, self._parts),
            "peak_memory_gb": peak_memory_gb(self._device),
        }
        if self._telemetry is not None:
            self._telemetry.log(record)
        return record

    def _rates(self, work: Work, seconds: float, parts: Mapping[str, float]) -> dict[str, float]:
        """Rates, shares and, where the device is known, the use of its peak."""
        seconds = max(seconds, 1e-9)
        found = {"tokens_per_s": work.tokens / seconds, "sequences_per_s": work.sequences / seconds}
        if work.pairs:
            found["pairs_per_s"] = work.pairs / seconds
        if work.computed_tokens:
            found["padding"] = 1 - work.tokens / work.computed_tokens
        found |= {name: value / seconds for name, value in parts.items()}
        if self._flops is not None and self._peak is not None:
            best = seconds * self._ranks * self._peak
            found["trunk_mfu"] = self._flops.model(work, training=self._training) / best
            found["hfu"] = self._flops.hardware(work, training=self._training) / best
        return found

    @property
    def elapsed_s(self) -> float:
        """Seconds of this meter and of those whose state it took over."""
        return self._elapsed_before_s + time.perf_counter() - self._started

    def pause(self, name: str, seconds: float) -> None:
        """Count seconds between two steps, such as those that a checkpoint blocks, under a name."""
        self._pauses[name] = self._pauses.get(name, 0.0) + seconds

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold for another meter to go on counting, as JSON values."""
        return {
            "steps": self._steps,
            "first_loss": self._first_loss,
            "last_loss": self._last_loss,
            "work": list(self._work.values()),
            "parts": self._all_parts,
            "pauses": self._pauses,
            "steps_s": self._steps_s,
            "elapsed_s": self.elapsed_s,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on counting from the state of another meter; the time between the two counts for neither."""
        self._steps = state["steps"]
        self._first_loss, self._last_loss = state["first_loss"], state["last_loss"]
        self._work = Work(*state["work"])
        self._all_parts, self._pauses = dict(state["parts"]), dict(state["pauses"])
        self._steps_s, self._elapsed_before_s = state["steps_s"], state["elapsed_s"]
        self._started = time.perf_counter()

    def totals(self) -> dict[str, Any]:
        """Work, rates and shares over all steps so far; `steps_s` are the seconds inside steps."""
        found: dict[str, Any] = {
            "tokens": self._work.tokens,
            "sequences": self._work.sequences,
            "pairs": self._work.pairs,
            "steps_s": self._steps_s,
            **self._rates(self._work, self._steps_s, self._all_parts),
            "peak_memory_gb": peak_memory_gb(self._device),
            "peak_rss_gb": peak_rss_gb(),
        }
        if self._flops is not None:
            found["trunk_flops"] = self._flops.model(self._work, training=self._training)
            found["flops_convention"] = CONVENTION
        return found

    def summary(
        self,
        phase: str,
        config: PhaseConfig,
        *,
        ranks: int,
        device: Any,
        sizes: Mapping[str, int],
        train_s: float,
        save_s: float,
        **more: Any,
    ) -> dict[str, Any]:
        """What summary.json says of the phase, over all its starts.

        Args:
            sizes: the parameter counts. train_s: up to the last validation; `train_here_s` is this start's part of it.
            more: what the phase adds.
        """
        return {
            "phase": phase,
            "steps": self._steps,
            "world_size": ranks,
            "zero_stage": config.zero_stage,
            **sizes,
            "startup_s": self._startup_s,
            "train_s": train_s,
            "train_here_s": train_s - self._elapsed_before_s,
            "save_s": save_s,
            **self.totals(),
            **{f"{name}_s": seconds for name, seconds in self._pauses.items()},
            **{f"{name}_share": seconds / max(train_s, 1e-9) for name, seconds in self._pauses.items()},
            "loss_first": self._first_loss,
            "loss_last": self._last_loss,
            "device": device_name(device),
            "precision": config.precision,
            "versions": library_versions(),
            **more,
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def device_name(device: Any) -> str:
    """The name of a CUDA device as its driver gives it, else the device's type."""
    import torch

    device = torch.device(device)
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def device_peak(device: Any, precision: str) -> float | None:
    """Dense peak of a device in operations per second, None where it is not known (as for every CPU)."""
    import torch

    if torch.device(device).type != "cuda":
        return None
    return peak_flops(device_name(device), precision, tf32=torch.get_float32_matmul_precision() != "highest")
