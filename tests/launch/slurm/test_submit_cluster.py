"""`rumpun submit` and `rumpun cancel` on a real SLURM: what was rendered is what the scheduler understood."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest
from real_cluster import REPO, Cluster
from submit_lab import CODE, TINY
from test_script import NASTY

from launch.slurm.submitting.jobs import NAMES
from launch.slurm.submitting.script import Directive

pytestmark = pytest.mark.slow


def rumpun(cluster: Cluster, *words: str | Path, code: int = 0, cwd: Path | None = None) -> str:
    import sys

    answer = cluster.run(
        [sys.executable, "-c", CODE, *words], cwd=cwd, check=False, timeout_s=120, env={"PYTHONPATH": str(REPO)}
    )
    assert answer.returncode == code, f"{words}: {answer.returncode}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout + answer.stderr


def ids_of(run: Path) -> dict[str, str]:
    jobs = json.loads((run / "chain" / "jobs.json").read_text())["jobs"]
    return {name: entry["id"] for name, entry in jobs.items()}


def field(cluster: Cluster, job: str, name: str) -> str:
    """One field of a job, whose value may hold blanks."""
    lines = cluster.run(["scontrol", "show", "job", job]).stdout.splitlines()
    return next(line.strip().removeprefix(f"{name}=") for line in lines if line.strip().startswith(f"{name}="))


def test_the_scheduler_reads_what_was_meant(cluster: Cluster) -> None:
    place = cluster.scratch / 'it\'s "a" $(touch pwned) #1'
    place.mkdir()
    recipe = place / "; rm -rf x 'q'.toml"
    shutil.copy(TINY, recipe)
    rumpun(cluster, "submit", recipe, "--nodes", "3", "--time", "50", "--hold", "--runs", "my runs", cwd=place)
    run = place / "my runs" / "tiny"
    ids = ids_of(run)
    told = cluster.show(ids["pretrain"])
    assert (told["NumNodes"], told["NumTasks"], told["TimeLimit"]) == ("3-3", "6", "00:50:00")
    assert (told["Requeue"], told["JobName"], told["Dependency"]) == (
        "1", "pretrain-tiny", f"afterok:{ids['prepare']}(unfulfilled)",
    )  # fmt: skip
    assert cluster.show(ids["prepare"])["Reason"] == "JobHeldUser"
    assert field(cluster, ids["eval"], "WorkDir") == str(place)
    assert field(cluster, ids["eval"], "StdOut") == f"{run}/logs/slurm/eval-{ids['eval']}.out"
    # nothing of it is submitted twice
    assert "nothing to submit" in rumpun(cluster, "submit", run, cwd=place) and ids_of(run) == ids
    # and other nodes make new jobs of those that train, and of those that wait for them
    rumpun(cluster, "submit", run, "--nodes", "2", "--hold", cwd=place)
    new = ids_of(run)
    assert {name for name in ids if new[name] != ids[name]} == {"pretrain", "finetune", "eval", "export"}
    for name in ("pretrain", "export"):
        cluster.wait_for_state(ids[name], {"CANCELLED", "GONE"})
    told = cluster.show(new["finetune"])
    waits = {word.split("(")[0] for word in told["Dependency"].split(",")}
    # the job that it replaces leaves the list some time after it has left the queue
    assert waits - {f"afterany:{ids['finetune']}"} == {f"afterok:{new['pretrain']}", f"afterok:{new['pairs']}"}
    assert rumpun(cluster, "cancel", run, cwd=place).count("taken out of the queue") == 6
    assert "nothing to cancel" in rumpun(cluster, "cancel", run, cwd=place)
    for job in new.values():
        cluster.wait_for_state(job, {"CANCELLED", "GONE"})
    assert not list(cluster.scratch.rglob("pwned"))


def test_nasty_values_are_read_by_the_scheduler_as_they_were_meant(cluster: Cluster) -> None:
    for value in NASTY:
        if value:
            job = cluster.sbatch(f"{Directive('comment', value, '').line}\n#SBATCH --hold\ntrue")
            assert field(cluster, job, "Comment") == value


def test_a_job_begins_with_the_login_environment_and_its_arguments(cluster: Cluster) -> None:
    runs = cluster.scratch / "50%j of 'my' runs"
    rumpun(cluster, "submit", TINY, "--hold", "--set", "about=$(touch pwned) 'x' \"y\"", "--runs", runs)
    run = runs / "tiny"
    rumpun(cluster, "cancel", run)
    script = run / "chain" / "scripts" / "eval.sbatch"
    tell = cluster.scratch / "tell"
    tell.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >"$0.arguments"\nenv -0 >"$0.environment"\ntouch "$0.done"\n')
    tell.chmod(tell.stat().st_mode | stat.S_IXUSR)
    lines = [f"RUMPUN={tell}" if line.startswith("RUMPUN=") else line for line in script.read_text().splitlines()]
    (cluster.scratch / "told.sbatch").write_text("\n".join(lines) + "\n")
    from_the_shell = {"HF_TOKEN": "hf_secret", "FROM_THE_SHELL": "1"}
    job = cluster.run(["sbatch", "--parsable", cluster.scratch / "told.sbatch"], env=from_the_shell).stdout.strip()
    cluster.wait_for("the job", (cluster.scratch / "tell.done").exists)
    assert (run / "logs" / "slurm" / f"eval-{job}.out").exists()
    assert Path(f"{tell}.arguments").read_text().split("\0")[:-1] == [
        "job", "eval", str(TINY), "--set", "about=$(touch pwned) 'x' \"y\"", "--runs", str(run.parent), "--run", "tiny",
    ]  # fmt: skip
    lines = Path(f"{tell}.environment").read_text().split("\0")[:-1]
    environment = dict(line.partition("=")[::2] for line in lines)
    assert "HF_TOKEN" not in environment and "FROM_THE_SHELL" not in environment
    assert environment["SLURM_EXPORT_ENV"] == "ALL" and environment["HOME"] and environment["PATH"]


def test_what_the_cluster_lacks_is_refused_before_anything_is_queued(cluster: Cluster) -> None:
    for words, says in (
        (["--nodes", "5", "--tasks-per-node", "1"], "4"),
        (["--cluster", "elsewhere.toml"], "normal"),
    ):
        (cluster.scratch / "elsewhere.toml").write_text('name = "elsewhere"\npartition = "gpu"\n')
        told = rumpun(cluster, "submit", TINY, "--run", "refused", *words, code=2).strip()
        assert len(told.splitlines()) == 1 and says in told, told
    assert not (cluster.scratch / "runs" / "refused").exists()
    assert cluster.run(["squeue", "-h"]).stdout.strip() == ""


def test_a_running_job_saves_before_a_larger_one_begins(cluster: Cluster) -> None:
    # ranks are not needed to see who waits for whom: the first job says what it was told, and ends
    run = cluster.scratch / "runs" / "resized"
    rumpun(cluster, "submit", TINY, "--run", "resized", "--hold")
    ids, text = ids_of(run), (run / "chain" / "scripts" / "pretrain.sbatch").read_text()
    trap = "trap 'echo told to save; sleep 3; echo saved; exit 75' USR1\nwhile :; do sleep 0.1; done\n"
    lines = [line for line in text.splitlines() if not line.startswith("exec ")]
    (cluster.scratch / "old.sbatch").write_text("\n".join(lines) + "\n" + trap)
    old = cluster.run(["sbatch", "--parsable", cluster.scratch / "old.sbatch"]).stdout.strip()
    cluster.wait_for_state(old, "RUNNING")
    chain = json.loads((run / "chain" / "jobs.json").read_text())
    cluster.run(["scancel", ids["pretrain"]])
    chain["jobs"]["pretrain"]["id"] = old
    (run / "chain" / "jobs.json").write_text(json.dumps(chain))
    told = rumpun(cluster, "submit", run, "--nodes", "2", "--hold")
    new = ids_of(run)["pretrain"]
    assert f"begins when {old} has saved and ended" in told
    assert f"afterany:{old}" in cluster.show(new)["Dependency"] or cluster.state(old) != "RUNNING"
    cluster.wait_for_state(old, {"FAILED", "COMPLETED"})
    output = (run / "logs" / "slurm" / f"pretrain-{old}.out").read_text()
    assert output.count("told to save") == 1 and "saved" in output
    cluster.wait_for("the dependency", lambda: f"afterany:{old}" not in cluster.show(new)["Dependency"])
    rumpun(cluster, "cancel", run)


def test_templates_are_usable_by_hand(cluster: Cluster) -> None:
    jobs = {}
    for name in NAMES:
        tell = cluster.scratch / f"hand-{name}"
        tell.write_text('#!/bin/bash\nprintf "%s\\0" "$@" >"$0.arguments"\n')
        tell.chmod(tell.stat().st_mode | stat.S_IXUSR)
        output = f"--output={cluster.scratch}/{name}.out"
        words = ["sbatch", "--parsable", output, "--nodes=1", f"slurm/{name}.sbatch", "a recipe", "--set", "a=$(b) c"]
        jobs[name] = cluster.run(words, cwd=REPO, env={"RUMPUN": str(tell)}).stdout.strip()
    for name, job in jobs.items():
        cluster.wait_for_state(job, "COMPLETED")
        told = (cluster.scratch / f"hand-{name}.arguments").read_text().split("\0")[:-1]
        assert told == ["job", name, "a recipe", "--set", "a=$(b) c"]
