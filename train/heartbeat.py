"""Every rank reports the places that it passes, and the run ends with a verdict when nobody passes any.

Invariant: reporting never slows a step (the loop sets a variable; a thread writes it, at most once a second, in place,
so that not even a full disk silences it), and never ends a run that moves. A hung collective otherwise only ends by its
timeout, half an hour later, on all ranks but the one that is to blame.

Rank 0 watches all; rank 1 does when rank 0 cannot, and the launcher when neither can (train/verdict.py). A rank that is
asked for its stacks writes them and ends with `exit_codes.HUNG`. `kill -QUIT PID` writes the stacks of a rank at any
time and lets it go on.
"""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

from train.exit_codes import HUNG
from train.verdict import ANSWER_S, ANSWERED, REQUEST, STACK_SIGNAL, VERDICT, Beat, Watch, beat_file, stack_file

DEPUTY_PATIENCE_S = 3.0
LAUNCHER_PATIENCE_S = 12.0
LEAVE_S = 10.0
_RECORD_BYTES = 1280  # more than the longest record


class Heartbeat:
    """One rank's reports; `start()` it as early as possible.

    Args:
        folder: shared by all ranks and empty when they start. hang_after_s, start_within_s: see `Watch`.
        beat_s: seconds between two looks at what the loop has passed.
    """

    def __init__(
        self, folder: Path, *, rank: int, ranks: int, hang_after_s: float, start_within_s: float, beat_s: float = 1.0
    ) -> None:
        self._folder, self._rank, self._ranks, self._beat_s = folder, rank, ranks, beat_s
        self._limits = {"hang_after_s": hang_after_s, "start_within_s": start_within_s}
        self._beat = Beat(rank, socket.gethostname(), os.getpid(), "starting", None, passed=1, in_step=1, stepped=False)
        self._written: Beat | None = None
        self._closing = threading.Event()

    def start(self) -> None:
        """Report for the first time, take in stack requests, and begin to watch where that is this rank's duty."""
        path = stack_file(self._folder, self._rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8")
        main = threading.main_thread().ident
        self._stream.write(f"rank {self._rank}, host {self._beat.host}, pid {self._beat.pid}, main thread {main:#x}\n")
        self._stream.flush()
        # C code answers this signal even while the interpreter is blocked
        faulthandler.register(STACK_SIGNAL, file=self._stream, all_threads=True, chain=False)
        self._write()
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def at(self, place: str, step: int | None = None) -> None:
        """The loop is now at `place` (of `step`; None: of the step before). All ranks pass the same places in a step.

        Call it before whatever may wait: data, forward, backward, update, validation, saving. Costs a microsecond.
        """
        last = self._beat
        new = step is not None and step != last.step
        self._beat = Beat(
            last.rank, last.host, last.pid, place,
            step if new else last.step,
            last.passed + 1,
            1 if new else last.in_step + 1,
            last.stepped or (new and last.step is not None),
        )  # fmt: skip

    def hold(self) -> None:
        """Call it on the way out of an exception: where a hang is being judged, it is only that a rank has left."""
        if (self._folder / REQUEST).exists():
            time.sleep(2 * LEAVE_S)  # the other thread ends the process

    def close(self) -> None:
        """Stop reporting and watching."""
        self._closing.set()

    def _write(self) -> None:
        """Leave the newest report, over the one before: that needs no new space on the disk."""
        beat = self._beat
        record = beat._replace(place=beat.place[:80], host=beat.host[:80])._asdict()
        data = json.dumps(record).encode().ljust(_RECORD_BYTES)
        with suppress(OSError):
            # opened anew each time: on NFS others see a write when its file is closed
            number = os.open(beat_file(self._folder, self._rank), os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(number, data, 0)
            finally:
                os.close(number)
            self._written = beat

    def _run(self) -> None:
        watch = None
        if self._rank < 2:
            patience_s = DEPUTY_PATIENCE_S * self._rank
            gap_s = 3 * self._beat_s
            watch = Watch(self._folder, ranks=self._ranks, patience_s=patience_s, gap_s=gap_s, **self._limits)
        while not self._closing.wait(self._beat_s):
            if self._beat is not self._written:
                self._write()
            hung = watch is not None and watch.look(self._beat)
            if hung or (self._folder / REQUEST).exists():
                self._end(watch, judges=hung)

    def _end(self, watch: Watch | None, *, judges: bool) -> None:
        """Leave the stacks and end the process: with the verdict where it is ours to give, else when it is there."""
        with suppress(OSError):
            self._stream.write(f"\n{ANSWERED} at '{self._beat.place}', step {self._beat.step}\n")
            self._stream.flush()
            faulthandler.dump_traceback(file=self._stream, all_threads=True)
        asked = time.monotonic()
        verdict = self._folder / VERDICT
        while not judges and not verdict.exists() and time.monotonic() < asked + LEAVE_S:
            time.sleep(0.05)
            judges = watch is not None and time.monotonic() > asked + ANSWER_S + DEPUTY_PATIENCE_S
        if judges and watch is not None and not verdict.exists():
            os.write(2, (watch.judge() + "\n").encode())
        os._exit(HUNG)
