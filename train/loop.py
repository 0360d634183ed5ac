"""The loop of both phases: steps are taken, recorded, judged and saved, and it stops only where nothing is lost.

Invariant: what a step does is a function of the history's data, seed and settings and of the weights before it; the
ranks agree on everything else (skip, save, stop) in the one small exchange that each step makes anyway. So a run that
was stopped anywhere and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from train.agree import exchange, on_first_rank, raise_together, together
from train.flops import Work
from train.gather import world
from train.guard import Diverged, StepJudge
from train.history.fence import Superseded
from train.history.forecast import check_space
from train.history.resume import CHECKPOINTS, History
from train.history.rng import generator_states, set_generators
from train.history.saver import Saver
from train.lesson import Lesson, summed
from train.loader import Prefetch
from train.pace import Pace
from train.phase import PhaseConfig, rate_factor
from train.survival import Stopped, Survival

if TYPE_CHECKING:
    from train.draws import Draw, Draws
    from train.engine import Engine
    from train.meter import Meter
    from train.watch import Watching

_RECORD_BYTES = 2048  # of one step in the ledger and the metrics
_STATE_BYTES = 12  # of a parameter in a checkpoint: the weight and two moments in fp32
_STOPS = ("", "SIGTERM", "SIGUSR1", "SIGUSR2", "time limit")


class Prepared(Protocol):
    """What a batch must tell of itself; the rest is between the phase's `make` and `teach`."""

    @property
    def draw(self) -> Draw:
        """What was asked for."""
        ...

    @property
    def samples(self) -> list[tuple[int, int]]:
        """What was read for it, as (source, row)."""
        ...


Item = TypeVar("Item", bound=Prepared)


@dataclass(frozen=True)
class _Shared:
    """What the ranks agreed on in a step: the loss, the work of all, and wishes that any of them had.

    Attributes:
        uneven: tokens of the busiest rank over the mean, less 1; None where it is not known or there is one rank.
        superseded: a newer start has the history.
    """

    loss: float
    work: Work
    uneven: float | None
    stop: str
    due: bool
    failed: bool
    superseded: bool


class Loop(Generic[Item]):
    """Runs the steps of a phase that its history does not hold yet.

    Args:
        steps: optimiser steps of the whole phase at the history's first batch size; the rate's schedule counts in them.
        out: where the trained model will be written; there must be room for it.
        make: a batch of its draw, in a background thread. teach: forward and backward of this rank.
        remember: what the phase itself wants in a checkpoint, as JSON values.
        watching: measures the model between steps, where that is wanted.
    """

    def __init__(
        self,
        config: PhaseConfig,
        *,
        seed: int,
        engine: Engine,
        draws: Draws,
        steps: int,
        make: Callable[[Draw], Item],
        teach: Callable[[Item], Lesson],
        meter: Meter,
        survival: Survival,
        history: History,
        out: Path,
        remember: Callable[[], Mapping[str, Any]] = dict,
        watching: Watching | None = None,
    ) -> None:
        self._rank, self._ranks = world()
        self._config, self._seed, self._engine, self._draws = config, seed, engine, draws
        self._steps, self._make, self._teach = steps, make, teach
        self._meter, self._survival, self._history, self._remember = meter, survival, history, remember
        self._watching = watching
        self.start_s: dict[str, float] = {}
        """Seconds from the process's start to the end of its first step, by place."""
        self._judge = StepJudge(survival.guard)
        self._position = history.done
        self._saved_at = time.perf_counter()
        self._last_saved = history.done_steps
        self._streak = 0
        keeping = survival.checkpoint
        self._pace = Pace(save_bytes=_STATE_BYTES * engine.parameters_total)
        self._saver = together(
            lambda: Saver(
                history.folder / CHECKPOINTS,
                rank=self._rank,
                ranks=self._ranks,
                keep=keeping.keep,
                background=keeping.background,
                committed=self._note_commit,
                fence=history.fence,
            )
        )
        # after the saver has cleared away what crashed saves left: it is space too
        on_first_rank(
            lambda: check_space(
                history.folder / CHECKPOINTS,
                parameters=engine.parameters_total,
                keep=keeping.keep,
                log_bytes=_RECORD_BYTES * self.steps_left,
                model_folder=out,
            )
        )
        self._resume()

    def _resume(self) -> None:
        checkpoint = self._history.checkpoint
        if checkpoint is None:
            return
        facts = self._history.facts
        self._survival.at("restoring")
        checkpoint.check_model(self._engine.named_shapes)
        self._engine.restore(checkpoint.read, updates=facts["updates"])
        set_generators(checkpoint.own(self._rank), seed=self._seed, rank=self._rank, step=checkpoint.step)
        self._judge.load(facts["judge"])
        self._meter.load(facts["meter"])
        self._pace.load(facts.get("pace"))
        checkpoint.close()  # or its files would keep their space after they are deleted

    def _note_commit(self, step: int, size: int) -> None:
        self._history.note(lambda ledger: ledger.event("checkpoint", step=step, ranks=self._ranks, bytes=size))

    @property
    def steps_left(self) -> int:
        """Steps that this start has to take."""
        return self._draws.steps - self._history.done_steps

    def run(self) -> None:
        """Take all steps that are left. A collective.

        Raises:
            Stopped: somebody asked for it, or no further step could be saved in time; the steps done are saved.
            Superseded: a newer start has the history; nothing was changed since.
            UserError: a save failed on some rank (a full disk, for example). Diverged: [guard] gave up.
        """
        first, last = self._history.done_steps + 1, self._draws.steps
        late = exchange(self._late())
        if any(late) and first <= last:  # not even the first step can be saved
            self._stop("time limit", first - 1)
        self._survival.at("waiting for data", first)
        with Prefetch(lambda step: self._make(self._draws(step)), range(first, last + 1)) as prepared:
            for step in range(first, last + 1):
                shared = self._step(step, next_item=prepared)
                if step == first:
                    self.start_s = dict(self._survival.places.spent_s)
                self._boundary(step, shared, ended=step == last)
                if self._watching is not None:
                    with self._pace.pausing():
                        self._watching.after(step, ended=step == last, needed_s=self._pace.needed_s)
                self._pace.end()

    def _step(self, step: int, *, next_item: Prefetch[Item]) -> _Shared:
        at, meter, engine = self._survival.at, self._meter, self._engine
        meter.begin_step()
        self._pace.begin()
        at("waiting for data", step)
        with meter.waiting():
            item = next(next_item)
        draw = item.draw
        at("computing gradients", step)
        # the schedule goes by samples, so that a changed batch size keeps it
        rate = self._config.learning_rate * rate_factor(
            self._config, step=draw.first / self._history.order_batch, steps=self._steps
        )
        engine.set_rate(rate)
        lesson = self._teach(item)
        for name, seconds in lesson.parts.items():
            meter.add(name, seconds)
        at("exchanging the loss", step)
        shared = self._exchange(lesson, step)
        if shared.superseded:
            self._lost()
        skipped = self._judge.judge_loss(shared.loss)

        def admit(norm: float | None) -> bool:
            nonlocal skipped
            skipped = skipped or self._judge.judge_norm(norm)
            return skipped is None

        at("updating the weights", step)
        norm = engine.step(admit).norm
        self._position = draw.end
        self._history.note(
            lambda ledger: ledger.step(
                draw, samples=item.samples, loss=shared.loss, norm=norm, rate=rate, skipped=skipped
            )
        )
        self._streak = self._streak + 1 if skipped else 0
        more = dict(lesson.notes) | ({"skipped": skipped} if skipped else {})
        if step == self._history.done_steps + 1:
            more["start_parts_s"] = {place: round(spent, 3) for place, spent in self._survival.places.spent_s.items()}
        if shared.uneven is not None:
            more["rank_imbalance"] = shared.uneven
        meter.end_step(loss=shared.loss, rate=rate, norm=norm, work=shared.work, **more)
        if self._judge.record(skipped):
            with self._pace.pausing():
                self._rewind(step, str(skipped))
        return shared

    def _exchange(self, lesson: Lesson, step: int) -> _Shared:
        every, every_s = self._survival.checkpoint.every_steps, self._survival.checkpoint.every_s
        due = self._rank == 0 and every_s is not None and time.perf_counter() - self._saved_at >= every_s
        self._pace.saved(self._saver.last_s)
        # after the last step comes no other that would have to be saved
        late = step < self._draws.steps and self._late(due=due or (every is not None and step % every == 0))
        stop = self._survival.stop.reason() or ("time limit" if late else "")
        superseded = self._saver.superseded or self._history.superseded
        wishes = [float(_STOPS.index(stop)), float(due), float(self._saver.failed), float(superseded)]
        loss, work, uneven, wished = summed(lesson, wishes, device=self._engine.device)
        return _Shared(
            loss, work, uneven, stop=_STOPS[int(wished[0])], due=wished[1] > 0, failed=wished[2] > 0,
            superseded=wished[3] > 0,
        )  # fmt: skip

    def _late(self, *, due: bool = False) -> bool:
        """Whether this rank expects that one more step could not be saved before the deadline."""
        deadline = self._survival.stop.deadline
        if deadline is None:
            return False
        return time.time() + self._pace.needed_s(saving_s=self._saver.running_s, due=due) > deadline

    def _lost(self) -> None:
        """End on every rank: a newer start has the history."""
        fence = self._history.fence
        if fence is not None:
            fence.check()  # says who
        raise Superseded("superseded: a newer start has taken over the history; this one ends")

    def _boundary(self, step: int, shared: _Shared, *, ended: bool) -> None:
        """Between two steps: save where it is due, stop where it was asked for."""
        if shared.failed:
            raise_together(self._saver.failure())
        every = self._survival.checkpoint.every_steps
        due = shared.due or (every is not None and step % every == 0) or bool(shared.stop) or ended
        # in a row of skipped steps the weights are suspect: the last good checkpoint stays the newest
        if due and self._last_saved < step and not self._streak:
            with self._pace.pausing():
                self._save(step)
        if shared.stop:
            self._stop(shared.stop, step)

    def _save(self, step: int) -> None:
        """Save the state after `step`: a copy now, the files in the background."""
        self._survival.at("saving", step)
        before = time.perf_counter()
        facts = {
            "history": self._history.id,
            "position": self._position,
            "updates": self._engine.updates,
            "zero_stage": self._config.zero_stage,
            "judge": self._judge.state(),
            "meter": self._meter.state(),
            "phase": dict(self._remember()),
            "pace": self._pace.state(),
            "ledger": self._history.mark(),
        }
        self._saver.save(step, self._engine.own_pieces(), facts, generator_states())
        self._saved_at = time.perf_counter()
        self._last_saved = step
        self._meter.pause("checkpoint", self._saved_at - before)

    def _settle(self) -> None:
        """Wait until the save in flight is whole on all ranks. A collective."""
        before = time.perf_counter()
        self._saver.wait()
        raise_together(self._saver.failure())
        self._meter.pause("checkpoint", time.perf_counter() - before)

    def _stop(self, reason: str, step: int) -> None:
        self._settle()
        self._history.note(lambda ledger: ledger.event("stop", step=step, reason=reason))
        self._history.close()
        raise Stopped(reason, self._last_saved)  # in a row of skipped steps that is before them

    def pause(self, place: str) -> None:
        """A boundary outside the steps (before a validation, before the export): stop here where it was asked for.

        A collective. Raises `Stopped`; the steps done are saved.
        """
        self._survival.at(place)
        self._history.check()
        asked = [reason for reason in exchange(self._survival.stop.reason()) if reason]
        if asked:
            self._stop(asked[0], self._draws.steps)

    def _rewind(self, step: int, reason: str) -> None:
        """Take the weights of the last checkpoint, and leave out what was seen since. A collective."""
        self._survival.at("rewinding", step)
        self._settle()
        point = self._history.rewind_point()
        if point is None:
            raise Diverged(
                f"training diverged: {reason} at step {step}, before any checkpoint. Fix: lower the learning rate, "
                "lengthen the warm-up, or check the model and the data"
            )
        self._engine.restore(point.read, updates=point.facts["updates"])
        self._judge.load(point.facts["judge"])
        point.close()
        self._streak = 0
        window = {"to_step": point.step, "step": step, "first": point.facts["position"], "end": self._position}
        self._history.note(lambda ledger: ledger.event("rewind", **window, reason=reason))
        self._save(step)

    def summary(self) -> dict[str, Any]:
        """What summary.json says of the history and of this start."""
        return {
            "history": self._history.id,
            "restarts": self._history.restarts,
            "start_parts_s": self.start_s,
        }

    def finish(self) -> None:
        """The phase's output is written: close the history. A collective.

        Raises `Superseded` where a newer start has the history.
        """
        self._settle()
        self._saver.close()
        self._history.check()
        self._history.note(lambda ledger: ledger.event("end", step=self._draws.steps))
        self._history.close()
