"""The right file is found, its end is shown, and what it holds cannot drive the terminal."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.slurm.telling.logs import ending, follow_files, newest_failure, overview, pick, rank_files, show
from tests.launch.slurm.recorded import Recorded, halfway

T0 = 1_700_000_000.0
TRACE = "Traceback (most recent call last):\n  File x\nRuntimeError: out of memory\n"


@pytest.fixture
def made(tmp_path: Path) -> Recorded:
    made = halfway(tmp_path / "a run", epoch=T0)
    for number, name in enumerate(("prepare-11", "pretrain-7", "pretrain-12", "pairs-13_0")):
        path = made.log(f"slurm/{name}.out", f"{name} says\nits end\n")
        os.utime(path, (T0 + number, T0 + number))
    for rank in (0, 1, 10):
        made.log(f"pretrain/rank-{rank}/stderr.log", f"errors of {rank}\n" if rank else "")
        made.log(f"pretrain/rank-{rank}/stdout.log", f"words of {rank}\n")
    return made


def names(files: list[Path]) -> list[str]:
    return ["/".join(path.parts[-3:]) for path in files]


def test_a_job_a_stage_an_id_and_a_rank_find_their_file(made: Recorded) -> None:
    run = made.run
    assert [path.name for path in pick(run, "prepare", None)] == ["prepare-11.out"]
    assert [path.name for path in pick(run, "pretrain", None)] == ["pretrain-12.out"]  # the newest
    assert [path.name for path in pick(run, "7", None)] == ["pretrain-7.out"]
    assert [path.name for path in pick(run, "corpus", None)] == ["prepare-11.out"]  # a stage means its job
    assert [path.name for path in pick(run, "pairs", None)] == ["pairs-13_0.out"]
    assert names(pick(run, "pretrain", 10)) == ["pretrain/rank-10/stderr.log", "pretrain/rank-10/stdout.log"]
    assert names(pick(run, "pretrain", 0)) == ["pretrain/rank-0/stdout.log"]  # the empty one says nothing
    assert list(rank_files(run)["pretrain"]) == [0, 1, 10]


@pytest.mark.parametrize(
    ("what", "rank", "words"),
    [
        ("pretrian", None, ["did you mean pretrain?", "prepare", "pairs", "corpus"]),
        ("pretrain", 2, ["rank 2", "0, 1, 10"]),
        ("prepare", 0, ["has no ranks", "pretrain"]),
        ("finetune", None, ["has not started"]),
        ("\x1b[2Jx", None, ["there are:"]),
    ],
)
def test_what_is_not_there_lists_what_is(made: Recorded, what: str, rank: int | None, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        pick(made.run, what, rank)
    assert all(word in str(caught.value) for word in words) and "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ranks_in_a_row_are_told_as_a_span(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "run", epoch=T0)
    for rank in range(4):
        made.log(f"finetune/rank-{rank}/stderr.log", "x\n")
    with pytest.raises(UserError, match="its ranks are 0 to 3"):
        pick(made.run, "finetune", 9)


def test_the_end_of_a_file_is_exact(tmp_path: Path) -> None:
    path = tmp_path / "big.log"
    lines = [f"line {n} " + "x" * (n % 700) for n in range(4000)]
    path.write_text("\n".join(lines) + "\n")
    for count in (1, 40, 900, 5000):
        assert ending(path, count) == lines[-count:]
    path.write_text("no newline at the end")
    assert ending(path, 3) == ["no newline at the end"]
    path.write_text("")
    assert ending(path, 3) == [] and ending(tmp_path / "gone", 3) == []
    path.write_text("10 %\r50 %\r100 %\nnext\r\n")
    assert ending(path, 3) == ["100 %", "next"]


def test_nothing_in_a_log_drives_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "evil.log"
    path.write_bytes(b"\x1b]0;title\x07red \x1b[31mtext\x1b[0m \x08\x9b2J\xff end\x00\n\x1bP+q\x1b\\dcs\n")
    out = io.StringIO()
    show([path], lines=5, out=out)
    said = out.getvalue()
    assert "red text" in said and "end" in said
    assert not [c for c in said if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160]


def test_the_overview_ends_with_the_newest_failure(made: Recorded) -> None:
    out = io.StringIO()
    overview(made.run, lines=10, out=out)
    assert (
        "pretrain-12.out" in out.getvalue()
        and "1 older" in out.getvalue()
        and "no failure is recorded" in out.getvalue()
    )
    assert "ranks 0 to 10" in out.getvalue()
    made.event("pretrain", "ranks_ended", 320, restart=1, phase="pretrain", outcome="failed", reason="rank 1")
    first = made.log("pretrain/rank-1/stderr.log", TRACE)
    later = made.log("pretrain/rank-10/stderr.log", TRACE.replace("out of memory", "peer lost"))
    os.utime(first, (T0 + 500, T0 + 500))
    os.utime(later, (T0 + 503, T0 + 503))  # it fell because the first did
    assert newest_failure(made.run, "pretrain", ["pretrain"]) == first
    out = io.StringIO()
    overview(made.run, lines=10, out=out)
    assert out.getvalue().endswith("RuntimeError: out of memory\n")


def test_without_a_traceback_the_jobs_own_output_tells(made: Recorded) -> None:
    made.event("prepare", "end", 400, outcome="mistake", reason="a value is wrong")
    out = io.StringIO()
    overview(made.run, lines=1, out=out)
    assert out.getvalue().endswith("prepare-11.out, its last 1 lines\nits end\n")
    assert newest_failure(made.run, "eval", ["eval"]) is None


def test_a_run_without_logs_says_so(tmp_path: Path) -> None:
    out = io.StringIO()
    overview(tmp_path, lines=3, out=out)
    assert "nothing has left a log yet" in out.getvalue()
    with pytest.raises(UserError, match="nothing has left a log"):
        pick(tmp_path, "eval", None)


def test_following_shows_whole_lines_as_they_come(tmp_path: Path) -> None:
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("old\n")
    second.write_text("old\n")
    out, looks = io.StringIO(), 0

    def between(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            with first.open("a") as stream:
                stream.write("new \x1b[1mbold\npart")
        elif looks == 2:
            with first.open("a") as stream:
                stream.write("ial\n")
        elif looks == 3:
            second.write_text("x\n")  # written anew, and shorter
        elif looks == 4:
            raise KeyboardInterrupt

    follow_files([first, second], out=out, sleep=between)
    assert out.getvalue() == f"==> {first}\nnew bold\npartial\n==> {second}\nx\n"
