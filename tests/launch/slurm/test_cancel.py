"""`rumpun cancel` against a fake SLURM: nothing begins meanwhile, training saves, and twice is as good as once."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from submit_lab import TINY, Lab, new_lab

from launch.slurm.chain import Chain


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    made = new_lab(tmp_path)
    made.rumpun("submit", TINY)
    return made


def cancelled(lab: Lab) -> list[str]:
    """The names of the jobs that scancel took, in its order."""
    names = {id: name for name, id in lab.ids.items()}
    calls = [words for words in lab.fake.of("scancel") if not any(word.startswith("--signal") for word in words)]
    return [names[word] for words in calls for word in words if word in names]


def test_waiting_jobs_leave_from_the_end_of_the_chain(lab: Lab) -> None:
    told = lab.rumpun("cancel", lab.run).stdout
    assert cancelled(lab) == ["export", "eval", "finetune", "pretrain", "pairs", "prepare"]
    assert {job["state"] for job in lab.fake.jobs.values()} == {"CANCELLED"}
    assert set(lab.stop()) == set(lab.ids.values()) and set(lab.stop().values()) == {"cancelled"}
    assert told.count("taken out of the queue") == 6 and "rumpun submit" in told


def test_nobody_is_told_before_it_is_written_down(lab: Lab) -> None:
    scancel = lab.fake.folder / "scancel"
    scancel.write_text(f"#!/bin/sh\ncp {shlex.quote(str(lab.run / 'chain' / 'stop.json'))} {lab.fake.folder}/seen\n")
    lab.rumpun("cancel", lab.run)
    assert set(json.loads((lab.fake.folder / "seen").read_text())["jobs"]) == set(lab.ids.values())


def test_ranks_get_the_time_that_a_save_takes(lab: Lab) -> None:
    lab.fake.set("prepare", state="COMPLETED", left=True)
    lab.fake.set("pairs", state="RUNNING", nodes="node1")
    lab.fake.set("pretrain", state="RUNNING", nodes="node[2-3]")
    log = lab.run / "chain" / "links" / "pretrain.jsonl"
    log.parent.mkdir()
    log.write_text(json.dumps({"event": "stage", "stage": "pretrain", "job": lab.ids["pretrain"], "time": 1.0}) + "\n")
    told = lab.rumpun("cancel", lab.run).stdout
    lines = {line.split()[0]: line for line in told.splitlines()}
    assert "running on node2, node3, at pretrain: asked to save" in lines["pretrain"]
    assert "ended at once" in lines["pairs"] and "--now" in told and "prepare" not in lines
    signals = [words for words in lab.fake.of("scancel") if "--signal=USR1" in words]
    assert [words[-1] for words in signals] == [lab.ids["pretrain"]]
    assert lab.fake.jobs[lab.ids["pretrain"]]["state"] == "RUNNING"  # it ends by itself
    # those that wait go before any that runs is told
    assert "--state=PENDING" in lab.fake.of("scancel")[0]
    lab.rumpun("cancel", lab.run, "--now")
    assert lab.fake.jobs[lab.ids["pretrain"]]["state"] == "CANCELLED"


def test_the_running_link_of_an_array_finds_its_own_number(lab: Lab) -> None:
    lab.fake.set("prepare", state="COMPLETED", left=True)
    lab.fake.set("pretrain", state="RUNNING", nodes="node1")
    log = lab.run / "chain" / "links" / "pretrain.jsonl"
    log.parent.mkdir()
    log.write_text("".join(json.dumps({"event": "begin", "time": 1.0, "job": job}) + "\n" for job in ("7001", "7002")))
    lab.rumpun("cancel", lab.run)
    assert "7002" in lab.stop() and "7001" not in lab.stop()


def test_one_job_takes_those_that_wait_for_it(lab: Lab) -> None:
    lab.rumpun("cancel", "tiny", "finetune")  # the name of a run does as well
    assert cancelled(lab) == ["export", "eval", "finetune"]
    assert set(lab.stop()) == {lab.ids[name] for name in ("finetune", "eval", "export")}


def test_twice_is_as_good_as_once_and_so_is_behind_our_back(lab: Lab) -> None:
    lab.rumpun("cancel", lab.run)
    calls = len(lab.fake.of("scancel"))
    assert "nothing to cancel" in lab.rumpun("cancel", lab.run).stdout
    for name in lab.ids:  # the queue has forgotten them
        lab.fake.set(name, left=True)
    assert "nothing to cancel" in lab.rumpun("cancel", lab.run, "eval").stdout
    assert len(lab.fake.of("scancel")) == calls
    # it may be submitted again, and what was cancelled before stays so
    lab.rumpun("submit", lab.run)
    chain = Chain(lab.run)
    assert all(chain.stopped(id) is None for id in lab.ids.values())


def test_a_former_job_that_still_saves_is_cancelled_too(lab: Lab) -> None:
    lab.fake.set("prepare", state="COMPLETED", left=True)
    lab.fake.set("pretrain", state="RUNNING", nodes="node1")
    old = lab.ids["pretrain"]
    lab.rumpun("submit", lab.run, "--nodes", "2")
    assert lab.ids["pretrain"] != old
    lab.rumpun("cancel", lab.run, "--now")
    assert {job["state"] for job in lab.fake.jobs.values() if not job.get("left")} == {"CANCELLED"}


def test_mistakes(lab: Lab, tmp_path: Path) -> None:
    assert "did you mean 'finetune'" in lab.rumpun("cancel", lab.run, "finetuning", code=2).stderr
    assert "nowhere" in lab.rumpun("cancel", "nowhere", code=2).stderr
    (lab.place / "other").mkdir()
    assert "was never submitted" in lab.rumpun("cancel", "other", code=2).stderr
    assert "login node" in lab.rumpun("cancel", lab.run, slurm=False, code=2).stderr
    assert lab.fake.of("scancel") == []


def test_a_refusal_of_the_scheduler_is_one_line(lab: Lab) -> None:
    scancel = lab.fake.folder / "scancel"
    scancel.write_text(
        "#!/bin/sh\necho 'scancel: error: Kill job error on job id 101: Access/permission denied' >&2\nexit 1\n"
    )
    assert "101" in lab.rumpun("cancel", lab.run, code=2).stderr
