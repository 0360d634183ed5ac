"""The status says what the files and the scheduler say, in words, and nothing else."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm.scheduler.job_state import JobState
from launch.slurm.telling.plain import plain
from launch.slurm.telling.reasons import REASONS, reason_of, waiting
from launch.slurm.telling.status import JobStatus, ids_to_ask, read_status
from launch.slurm.telling.status_lines import compact, lines_of, tree
from tests.launch.slurm.recorded import JOBS, Recorded, halfway

REPO = Path(__file__).resolve().parents[3]
T0 = 1_700_000_000.0


def states(**known: JobState) -> dict[str, JobState]:
    found = {}
    for name, state in known.items():
        id = JOBS[name]["id"]
        found[id] = JobState(**{**state.__dict__, "id": id})
    return found


def running(**more: object) -> JobState:
    return JobState("", state="RUNNING", **more)  # type: ignore[arg-type]


def pending(reason: str, **more: object) -> JobState:
    return JobState("", state="PENDING", reason=reason, **more)  # type: ignore[arg-type]


def ended(state: str) -> JobState:
    return JobState("", state=state)


HALFWAY = {
    "pretrain": running(nodes=("node1", "node2"), restarts=1, ends=T0 + 1000),
    "pairs": running(nodes=("node4",)),
    "finetune": pending("Dependency"),
    "eval": pending("Dependency"),
    "export": pending("Dependency"),
}


def read(run: Path, known: dict[str, JobState] | None, at: float = 330) -> dict[str, JobStatus]:
    return {job.name: job for job in read_status(run, known, now=T0 + at).jobs}


def text(run: Path, known: dict[str, JobState] | None, at: float = 330, width: int = 10_000) -> str:
    status = read_status(run, known, now=T0 + at)
    return "\n".join(line.plain for line in lines_of(status, now=T0 + at, width=width))


def test_a_chain_halfway(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    assert sorted(ids_to_ask(run)) == ["12", "13", "14", "15", "16"]  # prepare has said by itself that it is done
    jobs = read(run, states(**HALFWAY))
    assert [(name, job.state) for name, job in jobs.items()] == [
        ("prepare", "done"), ("pairs", "running"), ("pretrain", "running"), ("finetune", "waits"), ("eval", "waits"),
        ("export", "waits"),
    ]  # fmt: skip
    pretrain = jobs["pretrain"]
    assert pretrain.progress is not None
    assert (pretrain.progress.step, pretrain.progress.steps, pretrain.progress.loss) == (60, 200, 2.5)
    assert pretrain.eta_s == pytest.approx(140.0) and pretrain.more_links == 0  # a second a step
    assert (pretrain.links, pretrain.restarts, pretrain.nodes) == (2, 1, ("node1", "node2"))
    assert jobs["pairs"].stages_done == ("mine",) and jobs["pairs"].stage == "synth" and jobs["pairs"].eta_s is None
    assert jobs["finetune"].why == "waits for pretrain (running) and pairs (running)"
    shown = text(run, states(**HALFWAY))
    assert re.search(r"└─ pretrain +12 +● running +step 60 of 200 +2\.5 +2 min 20 s +node\[1-2\] +1\n", shown)
    assert re.search(r"\n   └─ finetune +14 +… waits", shown)


def test_the_time_that_is_left_counts_the_links_that_are_needed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    known = states(**{**HALFWAY, "pretrain": running(ends=T0 + 370)})
    pretrain = read(run, known)["pretrain"]
    # 140 s are needed, 40 are left; a link of 81 s spends 11 on its start: two more
    assert pretrain.more_links == 2 and pretrain.eta_s == pytest.approx(140 + 2 * 11)
    assert "2 min 42 s + 2 links" in text(run, known)


def test_an_eta_is_not_made_up(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    silent = read(run, states(**HALFWAY), at=800)["pretrain"]  # no step for eight minutes
    assert silent.eta_s is None
    assert "no step for 7 min 51 s" in text(run, states(**HALFWAY), at=800)
    metrics = run / "history" / "pretrain" / "metrics.jsonl"
    metrics.write_text("".join(line + "\n" for line in metrics.read_text().splitlines()[:30]))  # all of the first link
    assert read(run, states(**HALFWAY))["pretrain"].eta_s is None
    (run / "history" / "pretrain" / "ledger.jsonl").unlink()
    job = read(run, states(**HALFWAY))["pretrain"]
    assert job.progress is not None and job.progress.steps is None and job.eta_s is None


ENDS = [
    ("CANCELLED", "cancelled", "cancelled outside rumpun"),
    ("GONE", "lost", "not known to SLURM any more"),
    ("TIMEOUT", "failed", "time limit"),
    ("NODE_FAIL", "failed", "node1, node2 failed"),
    ("OUT_OF_MEMORY", "failed", "out of memory"),
]


@pytest.mark.parametrize(("state", "word", "why"), ENDS)
def test_a_job_that_vanished_behind_our_back(tmp_path: Path, state: str, word: str, why: str) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    known = states(**{**HALFWAY, "pretrain": ended(state), "finetune": ended("CANCELLED")})
    jobs = read(run, known)
    assert jobs["pretrain"].state == word and why in jobs["pretrain"].why
    assert "rumpun submit" in jobs["pretrain"].why  # what one can do
    assert jobs["finetune"].state == "never started" and jobs["finetune"].why == "pretrain did not end well"
    assert jobs["pretrain"].eta_s is None and jobs["pretrain"].nodes == ()


def test_what_we_asked_to_end_was_not_cancelled_outside(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0).stop(id12="cancelled", id13="resized")
    known = states(**{**HALFWAY, "pretrain": ended("CANCELLED")})
    assert read(run, known)["pretrain"].why == "cancelled"


def test_a_stopped_job_goes_on_or_does_not(tmp_path: Path) -> None:
    made = halfway(tmp_path / "run", epoch=T0)
    made.event("pretrain", "ranks_ended", 331, restart=1, phase="pretrain", outcome="stopped", reason="SIGUSR1")
    made.end("pretrain", 332, "stopped", restart=1, reason="SIGUSR1", next="successor 19", exit=75)
    assert "19" in ids_to_ask(made.run) and "12" not in ids_to_ask(made.run)
    waits = {**states(**HALFWAY), "19": JobState("19", state="PENDING", reason="Priority")}
    job = read(made.run, waits)["pretrain"]
    assert (job.id, job.state) == ("19", "waits") and "other jobs come first" in job.why
    gone = {**states(**HALFWAY), "19": JobState("19", state="GONE")}
    job = read(made.run, gone)["pretrain"]
    assert job.state == "lost" and "was to go on by successor 19, but it is not known" in job.why
    assert read(made.run, None)["pretrain"].why == "it ended (SIGUSR1) and goes on by successor 19"


def test_a_failure_is_one_line_and_cannot_drive_the_terminal(tmp_path: Path) -> None:
    made = halfway(tmp_path / "run", epoch=T0)
    evil = "rank 3 (pid 7): \x1b[2J\x1b]0;owned\x07RuntimeError: \u202eno\nsecond line"
    made.event("pretrain", "ranks_ended", 320, restart=1, phase="pretrain", outcome="failed", reason=evil)
    made.event("pretrain", "ranks", 322, restart=1, phase="pretrain", attempt=1)
    job = read(made.run, states(**HALFWAY))["pretrain"]
    assert job.failure == "rank 3 (pid 7): RuntimeError: \\u202eno" and job.restarts == 2 and job.state == "running"
    shown = text(made.run, states(**HALFWAY))
    assert "last failure, 10 s ago: rank 3" in shown and "\x1b" not in shown
    made.end("pretrain", 330, "failed", restart=1, reason="the same error at the same step", next="none")
    job = read(made.run, states(**{**HALFWAY, "pretrain": ended("FAILED")}))["pretrain"]
    assert (job.state, job.why) == ("failed", "the same error at the same step")


def test_without_a_scheduler_the_files_speak(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    jobs = read(run, None)
    assert jobs["pretrain"].state == "running" and "not asked" in jobs["pretrain"].why
    assert jobs["finetune"].state == "submitted"


def test_a_run_without_jobs_shows_what_it_has(tmp_path: Path) -> None:
    made = Recorded(tmp_path / "run", epoch=T0).stage("corpus", "pretrain").header("finetune", end=40)
    made.start("finetune", 5).steps("finetune", 1, 6, at=6)
    shown = text(made.run, {})
    assert "no jobs" in shown and "corpus, pretrain" in shown and "finetune: step 6 of 10" in shown
    assert ids_to_ask(made.run) == []


def test_a_resubmitted_run_does_not_take_the_old_end_for_its_own(tmp_path: Path) -> None:
    made = halfway(tmp_path / "run", epoch=T0)
    made.end("pretrain", 331, "stopped", restart=1, reason="SIGTERM", next="none")
    made.jobs({**JOBS, "pretrain": {**JOBS["pretrain"], "id": "22", "former": ["12"]}})
    assert "22" in ids_to_ask(made.run)
    waits = {**states(**HALFWAY), "22": JobState("22", state="PENDING", reason="Resources")}
    job = read(made.run, waits)["pretrain"]
    assert (job.state, job.id, job.links) == ("waits", "22", 2) and "waits for nodes" in job.why


@pytest.mark.parametrize("width", [40, 80, 10_000])
def test_all_of_it_is_there_at_any_width(tmp_path: Path, width: int) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    shown = text(run, states(**HALFWAY), width=width)
    for fact in ("pretrain", "step 60 of 200", "2 min 20 s", "node[1-2]", "2.5", "waits for pretrain (running)"):
        assert fact in shown


def test_reasons_in_words() -> None:
    for name in ("Priority", "Resources", "Dependency", "BeginTime", "JobHeldUser", "DependencyNeverSatisfied"):
        assert REASONS[name].meaning in waiting(name, id="7") or name == "Dependency"
    assert waiting("JobHeldUser", id="7").endswith("scontrol release 7")
    assert "node3" in waiting("ReqNodeNotAvail,_UnavailableNodes:node3", id="7")
    assert "down, drained or reserved" in waiting("(ReqNodeNotAvail, UnavailableNodes:node[3-4])", id="7")
    for name, word, table in (
        ("QOSMaxCpuPerUserLimit", "cores", "qos"), ("AssocGrpNodeLimit", "nodes", "assoc"),
        ("QOSMaxGRESPerUser", "GPUs", "qos"), ("AssocGrpCPUMinutesLimit", "processor time", "assoc"),
        ("AssocMaxJobsLimit", "jobs", "assoc"), ("QOSMaxWallDurationPerJobLimit", "time", "qos"),
    ):  # fmt: skip
        said = waiting(name, id="7")
        assert word in said and f"sacctmgr show {table}" in said and name in said
    assert "says SomethingNew" in waiting("SomethingNew", id="7")
    assert "{id}" not in "".join(waiting(name, id="7") for name in REASONS)
    assert reason_of("None") is None and "not said why" in waiting("", id="7")
    assert waiting("launch_failed_requeued_held", id="9").endswith("scontrol release 9")


def test_node_names_in_short() -> None:
    assert compact(["node1", "node2", "node3", "node7"]) == "node[1-3,7]"
    assert compact(["n08", "n09", "n10", "n11"]) == "n[08-11]"
    assert compact(["gpu-a", "node5", "node12"]) == "gpu-a,node[5,12]"
    assert compact(["login"]) == "login" and compact([]) == ""
    assert compact(["r1n1-ib", "r1n2-ib"]) == "r1n[1-2]-ib"


def test_the_stems_of_a_graph(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    jobs = list(read(run, None).values())
    assert [stem for stem, _ in tree(jobs)] == ["", "├─ ", "└─ ", "   └─ ", "      └─ ", "         └─ "]


def test_control_characters_are_harmless() -> None:
    assert plain("a\x1b[31mb\x1b]8;;http://x\x07c\x9b2Jd\re\x00") == "abcd\\re\\x00"
    assert plain("long" * 10, 8) == "longlon…"


def command(run: Path, *arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from launch.cli import main; sys.argv[0] = 'rumpun'; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, str(run)],
        env={**os.environ, "PYTHONPATH": str(REPO), "PATH": path, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def fake_queue(folder: Path, body: str) -> str:
    """A PATH on which squeue is a script that notes its calls, and nothing else of the scheduler is there."""
    folder.mkdir()
    script = folder / "squeue"
    script.write_text(f'#!/bin/sh\necho "$@" >> "{folder}/calls"\n{body}\n')
    script.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_the_command_asks_once_and_quickly(tmp_path: Path) -> None:
    import time

    run, now = tmp_path / "a run", time.time()
    halfway(run, epoch=now - 330)
    lines = "\n".join(
        [
            f"12|12|N/A|RUNNING|1|1|2|3|{int(now + 1000)}|normal|node[1-2]|None|x",
            "13|13|N/A|RUNNING|0|1|2|3|4|normal|node4|None|x",
            *(f"{n}|{n}|N/A|PENDING|0|1|2|N/A|N/A|normal||Dependency|x" for n in (14, 15, 16)),
        ]
    )
    path = fake_queue(tmp_path / "bin", f"cat <<'END'\n{lines}\nEND")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    answer = command(run, "status", "--json", path=path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert answer.returncode == 0, answer.stderr
    told = {job["name"]: job for job in json.loads(answer.stdout)["jobs"]}
    assert told["pretrain"]["state"] == "running" and told["pretrain"]["nodes"] == ["node1", "node2"]
    assert told["finetune"]["state"] == "waits" and told["prepare"]["state"] == "done"
    assert len((tmp_path / "bin" / "calls").read_text().splitlines()) == 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0
    shown = command(run, "status", path=path)
    assert "step 60 of 200" in shown.stdout and "\x1b" not in shown.stdout


def test_the_command_works_without_a_cluster(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    answer = command(run, "status", path="/nowhere")
    assert answer.returncode == 0, answer.stderr
    assert "note: command squeue: SLURM's commands are not here" in answer.stdout and "prepare" in answer.stdout
    missing = command(tmp_path / "none", "status", path="/nowhere")
    assert missing.returncode == 2 and missing.stderr.startswith("error: run ")


def test_a_scheduler_that_does_not_answer_is_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    halfway(run, epoch=T0)
    path = fake_queue(tmp_path / "bin", "echo 'squeue: error: Invalid user' >&2; exit 1")
    answer = command(run, "status", path=path)
    assert answer.returncode == 0, answer.stderr
    assert "the scheduler did not answer" in answer.stdout


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; import launch.slurm.telling.status_command, launch.slurm.telling.status_lines, launch.slurm.telling.watch, launch.slurm.telling.logs,"
        " launch.slurm.telling.history_command, launch.slurm.telling.timeline, launch.slurm.scheduler.commands, rich.console, rich.live;"
        "print([m for m in ('torch', 'numpy', 'transformers', 'pandas', 'pyarrow', 'pydantic') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True
    )
    assert answer.stdout.strip() == "[]", answer.stderr
