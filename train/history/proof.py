"""What a verified ledger proves, in sentences that need no knowledge of its format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from train.cursor import GlobalOrder
from train.history.tape import Start, Tape

_MANY = 6


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Made by train/history/verify.py, after everything in it was checked.

    Attributes:
        order, tape: of the phase. complete: epochs that used every sample exactly once.
        partial: samples used, none twice, of every epoch that is not complete.
        recomputed: steps that were lost and done again over the same places, with the same samples.
        skipped: (step, reason) of steps that changed no weight. steps_checked: with those that were lost.
        torn_bytes: of a last line that a crash left unfinished.
        against_data, against_checkpoint: whether the shards and the newest checkpoint were compared too.
    """

    path: Path
    phase: str
    order: GlobalOrder
    tape: Tape
    complete: int
    partial: dict[int, int]
    recomputed: int
    skipped: list[tuple[int, str]]
    steps_checked: int
    torn_bytes: int
    against_data: bool
    against_checkpoint: bool

    @property
    def samples(self) -> int:
        """Samples used by the steps that count."""
        return self.tape.end_of(self.tape.step)

    def sentences(self) -> list[str]:
        """What was found, a sentence each; the last one says what it proves."""
        parts = [
            self._epochs(),
            self._starts(),
            self._lost(),
            self._skipped(),
            self._set_aside(),
            self._checked(),
            self.claim(),
        ]
        return [part for part in parts if part]

    def claim(self) -> str:
        """What is proven, in one sentence."""
        if not self.tape.step:
            return "Nothing to prove yet: no step is done."
        sizes = [s.ranks for s in self.tape.starts]
        named = _list([f"{n:,}" for n in sizes]) if len(sizes) <= _MANY else _span(sizes)
        through = f"{len(sizes):,} starts on {named} process{'' if named == '1' else 'es'}"
        how = f", through {through}" if len(sizes) > 1 else ""
        # a set-aside sample was used, but nothing of it is in the weights: the sentence must not hide that
        but = "; what rewinds set aside was used, but is not in the weights" if self.tape.set_aside else ""
        when = "" if self.tape.ended else f" so far (step {self.tape.step:,})"
        return f"Proven{when}: {self._use()}, in the one order that data and seed give{how}{but}."

    def _use(self) -> str:
        if not self.complete:
            return "no sample was used twice, and none was passed over"
        each = "in the one epoch" if self.complete == 1 else f"in each of the {self.complete:,} epochs"
        if self.partial:
            each += " that is complete" if self.complete == 1 else " that are complete"
        more = ", and none twice in the one after" if self.partial else ""
        return f"every sample was used exactly once {each}{more}"

    def _epochs(self) -> str:
        size = self.order.epoch_rows
        sources = ", ".join(
            f"{s.rows_per_epoch:,} of {s.rows:,} from {s.name}" if s.share < 1 else f"{s.rows:,} from {s.name}"
            for s in self.order.sources
        )
        text = f"An epoch is {_count(size, 'sample')} ({sources}). "
        if self.complete:
            text += (
                f"{_count(self.complete, 'epoch')} {_is(self.complete)} complete: each used every sample exactly once"
            )
            text += f", {self.complete * size:,} in all. " if self.complete > 1 else ". "
        for epoch, used in self.partial.items():
            text += f"Epoch {epoch + 1} has used {used:,} of {size:,}, none twice. "
        if not self.tape.ended and self.tape.step:
            text += f"The phase is not over: {self.samples:,} of {self.tape.header['end']:,} samples."
        return text.strip()

    def _starts(self) -> str:
        starts = self.tape.starts
        if not starts:
            return ""
        text = f"{_count(self.tape.step, 'step')} in {_count(len(starts), 'start')}: "
        shown = starts if len(starts) <= _MANY else [*starts[: _MANY - 1], starts[-1]]
        told = [_resources(start, first=start is starts[0]) for start in shown]
        if shown is not starts:
            told.insert(-1, f"{len(starts) - len(shown):,} more")
        text += "; ".join(told) + "."
        if self.tape.older:
            text += f" {_count(self.tape.older, 'start')} went on from an older checkpoint than the newest one."
        if self.tape.found:
            found = self.tape.found
            text += f" {_count(found, 'checkpoint')} had been completed just before a crash, and {_was(found)} found."
        return text

    def _lost(self) -> str:
        lost = len(self.tape.undone)
        if not lost:
            return ""
        text = f"{_count(lost, 'step')} after a checkpoint {_was(lost)} lost"
        if self.recomputed:
            text += f"; {self.recomputed:,} of them {_was(self.recomputed)} computed again with the same samples"
        if other := lost - self.recomputed:
            text += f"; what {_count(other, 'step')} had covered is cut into other steps, or still to come"
        return text + "."

    def _skipped(self) -> str:
        if not self.skipped:
            return ""
        shown = _list([f"{step:,} ({reason})" for step, reason in self.skipped[:_MANY]])
        more = f" and {len(self.skipped) - _MANY:,} more" if len(self.skipped) > _MANY else ""
        return f"{_count(len(self.skipped), 'step')} changed no weight: {shown}{more}."

    def _set_aside(self) -> str:
        return " ".join(
            f"A rewind after step {w.step:,} took the weights back to step {w.to_step:,} ({w.reason}): "
            f"{_count(w.end - w.first, 'sample')} (places {w.first:,} to {w.end - 1:,}) were used in steps that "
            "are not in the weights."
            for w in self.tape.set_aside
        )

    def _checked(self) -> str:
        text = (
            f"Checked: the seal of every line, and the samples of {_count(self.steps_checked, 'step')}, each drawn anew"
        )
        text += " and compared with what the step was handed"
        if self.against_data:
            text += "; the data that are there are those of the run"
        if self.against_checkpoint:
            text += "; nothing is missing that the newest checkpoint knew of"
        text += "."
        if self.torn_bytes:
            text += f" A crash left {_count(self.torn_bytes, 'byte')} of an unfinished last line, which say nothing."
        return text


def _resources(start: Start, *, first: bool) -> str:
    where = f"{_count(start.ranks, 'process', 'processes')} on {_count(start.nodes, 'node')}"
    how = f"ZeRO {start.zero_stage}, batch {start.batch:,}" + (f", job {start.job}" if start.job else "")
    return f"{where} ({how})" if first else f"after step {start.step:,} on {where} ({how})"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _span(sizes: Sequence[int]) -> str:
    low, high = min(sizes), max(sizes)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _list(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else "".join(parts)
