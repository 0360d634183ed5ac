"""One meter for both phases: what a step did, at what rate, and what the phase came to.

Only sums over the global batch enter: every rank calls the meter with the same numbers, and rank 0's telemetry writes
them down.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from train.phase import PhaseConfig
from train.telemetry import Telemetry, library_versions, peak_rss_gb


class Meter:
    """Counts steps from its creation on.

    Args:
        telemetry: where step records go.
        startup_s: seconds from the phase's start until now, for the summary.
    """

    def __init__(self, telemetry: Telemetry, *, startup_s: float) -> None:
        self._telemetry, self._startup_s = telemetry, startup_s
        self._losses: list[float] = []
        self._tokens = self._sequences = 0
        self._started = self._step_started = time.perf_counter()

    def begin_step(self) -> None:
        """Start the clock of a step."""
        self._step_started = time.perf_counter()

    def end_step(
        self, *, loss: float, rate: float, norm: float | None, tokens: int, sequences: int, **more: float
    ) -> None:
        """Record a step of the global batch.

        Args:
            loss: the global mean. rate: the learning rate used. norm: of the global gradient before clipping.
            tokens, sequences: computed by all ranks together. more: further values for the record.
        """
        now = time.perf_counter()
        self._losses.append(loss)
        self._tokens, self._sequences = self._tokens + tokens, self._sequences + sequences
        step_s = now - self._step_started
        self._telemetry.log(
            {
                "step": len(self._losses),
                "loss": loss,
                "lr": rate,
                "grad_norm": norm,
                **more,
                "tokens": tokens,
                "sequences": sequences,
                "step_s": step_s,
                "elapsed_s": now - self._started,
                "tokens_per_s": tokens / step_s,
            }
        )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the meter was made."""
        return time.perf_counter() - self._started

    def summary(
        self, phase: str, config: PhaseConfig, *, ranks: int, device: Any, sizes: Mapping[str, int], **more: Any
    ) -> dict[str, Any]:
        """What summary.json says of the phase; `sizes` are the parameter counts, `more` what the phase adds."""
        return {
            "phase": phase,
            "steps": len(self._losses),
            "world_size": ranks,
            "zero_stage": config.zero_stage,
            **sizes,
            "startup_s": self._startup_s,
            "tokens": self._tokens,
            "sequences": self._sequences,
            "loss_first": self._losses[0],
            "loss_last": self._losses[-1],
            "peak_rss_gb": peak_rss_gb(),
            "device": str(device),
            "precision": config.precision,
            "versions": library_versions(),
            **more,
        }
