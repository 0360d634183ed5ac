"""`rumpun history` on recorded chains: the files are read, accounting is asked, and the page can be drawn from what it leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from eval.report.chain import chain as chain_section
from eval.report.chain import read_chain
from launch.slurm.scheduler.job_state import JobState
from launch.slurm.telling.causes import cause_of
from launch.slurm.telling.history_command import make_timeline, seconds_of
from launch.slurm.telling.phase_files import last_records, read_phase, starts_of, total_steps
from tests.launch.slurm.recorded import JOBS, Recorded, halfway

REPO = Path(__file__).resolve().parents[3]
T0 = 1_700_000_000.0


def fake_slurm(folder: Path, *, queue: str = "", accounts: str = "") -> str:
    """A PATH with an squeue and an sacct that print what they are told to, for the ids that they are asked for."""
    folder.mkdir()
    for name, lines, pick in (("squeue", queue, "cat"), ("sacct", accounts, "cat")):
        (folder / f"{name}.txt").write_text(lines)
        (folder / name).write_text(f'#!/bin/sh\necho "$@" >> "{folder}/{name}.calls"\n{pick} "{folder}/{name}.txt"\n')
        (folder / name).chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def account(id: str, state: str, start: float, end: float, *, submit: float, nodes: str = "node[1-2]") -> str:
    return f"{id}|{id}|{state}|{submit:.0f}|{submit + 20:.0f}|{start:.0f}|{end:.0f}|normal|{nodes}|0:0||rumpun"


@pytest.fixture
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


def kinds(record: dict[str, Any], job: str, number: int = 1) -> dict[str, float]:
    [link] = [link for link in record["links"] if (link["job"], link["number"]) == (job, number)]
    return seconds_of(link)


def test_a_recorded_chain_without_a_scheduler(tmp_path: Path, no_cluster: None) -> None:
    made = halfway(tmp_path / "run", epoch=T0)
    record, notes = make_timeline(made.run)
    assert any("SLURM's commands are not here" in note for note in notes)
    # handed in at 0, eligible at 75, started at 79, controller until 82, preflight 8 s, ranks at 91, first step at 105
    assert kinds(record, "pretrain") == {
        "queue": 4.0, "controller": 4.0, "preflight": 8.0, "processes": 10.0, "loading": 4.0, "train": 30.0, "save": 5.0,
        "idle": 1.0,
    }  # fmt: skip
    second = kinds(record, "pretrain", 2)
    assert second["train"] == 30.0 and second["delay"] == 144.0 and second["queue"] == 4.0
    assert "may still run" in next(link["cause"] for link in record["links"] if link["job"] == "pairs")
    assert json.loads((made.run / "chain" / "timeline.json").read_text()) == record
    missing: dict[str, str] = {}
    section = chain_section(read_chain(made.run, missing))
    assert section is not None and not missing and section["sentence"].startswith("4 links of 3 jobs")


def test_accounting_knows_the_ends_and_the_causes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    epoch = float(int(now - 400))
    made = halfway(tmp_path / "run", epoch=epoch)
    rows = [
        account("12", "PREEMPTED", epoch + 79, epoch + 150, submit=epoch),
        account("12", "TIMEOUT", epoch + 289, epoch + 380, submit=epoch + 150),
        account("13", "CANCELLED by 0", epoch + 69, epoch + 95, submit=epoch, nodes="node4"),
    ]
    monkeypatch.setenv("PATH", fake_slurm(tmp_path / "bin", accounts="\n".join(rows) + "\n"))
    record, notes = make_timeline(made.run)
    causes = {(link["job"], link["number"]): link["cause"] for link in record["links"]}
    assert causes == {
        ("prepare", 1): "", ("pretrain", 1): "preempted", ("pretrain", 2): "time limit",
        ("pairs", 1): "cancelled outside rumpun",
    }  # fmt: skip
    first, second = kinds(record, "pretrain"), kinds(record, "pretrain", 2)
    assert first["idle"] == 10.0  # to the end that accounting knows
    # since 329 nothing was heard of it, and nothing after step 30 was saved: all of it will be computed again
    assert second["lost"] == 81.0 and "train" not in second
    lost = [p for link in record["links"] for p in link["intervals"] if p["kind"] == "lost"]
    assert {part["note"] for part in lost} == {"time limit", "cancelled outside rumpun"}
    assert notes == []
    calls = (tmp_path / "bin" / "squeue.calls").read_text().splitlines()
    assert len(calls) == 1


def test_what_still_runs_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    epoch = float(int(now - 330))
    made = halfway(tmp_path / "run", epoch=epoch)
    queue = "\n".join(
        f"{id}|{id}|N/A|RUNNING|{restarts}|1|2|{start:.0f}|{now + 900:.0f}|normal|node1|None|x"
        for id, restarts, start in (("12", 1, epoch + 289), ("13", 0, epoch + 69))
    )
    accounts = account("12", "REQUEUED", epoch + 79, epoch + 150, submit=epoch) + "\n"
    monkeypatch.setenv("PATH", fake_slurm(tmp_path / "bin", queue=queue + "\n", accounts=accounts))
    record, _ = make_timeline(made.run)
    running = {link["job"] for link in record["links"] if link["running"]}
    assert running == {"pretrain", "pairs"}
    assert kinds(record, "pretrain", 2)["train"] == pytest.approx(now - epoch - 299, abs=5.0)
    assert not [p for link in record["links"] for p in link["intervals"] if p["kind"] == "lost"]
    assert {link["cause"] for link in record["links"]} == {"", "preempted (SIGTERM)"}


def test_the_links_of_an_array_are_found_under_its_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Recorded(tmp_path / "run", epoch=T0)
    made.jobs({"pretrain": {**JOBS["pretrain"], "route": "array", "links": 3, "after": []}})
    for number, id in enumerate(("13", "14")):
        at = 100.0 * number
        made.event(
            "pretrain", "begin", at + 1, job=id, start=T0 + at, nodes=["node1"], submitted=T0 - 9, eligible=T0 - 9
        )
    rows = [
        f"{raw}|12_{task}|{state}|{T0 - 9:.0f}|{T0 - 9:.0f}|{T0 + at:.0f}|{T0 + at + 50:.0f}|normal|node1|0:0||x"
        for raw, task, state, at in (("13", 0, "PREEMPTED", 0), ("14", 1, "TIMEOUT", 100))
    ]
    monkeypatch.setenv("PATH", fake_slurm(tmp_path / "bin", accounts="\n".join(rows) + "\n"))
    record, _ = make_timeline(made.run)
    assert [(link["cause"], link["end"] - T0) for link in record["links"]] == [
        ("preempted", 50.0),
        ("time limit", 150.0),
    ]
    assert kinds(record, "pretrain", 2) == {"queue": 50.0, "controller": 50.0}


def test_a_local_run_has_a_history(tmp_path: Path, no_cluster: None) -> None:
    made = Recorded(tmp_path / "run", epoch=T0).stage("corpus", at=0, seconds=20).header("pretrain", end=40)
    made.start("pretrain", 30).steps("pretrain", 1, 4, at=32).saved("pretrain", 4)
    made.steps("pretrain", 5, 6, at=36, kept=False).start("pretrain", 60, step=4).steps("pretrain", 5, 8, at=63)
    record, notes = make_timeline(made.run)
    assert [(link["job"], link["number"]) for link in record["links"]] == [
        ("corpus", 1),
        ("pretrain", 1),
        ("pretrain", 2),
    ]
    assert kinds(record, "pretrain") == {"loading": 2.0, "train": 4.0, "lost": 2.0}
    assert record["jobs"] is False and notes == [
        "no jobs: these are the starts in its ledgers and the stages that it built"
    ]


def test_a_folder_without_anything_says_so(tmp_path: Path, no_cluster: None) -> None:
    record, _ = make_timeline(tmp_path)
    assert record["links"] == [] and not (tmp_path / "chain").exists()


def test_the_command(tmp_path: Path) -> None:
    made = halfway(tmp_path / "a run", epoch=T0)
    made.event(
        "pretrain",
        "ranks_ended",
        330,
        restart=1,
        phase="pretrain",
        outcome="failed",
        reason="rank 3 \x1b[31mfell",
        last=60,
    )
    code = "import sys; from launch.cli import main; sys.argv[0] = 'rumpun'; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": str(REPO), "PATH": "/nowhere"}

    def command(*words: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, "history", *words, str(made.run)], env=env, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    said = command()
    assert "\x1b" not in said and "lost: 31 s of pretrain, link 2: rank 3 fell" in said
    assert "start-up, mean of 2 links that trained:" in said and "goodput: " in said
    assert json.loads(command("--json"))["links"][0]["job"] == "prepare"


NODES = {"event": "begin", "time": T0, "nodes": ["node1", "node2"], "end_limit": T0 + 1000}


@pytest.mark.parametrize(
    ("end", "state", "stop", "cause"),
    [
        ({"outcome": "done"}, "COMPLETED", None, ""),
        ({"outcome": "stopped", "reason": "SIGTERM"}, "PREEMPTED", None, "preempted"),
        ({"outcome": "stopped", "reason": "SIGTERM"}, None, None, "preempted or asked to end (SIGTERM)"),
        ({"outcome": "stopped", "reason": "SIGUSR1", "time": T0 + 900}, "REQUEUED", None, "time limit"),
        ({"outcome": "stopped", "reason": "time limit"}, None, None, "time limit"),
        ({"outcome": "stopped", "reason": "SIGUSR1", "time": T0 + 5}, None, None, "warned of its time limit or of a preemption (SIGUSR1)"),
        ({"outcome": "stopped", "reason": "SIGTERM", "next": "requeued"}, "REQUEUED", None, "requeued by hand"),
        ({"outcome": "stopped", "reason": "SIGUSR1"}, "COMPLETED", "resized", "stopped to go on with other nodes"),
        ({"outcome": "stopped", "reason": "SIGUSR1"}, None, "cancelled", "cancelled by the user"),
        ({"outcome": "failed", "reason": "rank 3 was killed by SIGKILL\nmore"}, "FAILED", None, "rank 3 was killed by SIGKILL"),
        ({"outcome": "superseded"}, None, None, "a later start of the same job had taken over"),
        (None, "NODE_FAIL", None, "node2 failed"),
        ({"outcome": "failed", "reason": "rank 0 lost its peer"}, "NODE_FAIL", None, "node2 failed"),
        (None, "TIMEOUT", None, "time limit"),
        (None, "OUT_OF_MEMORY", None, "out of memory"),
        (None, "REQUEUED", None, "requeued by hand"),
        (None, "CANCELLED", None, "cancelled outside rumpun"),
        (None, "CANCELLED", "cancelled", "cancelled by the user"),
        (None, "FAILED", None, "killed or failed (exit code 0:9)"),
    ],
)  # fmt: skip
def test_causes(end: dict[str, Any] | None, state: str | None, stop: str | None, cause: str) -> None:
    events = [NODES, *([{"event": "end", "time": T0 + 50, **end}] if end else [])]
    run = None if state is None else JobState("7", state=state, exit_code="0:9")
    assert cause_of(events, run, stop=stop, next_nodes=["node1", "node3"]) == cause


def test_a_lost_node_is_named_as_far_as_it_shows() -> None:
    run = JobState("7", state="NODE_FAIL", nodes=("node1", "node2", "node3"))
    assert cause_of([], run, next_nodes=None) == "one of node1, node2, node3 failed"
    assert cause_of([], run, next_nodes=["node1"]) == "one of node2, node3 failed"
    assert cause_of([], JobState("7", state="NODE_FAIL", nodes=("node9",))) == "node9 failed"


def test_torn_files_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "run", epoch=T0).header("pretrain", end=100)
    made.start("pretrain", 5).steps("pretrain", 1, 3, at=6).saved("pretrain", 2)
    folder = made.run / "history" / "pretrain"
    for name in ("metrics.jsonl", "ledger.jsonl"):
        with (folder / name).open("a") as stream:
            stream.write('{"kind":"step","step":4,"lo')
    (folder / "metrics.jsonl").write_bytes(b"\xff\xfe\n[1]\nnull\n" + (folder / "metrics.jsonl").read_bytes())
    phase = read_phase(folder)
    assert [step.number for step in phase.steps] == [1, 2, 3]
    assert phase.starts[0].saved == (2,) and phase.starts[0].after == 0 and phase.starts[0].time == T0 + 5
    assert total_steps(folder / "ledger.jsonl") == 25
    assert [r["step"] for r in last_records(folder / "metrics.jsonl") if r.get("step")] == [1, 2, 3]
    assert total_steps(tmp_path / "none") is None and starts_of(tmp_path / "none") == []
    (folder / "ledger.jsonl").write_text("")
    assert total_steps(folder / "ledger.jsonl") is None


def test_the_last_records_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": n, "filler": "x" * 200}) + "\n" for n in range(2000)))
    found = last_records(path)
    assert [r["step"] for r in found] == list(range(found[0]["step"], 2000)) and 200 < len(found) < 400
