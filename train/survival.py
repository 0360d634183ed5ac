"""What a training phase is given so that it survives: where its history lies, how often it saves, who may stop it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from train.guard import GuardConfig, StopRequest
from train.history.checkpoint import CheckpointConfig
from train.history.fence import Fence

if TYPE_CHECKING:
    from train.heartbeat import Heartbeat


class Stopped(Exception):
    """A phase ended early because it was asked to; everything up to `step` is saved.

    Args:
        reason: who asked, e.g. `SIGUSR1` or `time limit`. step: the last step that is saved.
    """

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(f"stopped by {reason} after step {step}; the same command goes on from there")
        self.reason, self.step = reason, step


class Places:
    """Seconds that this process has spent at each place, from its start on.

    Attributes:
        spent_s: by place. What came before the first place is `starting the process`: the interpreter and its imports.
    """

    def __init__(self) -> None:
        import psutil

        self._place, self._since = "starting the process", time.time()
        self.spent_s: dict[str, float] = {self._place: self._since - psutil.Process().create_time()}

    def at(self, place: str) -> None:
        """The process has left its place for this one."""
        now = time.time()
        self.spent_s[self._place] = self.spent_s.get(self._place, 0.0) + now - self._since
        self._place, self._since = place, now


@dataclass(frozen=True, kw_only=True)
class Survival:
    """The surroundings of a phase.

    Attributes:
        history: the folder that outlives crashes; see train/history/.
        stop: signals and time limit. heartbeat: None where nobody watches.
        fence: this start's claim on the history; None where nobody else can have started.
        job: the scheduler's id of this job. inputs: content hashes of what the phase reads, by name, where known.
        places: where the time goes.
    """

    history: Path
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    stop: StopRequest = field(default_factory=StopRequest)
    heartbeat: Heartbeat | None = None
    fence: Fence | None = None
    job: str | None = None
    inputs: dict[str, str] = field(default_factory=dict)
    places: Places = field(default_factory=Places)

    def at(self, place: str, step: int | None = None) -> None:
        """This rank is now at `place`: for the heartbeat, and for the account of where time goes."""
        self.places.at(place)
        if self.heartbeat is not None:
            self.heartbeat.at(place, step)

    def begin(self, place: str) -> None:
        """Begin a part of the start-up together, or stop here where any rank was asked to. A collective.

        Loading takes longer than the grace of many a preemption: a start that is not wanted any more ends between its
        parts, not after its first step. What the time limit allows is the loop's to judge. Raises `Stopped`; nothing
        was changed since the last save.
        """
        from train.agree import exchange
        from train.history.folder import steps_in

        self.at(place)
        asked = [reason for reason in exchange(self.stop.signal) if reason]
        if asked:
            raise Stopped(asked[0], next(iter(steps_in(self.history / "checkpoints")), 0))
