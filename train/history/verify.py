"""Proves from its ledger that a training phase used every sample exactly once in every epoch.

Invariant: nothing in the ledger is believed because it says so. Every sample is drawn anew from data fingerprint and
seed and compared, by hash, with what the step was handed; then each is counted, one bit for each row of an epoch. So a
proof holds if the header names the true data, which can be checked against the shards too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from train.arrange import WINDOW
from train.cursor import GlobalOrder
from train.history.coverage import Coverage
from train.history.proof import Proof
from train.history.records import FORMAT, LedgerFault, chain_of, order_hash, parse, sealed_lines
from train.history.tape import Broken, Tape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK = 1 << 16
"""Samples drawn at once: numpy's cost a call is spread over many steps, and memory stays small."""


class Data(Protocol):
    """A shard folder: its rows, and what identifies them."""

    fingerprint: str

    def __len__(self) -> int: ...


def verify(path: Path, *, shards: Mapping[str, Data] | None = None, mark: Mapping[str, Any] | None = None) -> Proof:
    """The proof that a ledger gives.

    Args:
        shards: the data by the name of their source, to be compared with those of the header.
        mark: of the newest checkpoint, so that lines missing at the end are found too.

    Raises:
        LedgerFault: the ledger disagrees with itself, with the order, with `shards` or with `mark`; it names the line.
    """
    tape, size = _read(path, mark)
    order = GlobalOrder.from_facts(tape.header)
    if shards is not None:
        _check_data(path, order, shards)
    counted = _Counting(path, tape, order)
    for line_number, _, line in sealed_lines(path):
        if line.startswith(b'{"kind":"step"'):
            counted.add(line_number, parse(path, line_number, line))
    counted.flush()
    return Proof(
        path=path,
        phase=tape.header["phase"],
        order=order,
        tape=tape,
        complete=len(counted.coverage.complete),
        partial=counted.coverage.open,
        recomputed=counted.recomputed,
        skipped=counted.skipped,
        steps_checked=counted.checked,
        torn_bytes=path.stat().st_size - size,
        against_data=shards is not None,
        against_checkpoint=mark is not None,
    )


def _read(path: Path, mark: Mapping[str, Any] | None) -> tuple[Tape, int]:
    """The tape of a ledger, and the bytes of its whole lines."""
    tape: Tape | None = None
    size, number, marked = 0, 0, mark is None
    for number, offset, line in sealed_lines(path):
        record = parse(path, number, line)
        size = offset + len(line)
        marked = marked or (mark is not None and size == mark["bytes"] and chain_of(line) == mark["chain"])
        try:
            if tape is None:
                tape = Tape(_header(record))
            else:
                tape.add(number, record)
        except Broken as error:
            raise LedgerFault(path, number, str(error)) from error
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise LedgerFault(path, number, f"lacks a fact, or has one of the wrong kind ({error!r})") from error
    if tape is None:
        raise LedgerFault(path, 1, "there is no whole line in it")
    if not marked:
        raise LedgerFault(path, number, "is the last one, but the newest checkpoint was written with a longer ledger")
    return tape, size


def _header(record: Mapping[str, Any]) -> Mapping[str, Any]:
    if record["kind"] != "header":
        raise Broken(f"is a {record['kind']!r}, but a ledger begins with its header")
    if record["format"] > FORMAT:
        raise Broken(f"is of format {record['format']}, which a newer rumpun wrote; this one reads {FORMAT}")
    order = GlobalOrder.from_facts(record)
    if order.epoch_rows != record["epoch_samples"] or record["end"] < 0 or record["order_batch"] < 1:
        raise Broken(f"says {record['epoch_samples']} samples an epoch; its sources have {order.epoch_rows}")
    return record


def _check_data(path: Path, order: GlobalOrder, shards: Mapping[str, Data]) -> None:
    for source in order.sources:
        if source.name not in shards:
            raise LedgerFault(path, 1, f"the run used source {source.name!r}, whose data are not there")
        if len(shards[source.name]) != source.rows:
            raise LedgerFault(
                path, 1, f"source {source.name!r} had {source.rows} rows, and now has {len(shards[source.name])}"
            )
    if "/".join(shards[s.name].fingerprint for s in order.sources) != order.fingerprint:
        raise LedgerFault(path, 1, "the data are not those that the run used: their fingerprint is another one")


@dataclass(frozen=True)
class _Step:
    line: int
    step: int
    first: int
    end: int
    order: str
    sources: Mapping[str, Any]


class _Counting:
    """Draws the samples of the steps anew, in pieces of many steps, compares them and counts them.

    Attributes:
        checked: steps compared, those that were undone included. recomputed: times that an undone step was done again
            over the same places, with the same samples.
        skipped: (step, reason) of the steps that count and changed no weight.
    """

    def __init__(self, path: Path, tape: Tape, order: GlobalOrder) -> None:
        self.coverage = Coverage(order)
        self.checked = self.recomputed = 0
        self.skipped: list[tuple[int, str]] = []
        self._path, self._tape, self._order = path, tape, order
        self._names = [s.name for s in order.sources]
        self._totals = dict.fromkeys(self._names, 0)
        self._undone: dict[int, _Step] = {}
        self._steps: list[_Step] = []
        self._positions: list[NDArray[np.int64]] = []
        self._waiting = 0

    def add(self, line: int, record: Mapping[str, Any]) -> None:
        """Take a step; it is compared with the next piece."""
        try:
            facts = {name: record[name] for name in ("step", "first", "end", "order", "sources")}
            step = _Step(line=line, **facts)
            self._positions.append(self._positions_of(line, record))
            if "skipped" in record and line not in self._tape.undone:
                self.skipped.append((step.step, str(record["skipped"])))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise LedgerFault(self._path, line, f"lacks a fact, or has one of the wrong kind ({error!r})") from error
        self._steps.append(step)
        self._waiting += step.end - step.first
        if self._waiting >= _CHUNK:
            self.flush()

    def _positions_of(self, line: int, record: Mapping[str, Any]) -> NDArray[np.int64]:
        import numpy as np

        first, end = record["first"], record["end"]
        positions = np.arange(first, end, dtype=np.int64)
        for key, position in record["moved"].items():
            place = int(key)
            near = WINDOW * self._tape.header["order_batch"]
            if not first <= place < end:
                raise LedgerFault(self._path, line, f"moves place {place}, which is not one of {first}..{end - 1}")
            same_epoch = place // self._order.epoch_rows == position // self._order.epoch_rows
            if position < 0 or not same_epoch or place // near != position // near:
                raise LedgerFault(
                    self._path, line,
                    f"uses position {position} at place {place}: samples stay in their epoch and window of {near}",
                )  # fmt: skip
            positions[place - first] = position
        return positions

    def flush(self) -> None:
        """Compare and count what was taken."""
        import numpy as np

        if not self._steps:
            return
        positions = np.concatenate(self._positions)
        sources, rows = self._order.samples(positions)
        pairs = np.stack([sources, rows], axis=1)
        edges = np.cumsum([0, *(s.end - s.first for s in self._steps)])
        counting = np.zeros(len(positions), bool)
        for step, a, b in zip(self._steps, edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            if order_hash(pairs[a:b]) != step.order:
                raise LedgerFault(
                    self._path, step.line, f"step {step.step} was handed other samples, or in another order, than data "
                    "and seed give",
                )  # fmt: skip
            self._compare(step, np.bincount(sources[a:b], minlength=len(self._names)).tolist())
            counting[a:b] = step.line not in self._tape.undone
        self.checked += len(self._steps)
        epochs = positions // self._order.epoch_rows
        again = self.coverage.add(epochs[counting], sources[counting], rows[counting])
        if again is not None:
            at = int(np.flatnonzero(counting)[again.at])
            step = self._steps[int(np.searchsorted(edges, at, side="right")) - 1]
            raise LedgerFault(
                self._path, step.line,
                f"step {step.step} uses row {again.row} of source {again.source!r} again in epoch {again.epoch + 1}",
            )  # fmt: skip
        self._steps, self._positions, self._waiting = [], [], 0

    def _compare(self, step: _Step, counts: list[int]) -> None:
        """Against the running counts of the sources, and against the same step before it was undone."""
        lost = self._undone.get(step.step)
        if lost is not None and (lost.first, lost.end) == (step.first, step.end):
            if lost.order != step.order:
                raise LedgerFault(
                    self._path, step.line,
                    f"step {step.step} was computed again with other samples than in line {lost.line}",
                )  # fmt: skip
            self.recomputed += 1
        if step.line in self._tape.undone:
            self._undone[step.step] = step
            return
        before = dict(self._totals)
        self._totals = {n: before[n] + c for n, c in zip(self._names, counts, strict=True)}
        expected = {n: [before[n], self._totals[n]] for n in self._names}
        if step.sources != expected:
            raise LedgerFault(
                self._path, step.line,
                f"step {step.step} counts its sources as {step.sources}, but they are {expected}",
            )  # fmt: skip
