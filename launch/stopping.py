"""Requests to stop that reach the launcher while ranks are training.

Invariant: while ranks run, no signal ends the launcher before they have saved: SIGTERM, SIGUSR1, SIGUSR2 and a first ^C
only note the request; a ^C after it asks for the end at once.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from train.guard import STOP_SIGNALS


class Asked:
    """A context that catches requests to stop; outside the main thread it catches nothing.

    Attributes:
        reason: the first request ("SIGUSR1", "^C"), None while nobody asked. at_once: ^C came after a request.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.at_once = False
        self._signal = signal.SIGTERM
        self._before: dict[int, Any] = {}

    @property
    def signal(self) -> signal.Signals:
        """What to send to the ranks: the signal that came, SIGTERM for ^C."""
        return self._signal

    @property
    def line(self) -> str:
        """What the user is told when the request is passed on."""
        if self.reason == "^C":
            return "saving after this step; ^C again ends at once"
        return f"{self.reason}: saving after this step; ^C ends at once"

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            self.at_once = self.reason is not None
            self.reason = self.reason or "^C"
        elif self.reason is None:
            self._signal = signal.Signals(number)
            self.reason = self._signal.name

    def __enter__(self) -> Asked:
        if threading.current_thread() is threading.main_thread():
            for number in (*STOP_SIGNALS, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as shells do to ^C of background commands
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
