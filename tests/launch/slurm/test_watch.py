"""Watching ends with the jobs, tells what changes and what fails, and never asks oftener than it promised."""

from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from launch.cli import app
from launch.slurm.scheduler.job_state import JobState
from launch.slurm.telling import status_command
from launch.slurm.telling.status import RunStatus, read_status
from launch.slurm.telling.status_command import Asking
from launch.slurm.telling.watch import exit_code, watch
from tests.launch.slurm.recorded import JOBS, Recorded, halfway

T0 = 1_700_000_000.0


class Film:
    """A run whose files change between two looks; `sleep` goes on to the next scene."""

    def __init__(self, made: Recorded) -> None:
        self.made, self.scene, self.at = made, 0, 330.0
        self.states = {job["id"]: JobState(job["id"], state="PENDING", reason="Dependency") for job in JOBS.values()}
        self.states["12"] = JobState("12", state="RUNNING", nodes=("node1", "node2"))
        self.states["13"] = JobState("13", state="RUNNING", nodes=("node4",))

    def look(self) -> RunStatus:
        return read_status(self.made.run, self.states, now=T0 + self.at)

    def sleep(self, _: float) -> None:
        self.scene += 1
        self.at += 2
        made = self.made
        if self.scene == 1:
            made.steps("pretrain", 61, 62, at=329)
        elif self.scene == 2:
            made.log("pretrain/rank-1/stderr.log", "Traceback\n\x1b[31mRuntimeError: no\n")
            made.event(
                "pretrain", "ranks_ended", 333, restart=1, phase="pretrain", outcome="failed", reason="rank 1: no"
            )
            made.event("pretrain", "ranks", 334, restart=1, phase="pretrain", attempt=1)
        elif self.scene == 3:
            made.end("pretrain", 336, restart=1)
            made.stage("pretrain", "synth")
            made.end("pairs", 336)
        elif self.scene == 4:
            self.states["14"] = JobState("14", state="CANCELLED")
        elif self.scene == 5:
            for id in ("15", "16"):
                self.states[id] = JobState(id, state="CANCELLED", reason="Dependency")
        assert self.scene < 9, "it went on after all had ended"


def test_lines_where_there_is_no_terminal(tmp_path: Path) -> None:
    film, out = Film(halfway(tmp_path / "run", epoch=T0)), io.StringIO()
    console = Console(file=out, force_terminal=False, width=80)
    code = watch(film.made.run, film.look, console=console, sleep=film.sleep)
    said = out.getvalue()
    assert code == 1 and film.scene == 5
    assert "\x1b" not in said
    assert "pretrain: step 62 of 200, loss 2.5" in said
    assert said.count("pretrain: rank 1: no") == 1 and "    RuntimeError: no" in said
    assert "pretrain: running → done" in said and "pairs: running → done" in said
    assert "finetune: waits → cancelled: cancelled outside rumpun" in said
    assert "eval: waits → never started: finetune did not end well" in said
    assert said.splitlines()[-1].endswith(
        "all jobs have ended: prepare done, pairs done, pretrain done, finetune cancelled, eval never started, export never started"
    )


def test_a_live_picture_on_a_terminal(tmp_path: Path) -> None:
    film, out = Film(halfway(tmp_path / "run", epoch=T0)), io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, height=60)
    assert watch(film.made.run, film.look, console=console, sleep=film.sleep) == 1
    said = out.getvalue()
    assert "pretrain" in said and "RuntimeError: no" in said and "\x1b[31mRuntimeError" not in said
    assert "never started" in said.split("RuntimeError")[-1]


@pytest.mark.parametrize("terminal", [True, False])
def test_leaving_leaves_the_jobs_alone(tmp_path: Path, terminal: bool) -> None:
    made, out = halfway(tmp_path / "run", epoch=T0), io.StringIO()
    film = Film(made)
    before = sorted((p, p.stat().st_mtime_ns) for p in made.run.rglob("*") if p.is_file())

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    console = Console(file=out, force_terminal=terminal, width=160)
    assert watch(made.run, film.look, console=console, sleep=interrupted) == 130
    assert "left; the jobs go on" in out.getvalue() and "Traceback" not in out.getvalue()
    assert sorted((p, p.stat().st_mtime_ns) for p in made.run.rglob("*") if p.is_file()) == before


def test_a_run_without_jobs_ends_at_once(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "run", epoch=T0).stage("corpus")
    out = io.StringIO()
    console = Console(file=out, force_terminal=False)
    assert watch(made.run, lambda: read_status(made.run, {}, now=T0), console=console, sleep=pytest.fail) == 0
    assert "no jobs to follow" in out.getvalue()


def test_exit_codes(tmp_path: Path) -> None:
    made = halfway(tmp_path / "run", epoch=T0)
    ended = {job["id"]: JobState(job["id"], state="COMPLETED") for job in JOBS.values()}

    def code(**states: str) -> int:
        known = ended | {id.removeprefix("id"): JobState(id.removeprefix("id"), state=s) for id, s in states.items()}
        return exit_code(read_status(made.run, known, now=T0 + 400))

    made.stage("mine", "synth", "pretrain", "finetune", "eval", "export", "report")
    assert code() == 0
    assert code(id14="GONE") == 1
    assert code(id14="CANCELLED") == 75
    assert code(id14="CANCELLED", id15="TIMEOUT") == 1


def test_the_scheduler_is_asked_no_oftener_than_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real shell is crossed: squeue is a script that counts its calls."""
    made = halfway(tmp_path / "run", epoch=time.time() - 330)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "squeue").write_text(f'#!/bin/sh\necho x >> "{folder}/calls"\n')
    (folder / "squeue").chmod(0o755)
    (folder / "sacct").write_text("#!/bin/sh\n")
    (folder / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    asking, clock = Asking(made.run, poll_s=30.0), [1000.0]
    monkeypatch.setattr(status_command.time, "monotonic", lambda: clock[0])
    calls = []
    for second in range(0, 100, 2):
        clock[0] = 1000.0 + second
        if second == 40:  # a job that is named between two questions waits for the next one
            made.end("pretrain", 400, "stopped", restart=1, next="successor 77")
        status = asking.look()
        calls.append(len((folder / "calls").read_text().split()))
        assert {job.name for job in status.jobs} == set(JOBS)
    assert calls[-1] <= 4 and calls[0] == 1


def test_the_commands_refuse_what_is_not_there(tmp_path: Path) -> None:
    runner = CliRunner()
    for name in ("status", "watch", "logs", "history"):
        answer = runner.invoke(app, [name, "nothing", "--runs", str(tmp_path)])
        assert answer.exit_code != 0 and "no such run" in str(answer.exception)
    answer = runner.invoke(app, ["watch", str(tmp_path), "--every", "5"])
    assert answer.exit_code == 2
