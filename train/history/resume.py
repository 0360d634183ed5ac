"""Opening a phase's history: find what is there, go on with it or begin it, and say which.

Invariant: a phase never starts over in silence. Where the ledger vouches for a checkpoint, one must be found and hold;
where none was committed before a crash, the first steps are computed again, with the same samples.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.agree import exchange, on_first_rank, raise_together
from train.gather import world
from train.history.checkpoint import Checkpoint, find
from train.history.fence import Fence, Superseded
from train.history.folder import steps_in, sweep
from train.history.identity import Identity, enter
from train.history.ledger import Ledger

if TYPE_CHECKING:
    from train.cursor import GlobalOrder

_log = logging.getLogger(__name__)
LEDGER = "ledger.jsonl"
CHECKPOINTS = "checkpoints"
_PUT_BACK = "put the file back from a copy; or --fresh keeps this history aside and starts over"


@dataclass
class History:
    """A phase's history, open on all ranks.

    Attributes:
        id: of this history. order_batch: the batch size that fixed the order.
        checkpoint: what to go on from, None at the beginning. ledger: on rank 0 only.
        notes: lines for the user on how this start relates to the history.
        restarts: starts before this one. fence: of this start; None where nobody else can have started.
    """

    folder: Path
    id: str
    order_batch: int
    notes: list[str]
    checkpoint: Checkpoint | None = None
    ledger: Ledger | None = None
    restarts: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    fence: Fence | None = None

    @classmethod
    def enter(cls, folder: Path, identity: Identity, *, fence: Fence | None = None) -> History:
        """Begin a history in `folder`, or check that the one there is of the same thing. A collective."""

        def work() -> tuple[dict[str, Any], list[str]]:
            with disk_errors(folder):
                return enter(folder, identity, fence)

        record, notes = on_first_rank(work)
        return cls(folder, record["history"], record["order_batch"], list(notes), fence=fence)

    @property
    def done_steps(self) -> int:
        """Steps that need not be done again."""
        return self.checkpoint.step if self.checkpoint else 0

    @property
    def done(self) -> int:
        """Positions of the global order that need not be used again."""
        return int(self.facts.get("position", 0))

    def open(self, order: GlobalOrder, *, phase: str, end: int, batch: int, zero_stage: int, job: str | None) -> None:
        """Open the ledger, find the newest checkpoint that holds, and enter this start. A collective.

        Args:
            end: positions of the whole phase. batch: samples of a global batch of this start.

        Raises:
            UserError: no checkpoint holds although one was committed, or ledger and checkpoints disagree.
            Superseded: a newer start has the history.
        """
        rank, ranks = world()
        header = order.facts() | {"phase": phase, "history": self.id, "order_batch": self.order_batch, "end": end}

        def read() -> tuple[int, int, int]:
            if not (self.folder / LEDGER).exists() and steps_in(self.folder / CHECKPOINTS):
                raise UserError(str(self.folder / LEDGER), "is missing, but there are checkpoints beside it", _PUT_BACK)
            with disk_errors(self.folder):
                if self.fence is not None and (self.folder / CHECKPOINTS).is_dir():
                    # first of all: what an older start was about to put in place can not get there any more, so what
                    # is found from here on stays as it is
                    sweep(self.folder / CHECKPOINTS, fence=self.fence)
                self.ledger = Ledger.open(self.folder / LEDGER, header, fence=self.fence)
            return self.ledger.committed or 0, self.ledger.starts, self.ledger.last_step

        committed, self.restarts, computed = on_first_rank(read)
        found = find(
            self.folder / CHECKPOINTS, rank=rank, ranks=ranks, exchange=exchange, expected=committed or None,
            fence=self.fence,
        )  # fmt: skip
        self.checkpoint, self.facts = found.checkpoint, found.checkpoint.facts if found.checkpoint else {}
        raise_together(self._contradiction())
        hosts = exchange(socket.gethostname())
        if self.ledger is not None:
            self.ledger.start(
                step=self.done_steps, position=self.done, restart=self.restarts, ranks=ranks,
                nodes=len(set(hosts)), hosts=sorted(set(hosts)), job=job, zero_stage=zero_stage, batch=batch,
            )  # fmt: skip
        self.notes += found.notes
        if self.restarts:
            processes = f"{ranks} process{'es' if ranks != 1 else ''}"
            line = f"going on after step {self.done_steps} (start {self.restarts + 1}, {processes}, ZeRO {zero_stage})"
            if (again := computed - self.done_steps) > 0:
                line += f"; {again} step{'s are' if again != 1 else ' is'} computed again"
            self.notes.append(line)
        if rank == 0:
            for note in self.notes:
                _log.warning("%s", note)

    def _contradiction(self) -> UserError | None:
        """Where the checkpoint is of another history, or saw more of the ledger than is there."""
        if self.checkpoint is None or self.ledger is None:
            return None
        place = str(self.folder / CHECKPOINTS)
        if self.facts.get("history") != self.id:
            return UserError(
                place, "holds checkpoints of another history",
                "put the folder back that belongs to this run; or --fresh keeps all this aside and starts over",
            )  # fmt: skip
        mark = self.facts["ledger"]
        if not self.ledger.holds(mark):
            return UserError(
                str(self.folder / LEDGER),
                f"is not the ledger that checkpoint step-{self.checkpoint.step:08d} was written with "
                "(lines are missing or were changed)",
                _PUT_BACK,
            )
        return None

    def rewind_point(self) -> Checkpoint | None:
        """The newest checkpoint that holds, verified again. A collective."""
        rank, ranks = world()
        return find(
            self.folder / CHECKPOINTS, rank=rank, ranks=ranks, exchange=exchange, fence=self.fence
        ).checkpoint  # fmt: skip

    @property
    def superseded(self) -> bool:
        """Whether the ledger found on this rank that a newer start has the history."""
        return self.ledger is not None and self.ledger.superseded

    def check(self) -> None:
        """Raise `Superseded` on every rank where rank 0 finds that a newer start has the history. A collective."""
        if self.fence is not None:
            on_first_rank(self.fence.check)

    def note(self, write: Callable[[Ledger], None]) -> None:
        """Let rank 0 write into the ledger; where it lost the history, all ranks hear of it in the next step."""
        if self.ledger is not None:
            with suppress(Superseded):  # `superseded` tells
                write(self.ledger)

    def mark(self) -> dict[str, Any]:
        """`Ledger.mark`, or what went wrong with the ledger, on every rank. A collective."""

        def work() -> dict[str, Any]:
            assert self.ledger is not None, "rank 0 opened it"
            return self.ledger.mark()

        return on_first_rank(work)

    def close(self) -> None:
        """Close the ledger; what was written is on disk then. A collective; raises what went wrong on every rank."""
        ledger = self.ledger
        on_first_rank(lambda: ledger.close() if ledger is not None else None)
