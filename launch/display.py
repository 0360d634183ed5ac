"""Progress on a terminal or in a log. Nothing that happens to the output may stop the work.

On a terminal a bar moves; anywhere else (a file, `| tee`, a job log) the same facts come as plain lines: one when a bar
starts, at most one every ten seconds, one when it ends. A reader that goes away (`| head`) silences the display and
nothing else.
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from data_prep.progress import Progress, format_seconds

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINE_EVERY_S = 10.0
REDRAW_EVERY_S = 0.1


def format_count(value: float | str) -> str:
    """A number for people: integers with thousands separators, others with four significant digits; text as it is."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    return f"{value:.4g}"


def counted(value: int, unit: str) -> str:
    """`3 rows`, `1 row`, `1 query`: a number with its unit, which is given in the plural."""
    if value == 1:
        unit = unit[:-3] + "y" if unit.endswith("ies") else unit.removesuffix("s")
    return f"{value:,} {unit}"


class TerminalProgress(Progress):
    """Shows the stage, its bars and the values beside them.

    Args:
        stream: where to write, standard output by default. It is flushed after every line.
        every_s: seconds between two lines of one bar where the stream is no terminal.
        clock: monotonic seconds; tests pass their own.
    """

    def __init__(
        self,
        *,
        stream: TextIO | None = None,
        every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        # Python sets sys.stdout to None where the program was started with it closed.
        self._silent = stream is None and sys.stdout is None
        self._stream = stream or sys.stdout or io.StringIO()
        self._every_s, self._clock = every_s, clock
        self._stage = ""
        self._label, self._unit = "", "rows"
        self._total: int | None = None
        self._done, self._started_s, self._shown_s = 0, 0.0, 0.0
        self._shown: dict[str, float | str] = {}
        self._open = False
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        try:
            self._terminal = self._stream.isatty() and os.environ.get("TERM", "") != "dumb"
        except ValueError:
            self._terminal, self._silent = False, True

    @contextmanager
    def stage(self, name: str, index: int, count: int) -> Iterator[dict[str, int | float]]:
        """Bracket stage number `index` (from 1) of `count`.

        Yields a dict: counts that are put into it are printed on the line that closes the stage. After an exception no
        closing line is printed.
        """
        self._stage = name
        started_s = self._clock()
        counts: dict[str, int | float] = {}
        self.note(f"[{name}] stage {index} of {count}")
        try:
            yield counts
            self._finish_bar()
            shown = ", ".join(f"{key} {format_count(value)}" for key, value in counts.items() if value)
            self.note(f"[{name}] done in {format_seconds(self._clock() - started_s)}" + (f": {shown}" if shown else ""))
        finally:
            self._drop_bar()
            self._stage = ""

    def skipped(self, name: str) -> None:
        """Say that a stage is already done and its inputs have not changed."""
        self.note(f"[{name}] up to date")

    def note(self, line: str) -> None:
        """Print one line, above the bar where there is one."""
        self._write(line)

    def begin(self, label: str, total: int | None = None, unit: str = "rows") -> None:
        """Close the bar before, if any, and open `label` of `total` units (None: unknown)."""
        self._finish_bar()
        self._label, self._total, self._unit = label, total, unit
        self._done, self._shown, self._open = 0, {}, True
        self._started_s = self._shown_s = self._clock()
        if self._terminal and not self._silent:
            self._guard(self._open_bar)
        else:
            self._write(f"{self._prefix()}{label}" + (f": {counted(total, unit)}" if total is not None else ""))

    def advance(self, n: int = 1, **shown: float | str) -> None:
        """Move the bar by `n` units and remember the values to show beside it."""
        self._done += n
        self._shown.update(shown)
        now_s = self._clock()
        if self._bar is not None:
            if now_s - self._shown_s >= REDRAW_EVERY_S or self._done == self._total:
                self._shown_s = now_s
                self._guard(self._redraw)
        elif self._open and not self._terminal and now_s - self._shown_s >= self._every_s:
            self._shown_s = now_s
            self._write(self._line(now_s))

    def close(self) -> None:
        """End the open bar, with its last line. Safe to call twice."""
        self._finish_bar()

    def _prefix(self) -> str:
        return f"[{self._stage}] " if self._stage else ""

    def _rate(self, now_s: float) -> float:
        return self._done / max(now_s - self._started_s, 1e-9)

    def _values(self) -> str:
        return "".join(f"  {key} {format_count(value)}" for key, value in self._shown.items())

    def _line(self, now_s: float) -> str:
        rate = self._rate(now_s)
        done = f"{self._done:,}/{self._total:,}" if self._total is not None else counted(self._done, self._unit)
        eta = ""
        if self._total is not None and 0 < self._done < self._total:
            eta = f"  ETA {format_seconds((self._total - self._done) / rate)}"
        return f"{self._prefix()}{self._label} {done}  {format_count(rate)}/s{eta}{self._values()}"

    def _finish_bar(self) -> None:
        if not self._open:
            return
        self._drop_bar()
        now_s = self._clock()
        took = f"in {format_seconds(now_s - self._started_s)}"
        done, rate = counted(self._done, self._unit), f"  {format_count(self._rate(now_s))}/s"
        if self._total is not None and self._done != self._total:
            done = f"{self._done:,} of {counted(self._total, self._unit)}"
        elif self._total is None and self._done == 0:
            done = rate = ""  # a bar that never counted: saving, say
        said = " ".join(word for word in (self._label, done, took) if word)
        self._write(f"{self._prefix()}{said}{rate}{self._values()}")

    def _drop_bar(self) -> None:
        self._open = False
        if self._bar is not None:
            bar, self._bar, self._task = self._bar, None, None
            self._guard(bar.stop)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        # No redirected output: after a hang-up nothing would give sys.stderr back, and errors would vanish.
        # No refresh thread: a thread could be copied half-way into a forked worker and would draw beside its output.
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(file=self._stream, force_terminal=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._bar.add_task(f"{self._prefix()}{self._label}", total=self._total, text="")
        self._bar.start()
        self._bar.refresh()

    def _redraw(self) -> None:
        if self._bar is None or self._task is None:
            return
        text = self._line(self._clock()).removeprefix(f"{self._prefix()}{self._label} ")
        self._bar.update(self._task, completed=self._done, text=text)
        self._bar.refresh()

    def _write(self, line: str) -> None:
        def write() -> None:
            if self._bar is not None:
                self._bar.console.print(line, markup=False, highlight=False)
            else:
                self._stream.write(line + "\n")
            self._stream.flush()

        self._guard(write)

    def _guard(self, action: Callable[[], None]) -> None:
        """Run `action`; where the reader is gone, be silent from now on."""
        if self._silent:
            return
        try:
            action()
        except (OSError, ValueError):
            # BrokenPipeError from `| head`, EIO from a terminal that hung up, ValueError from a closed stream.
            self._silent = True
            self._bar = self._task = None
            discard_output(self._stream)


def discard_output(stream: TextIO) -> None:
    """Point a broken stream at the null device, so that Python's flush at exit does not fail a finished run."""
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(null, stream.fileno())
        finally:
            os.close(null)
    except (OSError, ValueError):
        pass
