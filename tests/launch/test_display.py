from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.progress import format_seconds
from launch.display import TerminalProgress, format_count


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def _progress() -> tuple[TerminalProgress, io.StringIO, Clock]:
    out, clock = io.StringIO(), Clock()
    return TerminalProgress(stream=out, clock=clock), out, clock


def test_plain_lines_say_where_it_is() -> None:
    progress, out, clock = _progress()
    with progress.stage("finetune", 2, 9) as counts:
        progress.begin("steps", 300, "steps")
        for _ in range(120):
            clock.now_s += 0.125
            progress.advance(1, loss=0.51234)
        clock.now_s += 0.125
        progress.advance(180, loss=0.25)
        counts["pairs"] = 1234
    assert out.getvalue().splitlines() == [
        "[finetune] stage 2 of 9",
        "[finetune] steps: 300 steps",
        "[finetune] steps 80/300  8/s  ETA 28 s  loss 0.5123",
        "[finetune] steps 300 steps in 15 s  19.83/s  loss 0.25",
        "[finetune] done in 15 s: pairs 1,234",
    ]


def test_at_most_one_line_in_ten_seconds() -> None:
    progress, out, clock = _progress()
    progress.begin("reading", None, "lines")
    for _ in range(10_000):
        clock.now_s += 0.01
        progress.advance(3)
    progress.close()
    progress.close()
    lines = out.getvalue().splitlines()
    assert 10 <= len(lines) <= 12
    assert lines[0] == "reading"
    assert lines[-1] == "reading 30,000 lines in 1 min 40 s  300/s"


def test_a_failed_stage_prints_no_done_line() -> None:
    progress, out, _ = _progress()
    with pytest.raises(RuntimeError, match="broke"), progress.stage("mine", 1, 1):
        progress.begin("rows", 5)
        raise RuntimeError("broke")
    assert "done" not in out.getvalue()
    progress.skipped("corpus")
    assert out.getvalue().endswith("[corpus] up to date\n")


def test_a_value_that_looks_like_markup_is_text() -> None:
    progress, out, _ = _progress()
    progress.begin("[bold]x[/nothing]", 1)
    progress.advance(1, file="[/red] a.txt")
    progress.close()
    assert "[bold]x[/nothing]" in out.getvalue()
    assert "[/red] a.txt" in out.getvalue()


_PROGRAM = """
import sys, time
from launch.display import TerminalProgress
progress = TerminalProgress(every_s=0.0)
with progress.stage("finetune", 1, 1):
    progress.begin("[/steps]", 40)
    for step in range(40):
        time.sleep(0.005)
        progress.advance(1, loss=1 / (step + 1), file="[/red]")
    progress.note("a note [/b]")
    progress.begin("unknown")
    progress.advance(5)
sys.stderr.write("worked to the end")
"""


def test_a_reader_that_leaves_does_not_stop_the_work(repo: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], cwd=repo, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.readline() == "[finetune] stage 1 of 1\n"
    child.stdout.close()
    assert child.stderr.read() == "worked to the end"
    assert child.wait(30) == 0


def test_a_closed_standard_output(repo: Path) -> None:
    answer = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{_PROGRAM}' >&-"], cwd=repo, capture_output=True, text=True, timeout=60
    )
    assert (answer.returncode, answer.stderr) == (0, "worked to the end")


def _on_terminal(repo: Path, *, hang_up: bool) -> tuple[int, str]:
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM],
        cwd=repo,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:
            break
        if not block or (hang_up and b"1/40" in seen + block):
            break
        seen += block
    os.close(ours)
    errors = child.communicate(timeout=60)[1]
    assert (child.returncode, errors) == (0, b"worked to the end")
    return child.returncode, seen.decode()


def test_a_terminal_shows_a_bar_and_keeps_the_last_lines(repo: Path) -> None:
    code, seen = _on_terminal(repo, hang_up=False)
    assert code == 0
    assert "━" in seen
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen)
    assert re.search(r"\[finetune\] \[/steps\] 40 rows in .*loss 0.025  file \[/red\]", plain)
    assert "a note [/b]" in plain
    assert "[finetune] done in" in plain
    assert seen.count("\x1b[?25l") == seen.count("\x1b[?25h"), "the cursor must come back"


def test_a_terminal_that_hangs_up_does_not_stop_the_work(repo: Path) -> None:
    code, _ = _on_terminal(repo, hang_up=True)
    assert code == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_seconds(seconds: float, words: str) -> None:
    assert format_seconds(seconds) == words


def test_counts() -> None:
    assert [format_count(v) for v in (1234567, 3.0, 0.512349, 1e-7, "ms")] == [
        "1,234,567",
        "3",
        "0.5123",
        "1e-07",
        "ms",
    ]
    assert format_count(float("nan")) == "nan"
    assert format_count(float("inf")) == "inf"
