"""A rehearsal of preemption: the real recipe on a copy of the run, really signalled at the worst moments.

The phase is started, signalled in the middle of a step, started again, signalled while it starts, started again,
signalled while it saves, and started a last time. Each start must have saved the last step that it did, and the next
must go on behind it. Whoever runs the starts (a job of the scheduler, or this process) writes the events of a link;
the conductor reads them, sends the signals and keeps what only it sees.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from launch.local import LocalStarter
from launch.relay import last_step
from launch.slurm.chain import LinkLog
from launch.slurm.drill.drill_figures import Event, Sent, links_of, named
from launch.slurm.drill.drill_scene import Scene
from train.telemetry import METRICS

if TYPE_CHECKING:
    from launch.display import TerminalProgress
    from launch.slurm.scheduler.commands import Slurm

STEP, START, SAVE, LAST = (
    "in the middle of a step", "during start-up", "during a save", "at the end of the drill",
)  # fmt: skip
MOMENTS = {"step": STEP, "start": START, "save": SAVE}
DRILLED = "drilled"
_LOOK_S = 0.05
_SAVES_MISSED = 3

Note = Callable[[str], None]
Send = Callable[[Event, bool], None]


class Conductor:
    """Watches the starts of a drill and sends each its signal, at its moment.

    Args:
        moments: to hit, in this order, a start each; one more start ends the drill. send: sends the signal to the ranks
            of the start with this `begin` event; told whether it is the last one. note: takes lines for the user.

    Attributes:
        sent: the signals so far.
    """

    def __init__(self, scene: Scene, moments: Sequence[str], *, steps: int, send: Send, note: Note) -> None:
        self._scene, self._steps, self._send, self._note = scene, steps, send, note
        self._plan = [*moments, LAST]
        self._records: list[dict[str, Any]] = []
        self.sent: list[Sent] = []

    @property
    def over(self) -> bool:
        """Whether every signal was sent and its start has ended."""
        if len(self.sent) < len(self._plan):
            return False
        return named(self._links()[self.sent[-1].link], "end") is not None

    def _links(self) -> list[list[Event]]:
        return links_of(self._scene.chain.events(self._scene.phase))

    def look(self) -> None:
        """Send what is due, and keep what was seen. Raises `UserError` where a start ended otherwise than it should."""
        links = self._links()
        if self.sent and self.sent[-1].whole is None:
            self._see_whole(links)
        if not links:
            return
        link, number = links[-1], len(links) - 1
        if self.sent and self.sent[-1].link == number:
            return
        if (end := named(link, "end")) is not None:
            raise self._unexpected(end)
        if len(self.sent) < len(self._plan) and self._ripe(link, self._plan[len(self.sent)]):
            moment = self._plan[len(self.sent)]
            step = last_step(self._scene.history)
            self.sent.append(Sent(moment, number, time.time(), step))
            self._send(link[0], moment == LAST)
            self._note(f"start {number + 1}: signal {moment}, after step {step}")

    def _unexpected(self, end: Event) -> UserError:
        said = f"{end['outcome']}: {end.get('reason') or 'no reason given'}".splitlines()[0]
        if end["outcome"] == "done":
            said = "the phase was done before it could be signalled: its data are too few"
        return UserError(f"start of {self._scene.phase}", said, f"read {self._scene.place / 'logs'}")

    def _see_whole(self, links: Sequence[Sequence[Event]]) -> None:
        """When the checkpoint of a start that has ended was whole; later ones would remove it."""
        last = self.sent[-1]
        ended = named(links[last.link], "ranks_ended")
        if ended is not None:
            from train.history.folder import MANIFEST, step_name

            with suppress(OSError):
                file = self._scene.history / "checkpoints" / step_name(int(ended["saved"])) / MANIFEST
                self.sent[-1] = Sent(last.moment, last.link, last.time, last.step, file.stat().st_mtime)

    def _ripe(self, link: Sequence[Event], moment: str) -> bool:
        """Whether the moment is there; waits for the last part of a second of it."""
        stepping, ranks = named(link, "stepping"), named(link, "ranks")
        if moment == START:
            return stepping is not None or (ranks is not None and self._all_in(link))
        if stepping is None:
            return False
        done = last_step(self._scene.history) - int(stepping["step"])
        if moment == LAST:
            return True
        if moment == SAVE:
            return self._saving(done)
        if done < self._steps + self._scene.every // 2:
            return False
        records = [r for r in metrics(self._scene) if "time" in r][-self._steps :]
        usual = sorted(float(r["step_s"]) for r in records)[len(records) // 2]
        time.sleep(max(0.0, min(60.0, float(records[-1]["time"]) + usual / 2 - time.time())))
        return True

    def _all_in(self, link: Sequence[Event]) -> bool:
        if named(link, "roll_call") is not None:
            return True
        beats = (self._scene.place / "logs" / self._scene.phase).glob("heartbeat*/rank-*.json")
        return not link[0].get("start") and sum(1 for _ in beats) >= int(link[0]["ranks"])

    def _saving(self, done: int) -> bool:
        """Whether a save has begun; on a file system that shows it too late, whether one is about to."""
        with suppress(OSError):
            if any(entry.name.endswith(".building") for entry in (self._scene.history / "checkpoints").iterdir()):
                return True
        return done >= _SAVES_MISSED * self._scene.every and last_step(self._scene.history) % self._scene.every == 0


def metrics(scene: Scene) -> list[dict[str, Any]]:
    """The records of all training steps so far."""

    def read() -> Iterator[dict[str, Any]]:
        with suppress(FileNotFoundError):
            for line in (scene.history / METRICS).read_text(encoding="utf-8", errors="replace").splitlines():
                with suppress(ValueError):
                    record = json.loads(line)
                    if isinstance(record, dict) and "loss" in record:
                        yield record

    return list(read())


class _Noting(LocalStarter):
    """Ranks of this machine, whose starts are written down as those of a job are."""

    def __init__(self, log: LinkLog) -> None:
        self._log = log

    def note(self, event: str, **facts: Any) -> None:
        """Write it into the link's record."""
        self._log.write(event, **facts)


def rehearse_here(scene: Scene, conductor: Conductor, progress: TerminalProgress) -> None:
    """Run the starts one after another in this process, which gets the signals, as a job's controller does."""
    from launch.binding import Surroundings
    from launch.runner import Choice, walk
    from train.survival import Stopped

    with _Watch(conductor) as watch:
        for number in range(100):
            log = LinkLog(scene.chain, scene.phase, job_id="here", restart=number)
            log.write(
                "begin", nodes=[socket.gethostname()], ranks=scene.recipe.launch.nproc, start=None, link=number + 1
            )
            before, outcome, reason = len(conductor.sent), "done", ""
            try:
                with watch.walking():
                    walk(
                        scene.recipe, scene.source, run=scene.place, data=scene.order.data,
                        choice=Choice(stages=(scene.phase,)), progress=progress,
                        here=Surroundings(starter=_Noting(log)),
                    )  # fmt: skip
            except BaseException as error:
                watch.check()
                if not isinstance(error, Stopped):
                    log.write("end", outcome="failed", reason=str(error) or type(error).__name__)
                    raise
                if error.reason == "^C":
                    raise KeyboardInterrupt from error
                outcome, reason = "stopped", error.reason
            watch.wait_for(lambda n=before: len(conductor.sent) > n)  # type: ignore[misc]
            time.sleep(4 * _LOOK_S)  # so that the conductor sees this start's checkpoint
            log.write("end", outcome=outcome, reason=reason, next="requeue")
            watch.check()
            if conductor.over:
                return


class _Watch:
    """Lets the conductor look from a thread. What it raises ends the start that runs, and comes out of `check`."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor, self._end, self._busy = conductor, threading.Event(), threading.Event()
        self._trouble: BaseException | None = None

    def __enter__(self) -> _Watch:
        threading.Thread(target=self._work, name="conductor", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()

    def _work(self) -> None:
        while not self._end.wait(_LOOK_S):
            try:
                self._conductor.look()
            except BaseException as error:
                self._trouble = error
                if self._busy.is_set():
                    os.kill(os.getpid(), signal.SIGTERM)
                return

    @contextmanager
    def walking(self) -> Iterator[None]:
        """A start runs."""
        self._busy.set()
        try:
            yield
        finally:
            self._busy.clear()

    def check(self) -> None:
        """Raise what the conductor has."""
        if self._trouble is not None:
            raise self._trouble

    def wait_for(self, happened: Callable[[], bool], within_s: float = 5.0) -> None:
        """Wait until it has happened, the conductor has failed, or time is up."""
        until = time.monotonic() + within_s
        while not happened() and self._trouble is None and time.monotonic() < until:
            time.sleep(_LOOK_S)


def signal_here(begin: Event, last: bool) -> None:
    """The signal of `rehearse_here`: to this process, which tells its ranks."""
    os.kill(os.getpid(), signal.SIGUSR1)


class OnCluster:
    """The starts are links of a job of the phase, submitted as `rumpun submit` does, in the scratch run.

    Args:
        note: takes lines for the user.
    """

    def __init__(self, scene: Scene, slurm: Slurm, note: Note) -> None:
        self._scene, self._slurm, self._note = scene, slurm, note
        self._told = ""

    def end_former(self) -> None:
        """End what a drill has left that was killed."""
        ids = self.ids()
        if not any(state.active for state in self._slurm.jobs(ids).values()):
            return
        self._note(f"jobs of a former drill are cancelled: {', '.join(ids)}")
        self.end()
        while any(state.active for state in self._slurm.jobs(ids).values()):
            time.sleep(1.0)

    def submit(self) -> str:
        """Submit the job, alone: what it reads is there. Returns its id. Raises `UserError` where it is refused."""
        from dataclasses import replace

        from launch.slurm.submitting.decide import decide
        from launch.slurm.submitting.submit import check, prepare, submit

        prepared = prepare(self._scene.order, only=self._scene.phase, slurm=self._slurm)
        own = [replace(job, after=()) for job in prepared.jobs if job.name == self._scene.phase]
        prepared = replace(prepared, jobs=tuple(own))
        decisions = decide(prepared, self._slurm)
        check(prepared, decisions, self._slurm)
        submit(prepared, decisions, self._slurm)
        return decisions[0].id

    def send(self, begin: Event, last: bool) -> None:
        """The warning before a time limit: USR1 to the step of the ranks, not to the batch script."""
        if last:
            self._scene.chain.stop([str(begin["job"])], DRILLED)
        self._slurm.cancel([str(begin["job"])], signal="USR1", steps_only=True)

    def ids(self) -> list[str]:
        """The jobs of the drill: the submitted one, those that followed it, and tasks of an array."""
        from launch.slurm.submitting.cancel import ids_of

        entry = self._scene.chain.jobs().get("jobs", {}).get(self._scene.phase, {})
        begun = [str(e["job"]) for e in self._scene.chain.events(self._scene.phase) if e["event"] == "begin"]
        return list(dict.fromkeys([*ids_of(entry), *begun]))

    def rehearse(self, conductor: Conductor) -> None:
        """Follow the job until the drill is over. Raises `UserError` where it ended before; nothing is left running."""
        try:
            while not conductor.over:
                conductor.look()
                self._check_alive(conductor)
                time.sleep(_LOOK_S if self._told == "RUNNING" else 0.5)
        except BaseException:
            self.end()
            raise
        self._slurm.cancel(self.ids(), pending_only=True)  # of an array, the links that nobody needs

    def _check_alive(self, conductor: Conductor) -> None:
        ids = self.ids()
        states = [state for state in self._slurm.jobs(ids).values() if state.active]
        if not states:
            conductor.look()
            if not conductor.over:
                ends = ", ".join(f"{s.id} {s.state}" for s in self._slurm.jobs(ids).values())
                raise UserError("the drill's job", f"is gone ({ends})", f"read {self._scene.place / 'logs' / 'slurm'}")
            return
        now = states[-1]
        state = "RUNNING" if any(s.state == "RUNNING" for s in states) else f"{now.state} {now.reason}"
        if state != self._told:
            self._told = state
            where = f" on {', '.join(now.nodes)}" if now.nodes else ""
            self._note(f"job {now.id}: {state.lower() if state == 'RUNNING' else state}{where}")

    def end(self) -> None:
        """Cancel the drill's jobs."""
        with suppress(UserError):
            ids = self.ids()
            self._scene.chain.stop(ids, DRILLED)
            self._slurm.cancel(ids)


def proof_of(scene: Scene) -> str:
    """The sentence that the drill's ledger proves. Raises `UserError` where it proves nothing."""
    from launch.ledger_command import prove
    from train.history.records import LedgerFault

    ledger = scene.history / "ledger.jsonl"
    try:
        return prove(scene.place, ledger)[-1]
    except LedgerFault as fault:
        raise UserError(f"line {fault.line} of {fault.path}", fault.rule, fault.fix) from fault
