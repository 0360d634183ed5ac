"""`rumpun compare` from the command: one run gives its page anew, several one page, mistakes one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from data_prep.errors import UserError
from launch.report_command import check_out, compare_command
from tests.eval.run_fixture import write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run = write_run(tmp_path / "made", queries=12, sets=("news",))
    for name in ("first", "second"):
        shutil.copytree(run, tmp_path / "runs" / name)
    return tmp_path / "runs"


def said(*argv: str | Path) -> str:
    app = typer.Typer()
    app.command("compare")(compare_command)
    answer = CliRunner().invoke(app, [str(a) for a in argv], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_one_page_for_several_and_a_fresh_one_for_one(runs: Path) -> None:
    assert "2 runs on 1 shared set, 1 of them paired" in said("first", "second", "--runs", runs)
    assert "Comparison of first and second" in (runs / "compare.html").read_text()
    said(runs / "first")
    assert "<title>first</title>" in (runs / "first" / "report.html").read_text()
    assert not (runs / "first" / "report").exists()


def test_mistakes_are_one_line(runs: Path) -> None:
    for argv, words in (
        (["first", "third", "--runs", runs], "run 'third': no such run"),
        (["first", "first", "--runs", runs], "is named twice"),
        (["first", "second", "--runs", runs, "--out", runs / "page.txt"], "does not end with .html"),
        (["first", "--runs", runs, "--out", runs / "none" / "x.html"], "stands in no folder"),
        (["first", "--runs", runs, "--out", runs / "first" / "eval" / "x.html"], "is in the stage eval of first"),
    ):
        with pytest.raises(UserError, match=words) as refused:
            said(*argv)
        assert "\n" not in str(refused.value)
    (runs / "x.html").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_out(runs / "x.html", [])
