"""Which samples every step of a training phase was handed: an append-only file that survives crashes.

Invariant: what `mark` vouches for is on the disk, whole and in order; what a crash leaves after that is a prefix of
what was written, and is gone on with. Only rank 0 writes. Lines are written and synced by a thread, so that a step
waits for the disk only when it is hundreds of lines behind; an error of the disk comes out of the next call. A start
with a fence goes on in a copy that replaces the file: what an older start still appends goes to a file without a name.

    {"kind":"header", format, phase, history, sources, epoch_samples, fingerprint, seed, block, order_batch, end}
    {"kind":"start", step, position, restart, ranks, nodes, hosts, job, zero_stage, batch, time}   goes on after `step`
    {"kind":"step", step, epoch, first, end, moved, sources, order, loss, grad_norm, rate, skipped?}
    {"kind":"checkpoint", step, ranks, bytes}                  is whole on the disk; `found` where its own line was lost
    {"kind":"rewind", step, to_step, first, end, reason}       weights of `to_step` again; places [first, end) set aside
    {"kind":"stop", step, reason}   {"kind":"end", step}
"""

from __future__ import annotations

import json
import os
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_prep.errors import UserError
from data_prep.files import disk_errors
from train.draws import Draw
from train.history.fence import Fence, Superseded
from train.history.ledger_file import Found, open_ledger, still_saved, write_all
from train.history.records import chain_of, number, order_hash, parse, sample_table, seal, sealed_lines

EVENTS = ("checkpoint", "rewind", "stop", "end")
_AHEAD = 512


@dataclass
class _Flush:
    """Asks the thread to say when everything before it is on the disk, and how far that is."""

    done: threading.Event = field(default_factory=threading.Event)
    bytes: int = 0
    chain: str = ""


class Ledger:
    """A phase's ledger, open for appending; see `open`.

    Attributes:
        header: its first record. starts: starts so far. last_step: the last step in it, also one that was undone later.
        committed: the step of the last checkpoint that was committed, None before any.
    """

    @classmethod
    def open(cls, path: Path, header: Mapping[str, Any], *, fence: Fence | None = None) -> Ledger:
        """A new ledger, or one that is gone on with; what a crash has torn at its end is cut off.

        Args:
            header: `GlobalOrder.facts()` and phase, order_batch, end; also history, or one is made up.
            fence: of this start; None where nobody else can have started.

        Raises:
            UserError: it is of something else, of a newer format, damaged, or cannot be written.
            Superseded: a newer start has the history.
        """
        descriptor, found = open_ledger(path, header, fence)
        return cls(path, descriptor, found, fence)

    def __init__(self, path: Path, descriptor: int, found: Found, fence: Fence | None) -> None:
        assert found.header is not None
        self._fence = fence
        self.path, self.header = path, found.header
        self.starts, self.last_step = found.starts, found.last_step
        self._saved = found.saved
        self._descriptor, self._bytes, self._chain = descriptor, found.bytes, found.chain
        self._names = [s["name"] for s in self.header["sources"]]
        self._at: tuple[int, int] | None = None  # (step, position) that the next step goes on from
        self._counts = dict.fromkeys(self._names, 0)
        self._queue: queue.Queue[Callable[[], dict[str, Any]] | _Flush | None] = queue.Queue(_AHEAD)
        self._error: BaseException | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="ledger", daemon=True)
        self._thread.start()

    @property
    def committed(self) -> int | None:
        """The step of the last checkpoint that was committed, None before any."""
        return self._saved[-1] if self._saved else None

    @property
    def superseded(self) -> bool:
        """Whether a newer start was found to have the history: nothing was appended since."""
        return isinstance(self._error, Superseded)

    def start(
        self,
        *,
        step: int,
        position: int,
        restart: int,
        ranks: int,
        nodes: int,
        hosts: Sequence[str],
        job: str | None,
        zero_stage: int,
        batch: int,
    ) -> None:
        """Training goes on after `step`, at `position`, with these resources. Steps after it are undone by this.

        Raises `UserError` where the ledger does not hold that step.
        """
        self._counts = self._counted(step)
        self._saved = still_saved(self._saved, step)
        if step and step not in self._saved:
            # it was whole on the disk, and found there; the crash came before its line
            self._put(lambda: {"kind": "checkpoint", "step": step, "ranks": None, "bytes": None, "found": True})
            self._saved.append(step)
        record = {
            "kind": "start",
            "step": step,
            "position": position,
            "restart": restart,
            "ranks": ranks,
            "nodes": nodes,
            "hosts": list(hosts),
            "job": job,
            "zero_stage": zero_stage,
            "batch": batch,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._put(lambda: record)
        self.starts += 1
        self._at = (step, position)

    def step(
        self,
        draw: Draw,
        *,
        samples: Sequence[tuple[int, int]],
        loss: float,
        norm: float | None,
        rate: float,
        skipped: str | None = None,
    ) -> None:
        """A step is over.

        Args:
            draw: what was asked for. samples: (source, row) of what was read for it, in its order; must stay as it is.
            skipped: why it did not change the weights, where it did not.
        """
        if self._at != (draw.step - 1, draw.first):
            raise RuntimeError(f"step {draw.step} at place {draw.first} does not follow (step, place) {self._at}")
        self._at, self.last_step = (draw.step, draw.end), draw.step
        facts = {"loss": number(loss), "grad_norm": number(norm), "rate": rate}
        if skipped is not None:
            facts["skipped"] = skipped
        self._put(lambda: self._step_record(draw, samples) | facts)

    def event(self, kind: str, **facts: Any) -> None:
        """A checkpoint, rewind, stop or end; see the top of this file. Any thread may call it."""
        if kind not in EVENTS:
            raise ValueError(f"{kind!r} is none of {EVENTS}")
        self._put(lambda: {"kind": kind, **facts})
        if kind == "checkpoint":
            self._saved.append(facts["step"])

    def mark(self) -> dict[str, Any]:
        """{"bytes", "chain"} of the ledger so far, all of which is on the disk when this returns."""
        flush = _Flush()
        self._put(flush)
        flush.done.wait()
        self._raise()
        return {"bytes": flush.bytes, "chain": flush.chain}

    def holds(self, mark: Mapping[str, Any]) -> bool:
        """Whether this ledger begins with all that `mark` vouched for. Asked before anything is appended."""
        end = int(mark["bytes"])
        if end > self._bytes:
            return False
        tail = os.pread(self._descriptor, min(end, 100), max(0, end - 100))
        return chain_of(tail) == mark["chain"]

    def records(self) -> Iterator[dict[str, Any]]:
        """All records on the disk, the header first."""
        return read_records(self.path)

    def close(self) -> None:
        """Put everything on the disk and end. Safe to call twice; raises what went wrong."""
        if self._closed:
            return
        try:
            self.mark()
        finally:
            self._closed = True
            self._queue.put(None)
            self._thread.join()
            os.close(self._descriptor)

    def _counted(self, step: int) -> dict[str, int]:
        """How many samples of each source were used up to and with `step`, by its last record."""
        counts = dict.fromkeys(self._names, 0)
        if not step:
            return counts
        self.mark()
        wanted, found = f'{{"kind":"step","step":{step},'.encode(), b""
        with self.path.open("rb") as file:
            for line in file:
                if line.startswith(wanted):
                    found = line
        if not found:
            raise UserError(
                str(self.path), f"holds no step {step}, after which the checkpoint would go on",
                "put the ledger back from a copy, or start over beside it with --fresh",
            )  # fmt: skip
        # a source that this step did not use is in the line too
        return counts | {name: end for name, (_, end) in json.loads(found)["sources"].items()}

    def _step_record(self, draw: Draw, samples: Sequence[tuple[int, int]]) -> dict[str, Any]:
        """The facts of a step about its samples; in the thread, in the order of the steps."""
        import numpy as np

        table = sample_table(samples)  # numpy's loops: the time of this thread is the training loop's too
        before = dict(self._counts)
        used = zip(self._names, np.bincount(table[:, 0], minlength=len(self._names)).tolist(), strict=True)
        self._counts = {name: before[name] + count for name, count in used}
        moved: dict[str, int] = {}
        if not isinstance(draw.positions, range):
            positions = np.asarray(draw.positions)
            off = np.flatnonzero(positions != np.arange(draw.first, draw.end)).tolist()
            moved = {str(draw.first + i): int(positions[i]) for i in off}
        return {
            "kind": "step",
            "step": draw.step,
            "epoch": draw.first // self.header["epoch_samples"],
            "first": draw.first,
            "end": draw.end,
            "moved": moved,
            "sources": {name: [before[name], self._counts[name]] for name in self._names},
            "order": order_hash(table),
        }

    def _put(self, item: Callable[[], dict[str, Any]] | _Flush) -> None:
        self._raise()
        if self._closed:
            raise RuntimeError(f"{self.path} is closed")
        self._queue.put(item)

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        """Take what is waiting, write it as one piece, sync, and say so to those who wait for it."""
        ended = False
        while not ended:
            items = [self._queue.get()]
            while not self._queue.empty():
                items.append(self._queue.get_nowait())
            ended = None in items
            try:
                if self._error is None:
                    with disk_errors(self.path):
                        self._append([item() for item in items if callable(item)])
            except BaseException as error:  # the next caller's to raise
                self._error = error
            for item in items:
                if isinstance(item, _Flush):
                    item.bytes, item.chain = self._bytes, self._chain
                    item.done.set()

    def _append(self, records: list[dict[str, Any]]) -> None:
        if not records:
            return
        if self._fence is not None:
            self._fence.check()
        if os.fstat(self._descriptor).st_size != self._bytes:
            raise UserError(
                str(self.path), "was written to by another process", "end the other training of this run first"
            )
        lines, chain = [], self._chain
        for record in records:
            line, chain = seal(record, chain)
            lines.append(line)
        data = b"".join(lines)
        try:
            write_all(self._descriptor, data)
            os.fdatasync(self._descriptor)
        except OSError:
            os.ftruncate(self._descriptor, self._bytes)
            raise
        self._bytes, self._chain = self._bytes + len(data), chain


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """All records of a ledger, the header first. Raises `LedgerFault` where its seals are broken."""
    for line_number, _, line in sealed_lines(path):
        yield parse(path, line_number, line)
