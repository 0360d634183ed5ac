"""When to stop, and which steps not to take: signals, a time limit, and numbers that are not finite or jump.

Invariant: judging depends only on what all ranks know alike (the loss and the gradient norm of the global batch), and
its state survives JSON bit for bit: every rank decides the same, and a resumed run decides as one that never stopped.
Signal handlers only set a flag; the loop looks at it between steps, where nothing is half done.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from types import FrameType
from typing import Annotated, Any

from pydantic import Field

from data_prep.config import Section

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Diverged(Exception):
    """Training gave up: the numbers stayed bad after every rewind that [guard] allows."""


class StopRequest:
    """Whether somebody wants this process to save and end.

    Args:
        deadline: seconds since the epoch by which everything must be saved and the process may end (the end of its
            time slot, less a margin for leaving); may be set later. None: no limit. The loop keeps in hand what a step
            and a save take (train/pace.py).
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline
        self._signal: str | None = None

    def install(self) -> None:
        """Catch SIGTERM, SIGUSR1 and SIGUSR2. Do it first of all: until then they end the process.

        Who starts ranks may block these signals for them: what came before this call then arrives now. Outside the
        main thread Python cannot catch signals; then only the deadline counts.
        """
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._note)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number).name

    @property
    def signal(self) -> str | None:
        """The first signal that asked for it, None where none has."""
        return self._signal

    def reason(self) -> str | None:
        """Why to stop ("SIGUSR1", "time limit"), the first signal first; None: go on. Costs no system call but one."""
        if self._signal is not None:
            return self._signal
        if self.deadline is not None and time.time() >= self.deadline:
            return "time limit"
        return None


class GuardConfig(Section):
    """[guard]: steps that would spoil the weights are skipped, and a run that keeps producing them goes back."""

    bad_steps: Annotated[int, Field(gt=0)] = 3
    """Skipped steps in a row before the run goes back to its last checkpoint; fewer may be a few broken samples."""
    rewinds: Annotated[int, Field(ge=0)] = 3
    """Times that a phase may go back before it gives up: what fails again after other samples is not the samples."""
    spike_z: Annotated[float, Field(gt=0)] | None = None
    """Skip a step whose loss lies this many standard deviations above the recent mean; unset: only what is not finite,
    because a good value depends on the data (try 6)."""
    spike_window: Annotated[int, Field(ge=10)] = 100
    """Accepted losses that mean and deviation are taken from; nothing is a spike before there are so many."""


class StepJudge:
    """Judges every step; keep one on each rank and give all the same numbers.

    A step is `judge_loss`, then, where that found nothing, `judge_norm`, then `record` with the reason found (or None).

    Attributes:
        rewinds: how often the phase went back so far. A loop that finds more of them written down sets it.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._accepted: deque[float] = deque(maxlen=config.spike_window)
        self._bad_in_a_row = 0
        self._loss = math.nan
        self.rewinds = 0

    def judge_loss(self, loss: float) -> str | None:
        """Why a step of this loss (mean of the global batch) must be skipped, or None."""
        self._loss = loss
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        z, window = self._config.spike_z, self._accepted
        if z is None or len(window) < self._config.spike_window:
            return None
        mean = math.fsum(window) / len(window)  # anew each time: a running sum would drift, and differ after a resume
        deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in window) / (len(window) - 1))
        if loss - mean <= z * deviation:
            return None
        return (
            f"the loss is {loss:.4g}, more than {z:g} standard deviations ({deviation:.2g}) above {mean:.4g}, "
            f"the mean of the last {len(window)}"
        )

    def judge_norm(self, norm: float | None) -> str | None:
        """Why a step of this global gradient norm must be skipped, or None; a norm of None is not known."""
        return None if norm is None or math.isfinite(norm) else f"the gradient norm is {norm}"

    def record(self, skipped: str | None) -> bool:
        """Note how the step ended. True: go back to the last checkpoint now.

        Raises:
            Diverged: going back is due, and has been done as often as [guard] allows.
        """
        if skipped is None:
            self._bad_in_a_row = 0
            self._accepted.append(self._loss)
            return False
        self._bad_in_a_row += 1
        if self._bad_in_a_row < self._config.bad_steps:
            return False
        if self.rewinds >= self._config.rewinds:
            raise Diverged(
                f"training diverged: {self._bad_in_a_row} steps in a row were skipped (last: {skipped}) after "
                f"{self.rewinds} rewinds, which is all that guard.rewinds allows. Fix: lower the learning rate, "
                "lengthen the warm-up, or look at the samples of these steps in the ledger"
            )
        self.rewinds += 1
        self._bad_in_a_row = 0
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold, as JSON values."""
        return {"accepted": list(self._accepted), "bad_in_a_row": self._bad_in_a_row, "rewinds": self.rewinds}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`. Rewinds are never forgotten: of both counts the higher one stays."""
        self._accepted = deque(state["accepted"], maxlen=self._config.spike_window)
        self._bad_in_a_row = int(state["bad_in_a_row"])
        self.rewinds = max(self.rewinds, int(state["rewinds"]))
