"""The scheduler's commands: what crosses the shell, what comes back, and how often they are asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fake_slurm import NODES, Clock, FakeSlurm

from data_prep.errors import UserError
from launch.slurm.scheduler.call import user_name
from launch.slurm.scheduler.commands import JobGone, RequeueRefused, Slurm, clean_environment

if TYPE_CHECKING:
    from collections.abc import Callable

    from real_cluster import Cluster

WILL = "sbatch: Job 14 to start at 2026-11-22T20:23:36 using 1 processors on nodes node1 in partition normal\n"


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "a job's script.sbatch"
    path.write_text("#!/bin/bash\n#SBATCH --partition=normal\nsleep 1\n")
    return path


def queued(job: str, state: str, *, task: str = "N/A", base: str = "", reason: str = "None", name: str = "n") -> str:
    """A line of squeue, as SLURM 22.05 prints it with a suffix for every field."""
    times = "1795378299|1795378300|1795378301|N/A"
    return f"{job}|{base or job}|{task}|{state}|1|{times}|normal|node[1-2]|{reason}|{name}|\n"


def accounted(job: str, state: str, *, shown: str = "", end: str = "1795378362", name: str = "n") -> str:
    """A line of sacct --parsable2."""
    times = f"1795378296|1795378296|1795378297|{end}"
    return f"{job}|{shown or job}|{state}|{times}|normal|node1|0:0|None|{name}\n"


# ---- what is there ---------------------------------------------------------------------------------------------------


def test_missing_commands_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeSlurm(tmp_path, monkeypatch, commands=("squeue", "scontrol"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError) as caught:
        Slurm.here()
    assert "sbatch, srun, scancel" in caught.value.value
    assert "login node" in caught.value.fix and "rumpun testbench up" in caught.value.fix
    assert "\n" not in str(caught.value)
    Slurm.here(need=("scontrol",))


@pytest.mark.parametrize(
    ("text", "rule"),
    [  # as SLURM 22.05 prints them
        ("scontrol: error: fetch_config: DNS SRV lookup failed\nscontrol: fatal: Could not establish a configuration "
         "source", "belongs to no cluster"),
        ("squeue: error: ClusterName needs to be specified\nsqueue: fatal: Unable to process configuration file",
         "cannot read its configuration"),
        ('squeue: error: If munged is up, restart with --num-threads=10\nsqueue: error: Munge encode failed: Failed to '
         'access "/run/munge/munge.socket.2": No such file or directory (Did you start munged?)\n'
         "slurm_load_jobs error: Protocol authentication error", "munge"),
    ],
)  # fmt: skip
def test_installed_but_of_no_use_is_one_line(fake: FakeSlurm, script: Path, text: str, rule: str) -> None:
    for command, ask in (
        ("scontrol", lambda: Slurm().partitions()),
        ("squeue", lambda: Slurm().jobs(["1"])),
        ("sbatch", lambda: Slurm().test(script)),
        ("scancel", lambda: Slurm().cancel(["1"])),
    ):
        fake.says(command, err=text + "\n", code=1)
        with pytest.raises(UserError, match=rule) as caught:
            ask()
        assert caught.value.value == f"command {command}" and "\n" not in str(caught.value)
        assert fake.calls(command) == 1


def test_a_program_that_cannot_be_started_is_one_line(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake.folder / "squeue").write_text("not a program")
    monkeypatch.setenv("PATH", str(fake.folder))
    with pytest.raises(UserError, match="command squeue: cannot be started"):
        Slurm().jobs(["1"])


def test_the_user_is_the_one_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "somebody-else")
    monkeypatch.setenv("LOGNAME", "somebody-else")
    assert user_name() == subprocess.run(["id", "-un"], capture_output=True, text=True).stdout.strip()


def test_a_surrounding_job_is_not_inherited(fake: FakeSlurm, monkeypatch: pytest.MonkeyPatch, script: Path) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_MEM_PER_NODE", "SBATCH_PARTITION", "SALLOC_ACCOUNT", "SQUEUE_FORMAT"):
        monkeypatch.setenv(name, "of the outer job")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("RUMPUN_X", "mine")
    fake.says("sbatch", "12\n")
    Slurm().submit(script, tested=True)
    seen = fake.environment("sbatch")
    assert [name for name in seen if name.startswith(("SLURM_", "SBATCH_", "SALLOC_", "SQUEUE_"))] == ["SLURM_CONF"]
    assert seen["RUMPUN_X"] == "mine"
    assert "SLURM_TIME_FORMAT" not in seen  # it would travel into the job
    assert clean_environment({"SLURM_JOB_ID": "1", "PATH": "x"}) == {"PATH": "x"}


# ---- submitting ------------------------------------------------------------------------------------------------------


def test_submitting_passes_words_as_they_are(fake: FakeSlurm, script: Path) -> None:
    fake.says("sbatch", "12;second-cluster\n")
    words = ["a recipe; rm -rf ~", "$(touch x)", 'it\'s "quoted"', "*"]
    assert Slurm().submit(script, options=["--comment=a b; c"], arguments=words, tested=True) == "12"
    assert fake.given("sbatch") == ["--parsable", "--comment=a b; c", str(script), *words]


def test_a_wrapper_that_greets_hides_no_number(fake: FakeSlurm, script: Path) -> None:
    fake.says("sbatch", "-- Welcome, 3 nodes are free --\n--> Verifying valid submit host...OK\n17\n")
    assert Slurm().submit(script, tested=True) == "17"
    fake.says("sbatch", "thank you\n")
    with pytest.raises(UserError, match="is no job's number"):
        Slurm().submit(script, tested=True)


def test_submitting_asks_first(fake: FakeSlurm, script: Path) -> None:
    fake.cluster().says("sbatch", err=WILL, call=1)
    fake.says("sbatch", "12\n", call=2)
    assert Slurm().submit(script, options=["-N2"]) == "12"
    assert fake.given("sbatch", 1) == ["--test-only", "-N2", str(script)]
    assert fake.given("sbatch", 2) == ["--parsable", "-N2", str(script)]


def test_a_lost_answer_does_not_submit_twice(fake: FakeSlurm, script: Path) -> None:
    fake.says(
        "sbatch", err="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", code=1
    )
    fake.does(
        "squeue.answer", f'echo "31|$(date +%s)|{script.resolve()} train"; echo "30|5|{script.resolve()}"; exit 0'
    )
    clock = Clock()
    assert Slurm(clock=clock, sleep=clock.sleep).submit(script, tested=True) == "31"
    assert fake.calls("sbatch") == 1
    assert fake.environment("squeue")["SLURM_TIME_FORMAT"] == "%s"


def test_a_lost_request_is_submitted_again(fake: FakeSlurm, script: Path) -> None:
    fake.says(
        "sbatch", err="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", code=1
    )
    fake.says("sbatch", "12\n", call=3)
    fake.does("squeue.answer", f'echo "30|5|{script.resolve()}"; exit 0')  # the same script, long ago
    clock = Clock()
    assert Slurm(clock=clock, sleep=clock.sleep, pauses_s=(1, 2, 3)).submit(script, tested=True) == "12"
    assert fake.calls("sbatch") == 3
    assert fake.calls("squeue") == 2 + 2 + 1  # twice before each repetition, once for a twin after it
    assert [pause for pause in clock.slept if pause in (1, 2)] == [1, 2]
    assert fake.calls("scancel") == 0


def test_a_request_that_was_served_late_leaves_no_twin(fake: FakeSlurm, script: Path) -> None:
    lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation"
    fake.says("sbatch", err=lost, code=1, call=1)
    fake.says("sbatch", "13\n", call=2)
    both = f'for j in 13 12; do echo "$j|$(date +%s)|{script.resolve()} train"; done; exit 0'
    fake.does("squeue.answer", both)
    for look in ("squeue.1.answer", "squeue.2.answer"):  # before the repetition nothing is seen
        fake.does(look, f'echo "11|$(date +%s)|{script.resolve()}.other"; exit 0')
    clock = Clock()
    assert Slurm(clock=clock, sleep=clock.sleep).submit(script, tested=True) == "13"
    assert fake.given("scancel") == ["12"]


def test_a_silent_controller_is_one_line_after_a_few_tries(fake: FakeSlurm, script: Path) -> None:
    fake.says("sbatch", err="sbatch: error: Unable to contact slurm controller (connect failure)", code=1)
    fake.says("squeue", err="slurm_load_jobs error: Unable to contact slurm controller (connect failure)", code=1)
    clock = Clock()
    slurm = Slurm(clock=clock, sleep=clock.sleep, pauses_s=(1, 2))
    for ask in (lambda: slurm.submit(script, tested=True), lambda: slurm.jobs(["1"])):
        with pytest.raises(UserError, match="does not answer") as caught:
            ask()
        assert "\n" not in str(caught.value)
    assert (fake.calls("sbatch"), fake.calls("squeue"), clock.slept) == (3, 3, [1, 2, 1, 2])


def test_a_command_that_hangs_is_given_up(fake: FakeSlurm) -> None:
    fake.does("squeue.answer", "exec sleep 30")
    clock, began = Clock(), time.monotonic()
    with pytest.raises(UserError, match="does not answer"):
        Slurm(timeout_s=0.2, pauses_s=(1,), clock=clock, sleep=clock.sleep).jobs(["1"])
    assert fake.calls("squeue") == 2
    assert time.monotonic() - began < 20


# ---- refusals --------------------------------------------------------------------------------------------------------

REFUSED = [
    # what SLURM 22.05 prints, options, words that the error must hold
    ("sbatch: error: invalid partition specified: nope\nallocation failure: Invalid partition name specified",
     ["-p", "nope"], ["partition = 'nope'", "normal (default), low, closed"]),
    ("allocation failure: No partition specified or system default partition", [], ["none was asked for", "normal"]),
    ("allocation failure: User's group not permitted to use this partition", ["--partition=closed"],
     ["closed", "rich, famous", "low"]),
    ("allocation failure: Invalid account or account/partition combination specified", ["--account=nope"],
     ["account = 'nope'", "lab, nlp"]),
    ("allocation failure: Invalid qos specification", ["--qos=fast"], ["qos = 'fast'", "normal, long"]),
    ("allocation failure: Invalid feature specification", ["-C", "h100"], ["h100", "fake, rack1, rack2"]),
    ("allocation failure: Requested node configuration is not available", ["-N5"], ["5 nodes are more than its 4"]),
    ("allocation failure: Requested node configuration is not available", ["-N4", "--gres=gpu:3"],
     ["3 GPUs a node are more than the 2", "4 nodes with 8 cores, 2 GPUs (a100)"]),
    ("allocation failure: Requested node configuration is not available", ["-p", "low", "-N", "3"],
     ["more than the 2 that one job may have"]),
    ("allocation failure: Requested node configuration is not available", ["-N4", "-x", "node[3-4]"],
     ["4 nodes are more than the 2 of its 4", "exclude = 'node[3-4]'"]),
    ("allocation failure: Requested node configuration is not available", ["-N3", "-C", "rack1&fake"],
     ["3 nodes are more than the 2 of its 4", "constraint = 'rack1&fake'"]),
    ("allocation failure: Memory required by task is not available", ["--mem=99G"], ["MB of memory", "16000"]),
    ("allocation failure: Requested node configuration is not available", ["-c9"], ["9 cores", "8"]),
    ("sbatch: error: Invalid generic resource (gres) specification", ["--gres=foo:1"], ["foo:1", "gpu:a100:2"]),
    ("allocation failure: Requested time limit is invalid (missing or exceeds some limit)", ["-t", "2:00:00"],
     ["120 minutes", "allows 60 minutes", "slurm.time_min"]),
    ("allocation failure: Invalid job array specification", ["--array=0-5000"], ["0-5000", "1000"]),
    ("allocation failure: Invalid node name specified", ["-x", "node9"], ["node9", "node1, node2, node3, node4"]),
    ("sbatch: error: QOSMaxSubmitJobPerUserLimit\nsbatch: error: Batch job submission failed: Job violates "
     "accounting/QOS policy (job submit limit, user's size and/or time limits)", [], ["QOSMaxSubmitJobPerUserLimit"]),
    ("sbatch: error: Batch job submission failed: Job dependency problem", ["-d", "afterok:9"], ["afterok:9"]),
    ("allocation failure: Required partition not available (inactive or drain)", [], ["no jobs now", "low UP"]),
    ("sbatch: error: Invalid --time specification", ["-t", "abc"], ["Invalid --time specification"]),
    ("/usr/bin/sbatch: unrecognized option '--bogus'\nTry \"sbatch --help\" for more information", ["--bogus"],
     ["'--bogus'"]),
    ("sbatch: error: This does not look like a batch script.", [], ["#!/bin/bash"]),
    ("sbatch: error: Batch job submission failed: I/O error writing script/environment to file", [],
     ["its own disk is full"]),
    ("sbatch: error: cli_filter plugin terminated with error\nsbatch: error: Ask helpdesk", [], ["Ask helpdesk"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "options", "held"), REFUSED, ids=[f"{r[0][:60]} {r[1]}" for r in REFUSED])
def test_a_refusal_says_what_is_valid(
    fake: FakeSlurm, script: Path, text: str, options: list[str], held: list[str]
) -> None:
    script.write_text("#!/bin/bash\n")
    fake.cluster().says("sbatch", err=text + "\n", code=1)
    for ask in (Slurm().test, lambda s, options: Slurm().submit(s, options=options, tested=True)):
        with pytest.raises(UserError) as caught:
            ask(script, options=options)
        assert "\n" not in str(caught.value)
        for words in held:
            assert words in str(caught.value)
    assert fake.calls("sbatch") == 2  # a refusal is final: it is not tried again


def test_without_accounting_a_wrong_account_says_so(fake: FakeSlurm, script: Path) -> None:
    fake.cluster().says("sbatch", err="Invalid account or account/partition combination specified", code=1)
    fake.says("sacctmgr", err="You are not running a supported accounting_storage plugin", code=1)
    with pytest.raises(UserError, match="accounting does not list yours"):
        Slurm().test(script, options=["-A", "nope"])


def test_a_time_limit_that_would_wait_for_ever_is_refused(fake: FakeSlurm, script: Path) -> None:
    """With EnforcePartLimits=NO the scheduler accepts it, and its trial promises a start."""
    fake.cluster().says("sbatch", err=WILL)
    with pytest.raises(UserError, match="allows 60 minutes"):
        Slurm().test(script, options=["--time=61"])
    assert "to start at" in Slurm().test(script, options=["--time=60"])
    assert "to start at" in Slurm().test(script, options=["--time=0-01"])
    script.write_text("#!/bin/bash\n#SBATCH --time=02:00:00   # two hours\n")
    with pytest.raises(UserError, match="120 minutes"):
        Slurm().test(script)


def test_a_job_that_waits_for_a_repair_is_not_refused(fake: FakeSlurm, script: Path) -> None:
    """The scheduler's trial refuses it with the words for a job that can never run."""
    fake.cluster().says("sbatch", err="allocation failure: Requested node configuration is not available\n", code=1)
    fake.says("scontrol", NODES.replace("State=MIXED", "State=DOWN*+DRAIN"), call="node")
    assert "node2 (down+drain+not_responding)" in Slurm().test(script, options=["-N4"])
    with pytest.raises(UserError, match="5 nodes"):
        Slurm().test(script, options=["-N5"])


# ---- polling ---------------------------------------------------------------------------------------------------------


def test_the_scheduler_is_not_asked_oftener_than_stated(fake: FakeSlurm) -> None:
    fake.says("squeue", queued("12", "RUNNING"))
    clock = Clock()
    slurm = Slurm(poll_s=10, clock=clock, sleep=clock.sleep)
    asked_at: list[float] = []
    for _ in range(300):  # a hundred seconds
        before = fake.calls("squeue") + fake.calls("sacct")
        assert slurm.jobs(["12"])["12"].state == "RUNNING"
        if fake.calls("squeue") + fake.calls("sacct") > before:
            asked_at.append(clock.now)
        clock.now += 1 / 3
    assert len(asked_at) == 10
    assert all(later - sooner >= 10 for sooner, later in pairwise(asked_at))
    assert slurm.calls == fake.calls("squeue") == 10


def test_a_job_never_asked_for_waits_for_its_turn(fake: FakeSlurm) -> None:
    fake.says("squeue", queued("12", "RUNNING") + queued("13", "PENDING"))
    clock = Clock()
    slurm = Slurm(poll_s=10, clock=clock, sleep=clock.sleep)
    slurm.jobs(["12"])
    clock.now += 4
    assert slurm.jobs(["12", "13"])["13"].state == "PENDING"
    assert clock.slept == [6]
    assert fake.calls("squeue") == 2


def test_a_submitted_job_is_known_before_it_is_asked_for(fake: FakeSlurm, script: Path) -> None:
    fake.says("sbatch", "13\n")
    fake.says("squeue", queued("12", "RUNNING"))
    clock = Clock()
    slurm = Slurm(poll_s=10, clock=clock, sleep=clock.sleep)
    slurm.jobs(["12"])
    slurm.submit(script, tested=True)
    assert slurm.jobs(["13"])["13"].state == "PENDING"
    assert clock.slept == []


def test_one_question_for_all_jobs_and_accounting_only_for_those_that_left(fake: FakeSlurm) -> None:
    fake.says("squeue", queued("12", "RUNNING", reason="None", name="a|b"))
    fake.says("sacct", accounted("10", "CANCELLED by 0") + accounted("11", "REQUEUED") + accounted("11", "TIMEOUT"))
    clock = Clock()
    slurm = Slurm(poll_s=10, clock=clock, sleep=clock.sleep)
    found = slurm.jobs(["10", "11", "12"])
    assert {job: state.state for job, state in found.items()} == {"10": "CANCELLED", "11": "TIMEOUT", "12": "RUNNING"}
    assert found["12"].name == "a|b" and found["12"].nodes == ("node1", "node2") and found["12"].restarts == 1
    assert (found["12"].submitted, found["12"].eligible, found["12"].started) == (1795378299, 1795378300, 1795378301)
    assert found["11"].restarts == 1 and found["11"].exit_code == "0:0" and found["11"].ends == 1795378362
    assert [found[job].active for job in ("10", "11", "12")] == [False, False, True]
    assert "--jobs=10,11,12" in fake.given("squeue") and "--jobs=10,11" in fake.given("sacct")
    clock.now += 10
    slurm.jobs(["10", "11", "12"])
    assert (fake.calls("squeue"), fake.calls("sacct")) == (2, 1)  # what has ended does not end again
    clock.now += 10
    slurm.jobs(["10", "11"])
    assert fake.calls("squeue") == 2


def test_jobs_that_nobody_knows_are_gone(fake: FakeSlurm) -> None:
    """Accounting is off: sacct fails, which is no error of the user's."""
    fake.says("squeue", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    fake.says("sacct", err="Slurm accounting storage is disabled\n", code=1)
    clock = Clock()
    slurm = Slurm(poll_s=10, clock=clock, sleep=clock.sleep)
    state = slurm.jobs(["12"])["12"]
    assert (state.state, state.active, state.reason) == ("GONE", False, "")
    assert slurm.runs_of("12") == []
    fake.says("sacct", accounted("12", "RUNNING", end="Unknown"))  # it lags behind the controller
    clock.now += 10
    state = slurm.jobs(["12"])["12"]
    assert (state.state, state.reason) == ("GONE", "accounting still says RUNNING")
    fake.says("sacct", accounted("12", "COMPLETED"))
    clock.now += 10
    assert slurm.jobs(["12"])["12"].state == "COMPLETED"


def test_an_id_that_is_none_spoils_no_other(fake: FakeSlurm) -> None:
    fake.says("squeue", queued("12", "RUNNING"))
    slurm = Slurm()
    found = slurm.jobs(["12", "abc", "", "12.0", "-1", "1;2"])
    assert [state.state for state in found.values()] == ["RUNNING", *["GONE"] * 5]
    assert "--jobs=12" in fake.given("squeue")


def test_an_array_is_its_most_telling_task(fake: FakeSlurm) -> None:
    rows = [queued("22", "COMPLETED", base="21", task="0"), queued("23", "RUNNING", base="21", task="1")]
    rows += [queued("21", "PENDING", base="21", task="2", reason="JobArrayTaskLimit")]
    fake.says("squeue", "".join(rows))
    fake.says("sacct", accounted("25", "FAILED", shown="24_0") + accounted("24", "PENDING", shown="24_[1-3%1]"))
    slurm = Slurm()
    found = slurm.jobs(["21", "21_0", "21_2", "24_0"])
    assert (found["21"].id, found["21"].state) == ("21", "RUNNING")
    assert (found["21_0"].state, found["21_2"].state, found["24_0"].state) == ("COMPLETED", "PENDING", "FAILED")
    assert "--jobs=21,24" in fake.given("squeue")
    # a task may also be asked for by the number that SLURM_JOB_ID shows inside it
    found = Slurm().jobs(["22", "23", "21"])
    assert {job: (state.id, state.state) for job, state in found.items()} == {
        "22": ("22", "COMPLETED"),
        "23": ("23", "RUNNING"),
        "21": ("21", "RUNNING"),
    }
    assert [run.state for run in Slurm().runs_of("25")] == ["FAILED"]


def test_every_run_of_a_job_without_a_former_job_of_its_number(fake: FakeSlurm) -> None:
    rows = [
        accounted("12", "COMPLETED", name="of another year"),
        accounted("12", "PREEMPTED"),
        accounted("12", "RUNNING"),
    ]
    fake.says("sacct", "".join(rows))
    assert [(run.state, run.restarts) for run in Slurm().runs_of("12")] == [("PREEMPTED", 0), ("RUNNING", 1)]
    assert "--duplicates" in fake.given("sacct")


def test_a_field_that_an_older_release_lacks_is_left_out(fake: FakeSlurm) -> None:
    fake.says("sacct", err='sacct: error: Invalid field requested: "reason"\n', code=1, call=1)
    fake.says("sacct", accounted("12", "FAILED", name="a|b").replace("|None|", "|"), call=2)
    run = Slurm().runs_of("12")[0]
    assert (run.state, run.reason, run.name, run.exit_code) == ("FAILED", "", "a|b", "0:0")
    assert "reason" not in fake.given("sacct")[-1]


# ---- changing --------------------------------------------------------------------------------------------------------


def test_requeueing_tells_the_refusals_apart(fake: FakeSlurm) -> None:
    for text, kind in (
        ("Requested operation is presently disabled for job 12", RequeueRefused),  # --no-requeue, or JobRequeue=0
        ("Access/permission denied for job 12", RequeueRefused),
        ("Invalid job id specified for job 12", JobGone),
    ):
        fake.says("scontrol", err=text, code=1)
        with pytest.raises(kind, match="job 12"):
            Slurm().requeue("12")
    fake.says("scontrol", err="Job is pending execution for job 12", code=1)
    Slurm().requeue("12")
    assert fake.given("scontrol") == ["requeue", "12"]


def test_changing_a_job(fake: FakeSlurm) -> None:
    Slurm().update("12", ExcNodeList="node2", Dependency="afterok:3")
    assert fake.given("scontrol") == ["update", "JobId=12", "ExcNodeList=node2", "Dependency=afterok:3"]
    with pytest.raises(UserError, match="line break"):
        Slurm().update("12", Comment="a\nb")
    fake.says("scontrol", err="Update of this parameter is not supported: Foo=bar\nRequest aborted\n", code=1)
    with pytest.raises(UserError, match="Foo=bar"):
        Slurm().update("12", Foo="bar")


def test_cancelling(fake: FakeSlurm) -> None:
    slurm = Slurm()
    slurm.cancel([])
    assert fake.calls("scancel") == 0
    for options, words in (
        ({}, ["12", "13"]),
        ({"signal": "USR1"}, ["--signal=USR1", "--batch", "12", "13"]),
        ({"signal": "USR1", "steps_only": True}, ["--signal=USR1", "12", "13"]),
        ({"steps_only": True}, ["--signal=TERM", "12", "13"]),
        ({"pending_only": True}, ["--state=PENDING", "12", "13"]),
    ):
        assert isinstance(options, dict)
        slurm.cancel(["12", "13"], **options)
        assert fake.given("scancel") == words
    fake.says("scancel", err="scancel: error: Kill job error on job id 12: Invalid job id specified\nscancel: error: "
              "Kill job error on job id 13: Job/step already completing or completed\n", code=1)  # fmt: skip
    slurm.cancel(["12", "13"])
    fake.says("scancel", err="scancel: error: No active jobs match ALL job filters, including: state=PENDING\n", code=1)
    slurm.cancel(["12", "13"], pending_only=True)
    fake.says("scancel", err="scancel: error: Kill job error on job id 13: Access/permission denied\n", code=210)
    with pytest.raises(UserError, match="job 13: you may not cancel it"):
        slurm.cancel(["12", "13"])


# ---- a real one ------------------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    monkeypatch.setenv("PATH", cluster.env["PATH"])
    return Slurm.here(poll_s=0.2)


@pytest.fixture
def job(cluster: Cluster) -> Callable[..., Path]:
    def write(text: str = "exec sleep 300") -> Path:
        path = cluster.scratch / f"job {time.monotonic_ns()}.sbatch"
        path.write_text(f"#!/bin/bash\n#SBATCH --output={cluster.scratch}/%j.txt\n{text}\n")
        return path

    return write


def _until(slurm: Slurm, job: str, *states: str, within: float = 60.0) -> Any:
    until = time.monotonic() + within
    while (found := slurm.jobs([job])[job]).state not in states:
        assert time.monotonic() < until, found
        time.sleep(0.2)
    return found


@pytest.mark.slow
def test_a_job_from_submission_to_its_end(cluster: Cluster, slurm: Slurm, job: Callable[..., Path]) -> None:
    began = time.time()
    words = job('printf "%s\\n" "$@"; env | grep ^SLURM_TIME_FORMAT; exit 3')
    first = slurm.submit(words, arguments=["a b", "; touch x", "$HOME"])
    ended = _until(slurm, first, "FAILED")
    assert began - 2 < ended.submitted <= ended.started <= ended.ends < time.time() + 2
    assert ended.nodes == ("node1",) and ended.partition == "normal" and not ended.active
    cluster.wait_for("output", lambda: "HOME" in cluster.scratch.joinpath(f"{first}.txt").read_text())
    assert cluster.scratch.joinpath(f"{first}.txt").read_text().splitlines() == ["a b", "; touch x", "$HOME"]
    cluster.wait_for("accounting", lambda: [run.state for run in slurm.runs_of(first)] == ["FAILED"])
    assert slurm.runs_of(first)[0].exit_code == "3:0"

    second = slurm.submit(job(), options=["-N2"])
    running = _until(slurm, second, "RUNNING")
    assert running.nodes == ("node1", "node2") and running.restarts == 0
    assert slurm.show(second)["NumNodes"] == "2"
    slurm.requeue(second)
    slurm.requeue(second)  # it waits already
    waiting = _until(slurm, second, "PENDING")
    assert waiting.restarts == 1 and waiting.active and waiting.waiting
    slurm.update(second, ExcNodeList="node1")
    again = _until(slurm, second, "RUNNING")
    assert "node1" not in again.nodes and again.restarts == 1
    slurm.cancel([second, "4000000"])
    assert _until(slurm, second, "CANCELLED").ends is not None
    assert slurm.jobs(["4000000"])["4000000"].state == "GONE"
    cluster.wait_for("both runs", lambda: len(slurm.runs_of(second)) == 2)
    assert [run.state for run in slurm.runs_of(second)] == ["REQUEUED", "CANCELLED"]


@pytest.mark.slow
def test_a_preempted_job_comes_back(slurm: Slurm, job: Callable[..., Path]) -> None:
    low = slurm.submit(job(), options=["-p", "low", "-N4", "--exclusive"])
    _until(slurm, low, "RUNNING")
    high = slurm.submit(job("sleep 3"), options=["-p", "high", "-N4", "--exclusive"])
    assert _until(slurm, low, "PENDING").restarts == 1
    _until(slurm, high, "COMPLETED", within=90)
    assert _until(slurm, low, "RUNNING", within=90).restarts == 1
    assert slurm.runs_of(low)[0].state == "PREEMPTED"


@pytest.mark.slow
def test_who_hears_a_signal(cluster: Cluster, slurm: Slurm, job: Callable[..., Path]) -> None:
    """The batch script alone, or the ranks alone; the client of the step hears neither, and passes nothing on."""
    rank = cluster.scratch / "rank.py"
    rank.write_text(
        "import os, signal, sys, time\n"
        "def heard(number, frame): print(os.environ['WHO'], number, flush=True)\n"
        "signal.signal(signal.SIGUSR1, heard)\n"
        "print(os.environ['WHO'], 'ready', flush=True)\n"
        "while True: time.sleep(0.1)\n"
    )
    python = sys.executable
    text = f"export WHO=rank\nsrun -N2 {python} {rank} &\nWHO=controller exec {python} {rank}"
    id = slurm.submit(job(text), options=["-N2"])
    output = cluster.scratch / f"{id}.txt"

    def said(*lines: str) -> bool:
        return output.exists() and sorted(output.read_text().splitlines()) == sorted(lines)

    ready = ["controller ready", "rank ready", "rank ready"]
    cluster.wait_for("all to be ready", lambda: said(*ready))
    slurm.cancel([id], signal="USR1")
    cluster.wait_for("the controller to hear it", lambda: said(*ready, "controller 10"))
    slurm.cancel([f"{id}.0"], signal="USR1", steps_only=True)
    cluster.wait_for("the ranks to hear it", lambda: said(*ready, "controller 10", "rank 10", "rank 10"))
    slurm.cancel([id], signal="USR1", steps_only=True)
    cluster.wait_for("them again", lambda: said(*ready, "controller 10", *["rank 10"] * 4))


@pytest.mark.slow
def test_a_real_scheduler_refuses(cluster: Cluster, slurm: Slurm, job: Callable[..., Path]) -> None:
    script = job()
    for options, held in (
        (["-p", "nope"], "one of: normal (default), low, high"),
        (["-N4", "-x", "node3"], "4 nodes are more than the 3 of its 4"),
        (["-N3", "-C", "rack1"], "3 nodes are more than the 2 of its 4"),
        (["-C", "nope"], "rack1, rack2"),
        (["-N5"], "5 nodes are more than its 4"),
        (["-N4", "--gres=gpu:3"], "3 GPUs a node are more than the 2"),
        (["--gres=foo:1"], "gpu:fake:2"),
        (["--mem=99G"], "101376 MB of memory"),
        (["-c", "9"], "9 cores"),
        (["-w", "node9"], "node1, node2, node3, node4"),
        (["-t", "abc"], "--time"),
        (["--array=0-5000"], "1000"),
    ):
        with pytest.raises(UserError) as caught:
            slurm.test(script, options=options)
        assert held in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(JobGone):
        slurm.show("4000000")
    with pytest.raises(JobGone):
        slurm.requeue("4000000")
    held = slurm.submit(script, options=["--no-requeue"])
    _until(slurm, held, "RUNNING")
    with pytest.raises(RequeueRefused):
        slurm.requeue(held)
    cluster.run(["scontrol", "update", "partition=normal", "MaxTime=60"])
    try:
        with pytest.raises(UserError, match="allows 60 minutes"):
            Slurm().test(script, options=["-t", "61"])
    finally:
        cluster.run(["scontrol", "update", "partition=normal", "MaxTime=UNLIMITED"])
    cluster.run(["scontrol", "update", "nodename=node3", "state=drain", "reason=a b"])
    assert "node3 (idle+drain)" in Slurm().test(script, options=["-N4"])


@pytest.mark.slow
def test_node_lists_are_read_as_the_scheduler_reads_them(cluster: Cluster, slurm: Slurm) -> None:
    for text in ("node[1-3,07,10-11]", "a1,b[08-11]c[1-2],login", "gpu-ib[001-003]", "n1", "r[1-2]n[01-02,9]"):
        assert slurm.hosts(text) == cluster.run(["scontrol", "show", "hostnames", text]).stdout.split()


@pytest.mark.slow
def test_a_submission_while_the_controller_hangs_becomes_one_job(
    cluster: Cluster, slurm: Slurm, job: Callable[..., Path]
) -> None:
    """Frozen, it accepts the request into its socket and answers nobody; sbatch gives up, the request is served later."""
    controller = int((cluster.folder / "pids" / "slurmctld").read_text().split()[0])
    script = job()
    os.kill(controller, signal.SIGSTOP)
    wake = threading.Timer(6, os.kill, (controller, signal.SIGCONT))
    wake.start()
    try:
        id = slurm.submit(script, tested=True)
    finally:
        wake.cancel()
        os.kill(controller, signal.SIGCONT)
    _until(slurm, id, "RUNNING")
    time.sleep(3)
    assert cluster.run(["squeue", "--noheader", "--format=%i"]).stdout.split() == [id]


@pytest.mark.slow
def test_a_controller_that_is_stopped_or_away(cluster: Cluster, slurm: Slurm, job: Callable[..., Path]) -> None:
    kept = slurm.submit(job())
    cluster.testbench("controller", "stop")
    try:
        patient = Slurm(poll_s=0.2, pauses_s=(0.1,))
        with pytest.raises(UserError, match="does not answer") as caught:
            patient.jobs([kept])
        assert "\n" not in str(caught.value)
    finally:
        cluster.testbench("controller", "start")
    assert _until(slurm, kept, "RUNNING").id == kept
