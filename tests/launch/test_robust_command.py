"""`rumpun robust`: what it prints and writes, and the mistakes of somebody who types it for the first time."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from data_prep.errors import UserError
from launch.robust_command import config_of, robust_command, system_of
from tests.eval.robustness.planted import write_set

REPO = Path(__file__).resolve().parents[2]

app = typer.Typer()
app.command()(robust_command)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_set(root / "alpha", seed=1)
    write_set(root / "beta", seed=2)
    return root


def test_it_prints_a_table_and_writes_the_numbers_and_a_page(sets: Path, tmp_path: Path) -> None:
    words = [
        "bm25",
        "--sets",
        f"{sets}/*",
        "--kinds",
        "typo_swap,emoji,number_swap,out_of_domain",
        "--strengths",
        "0.5,1",
    ]
    done = CliRunner().invoke(app, [*words, "--queries", "8", "--out", str(tmp_path / "new" / "out")])
    assert done.exit_code == 0, done.output
    assert "worst kind" in done.output and "typo_swap" in done.output and "AUROC" in done.output
    results = json.loads((tmp_path / "new" / "out" / "robustness.json").read_text())
    assert results["kinds"] == ["typo_swap", "emoji", "number_swap"] and results["strengths"] == [0.5, 1.0]
    assert (tmp_path / "new" / "out" / "robustness.html").read_text().startswith("<!doctype html>")
    lost = {(r["kind"], r["strength"]): r["lost"] for r in results["rows"]}
    assert lost["typo_swap", 1.0] > 0.5 and lost["emoji", 1.0] == 0  # BM25 reads words, and no emoji


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bm25", "--sets", "nowhere/*"], "nowhere"),
        (["bm25", "--sets", "SETS", "--kinds", "typo"], "'typo' is no kind; the kinds are typo_neighbour"),
        (["bm25", "--sets", "SETS", "--kinds", ","], "at least one"),
        (["bm25", "--sets", "SETS", "--strengths", "a"], "no list of numbers"),
        (["bm25", "--sets", "SETS", "--strengths", "0"], "greater than 0"),
        (["bm25", "--sets", "SETS", "--strengths", "1,0.5"], "rising"),
        (["bm25", "bm25", "--sets", "SETS"], "the same name"),
        (["./no-such-model", "--sets", "SETS"], "no such folder"),
        (["package:no_such_package", "--sets", "SETS"], "no_such_package"),
        (["bm25", "--sets", "SETS", "--out", "FILE"], "is a file"),
        (["bm25", "--sets", "SETS", "--out", "BELOW"], "cannot be made"),
        (["bm25", "--sets", "SETS", "SET"], "put quotes around the pattern"),
    ],
)
def test_a_mistake_is_one_line_that_says_value_rule_and_fix(
    words: list[str], said: str, sets: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    words = [
        {
            "SETS": f"{sets}/*",
            "SET": f"{sets}/alpha",
            "FILE": str(tmp_path / "file"),
            "BELOW": str(tmp_path / "file" / "out"),
        }.get(word, word)
        for word in words
    ]
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, UserError), done.output
    assert said in str(done.exception) and "Fix: " in str(done.exception) and "\n" not in str(done.exception)


def test_models_have_short_names(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine" / "export" / "model").mkdir(parents=True)
    assert system_of(str(tmp_path / "runs" / "mine" / "export" / "model")).name == "mine"
    assert system_of(str(tmp_path / "runs" / "mine")).name == "mine"
    assert system_of("org/some-model").name == "some-model"
    assert system_of("bm25").kind == "bm25"
    assert config_of(None, None, 7).queries_per_set == 7


def test_an_interrupt_leaves_nothing_behind(sets: Path, tmp_path: Path) -> None:
    code = "import typer; from launch.robust_command import robust_command as r; a = typer.Typer(); a.command()(r); a()"
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    words = [sys.executable, "-c", code, *["bm25"], "--sets", f"{sets}/*", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    process.stdout.readline()  # the bar has started
    process.send_signal(signal.SIGINT)
    ended = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < ended:
        time.sleep(0.05)
    assert process.returncode not in (None, 0)
    assert "Traceback" not in process.stdout.read()
    process.stdout.close()
    assert list(scratch.iterdir()) == [] and list((tmp_path / "out").iterdir()) == []
