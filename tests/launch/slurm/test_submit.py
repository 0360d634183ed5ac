"""`rumpun submit` against a fake SLURM: all jobs or none, nothing twice, and mistakes before anything is queued."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from submit_lab import TINY, Lab, new_lab

from launch.slurm.submitting.jobs import NAMES


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return new_lab(tmp_path)


def dependency(words: list[str]) -> str:
    return next((word.removeprefix("--dependency=") for word in words if word.startswith("--dependency=")), "")


def test_jobs_are_submitted_in_order_and_wait_for_each_other(lab: Lab) -> None:
    answer = lab.rumpun("submit", TINY, "--nodes", "2", "--set", "about=$(touch pwned)")
    ids = lab.ids
    assert list(ids) == sorted(NAMES) and list(lab.fake.jobs) == [ids[name] for name in NAMES]
    lines = lab.submitted()
    assert all(line[0] == "--parsable" for line in lines)
    assert [dependency(line) for line in lines] == [
        "", f"afterok:{ids['prepare']}", f"afterok:{ids['prepare']}", f"afterok:{ids['pretrain']}:{ids['pairs']}",
        f"afterok:{ids['finetune']}", f"afterok:{ids['eval']}",
    ]  # fmt: skip
    assert all(("--kill-on-invalid-dep=yes" in line) == bool(dependency(line)) for line in lines)
    chain = lab.chain
    assert (chain["format"], chain["cluster"], chain["run"]) == (1, "default", str(lab.run))
    assert chain["arguments"] == [
        str(TINY), "--set", "about=$(touch pwned)", "--set", "slurm.nodes=2", "--runs", str(lab.place / "runs"),
        "--run", "tiny",
    ]  # fmt: skip
    entry = chain["jobs"]["finetune"]
    assert (entry["nodes"], entry["tasks_per_node"], entry["after"], entry["route"]) == (
        2, 2, ["pretrain", "pairs"], "requeue",
    )  # fmt: skip
    script = (lab.run / entry["script"]).read_text()
    assert "#SBATCH --nodes=2\n" in script and "'about=$(touch pwned)'" in script
    assert (lab.run / "logs" / "slurm").is_dir()  # or SLURM would fail the job without a word
    assert json.loads((lab.run / "run.json").read_text()) == {"name": "tiny", "recipe": "tiny.toml"}
    for name in NAMES:
        assert sum(line.split()[:2] == [name, ids[name]] for line in answer.stdout.splitlines()) == 1
    for command in ("status", "watch", "logs", "cancel", "history"):
        assert f"rumpun {command} runs/tiny" in answer.stdout
    assert not list(lab.place.rglob("pwned"))


def test_each_shape_is_tested_once_before_anything_is_submitted(lab: Lab) -> None:
    lab.rumpun("submit", TINY)
    kinds = ["--test-only" in words for words in lab.fake.of("sbatch")]
    assert kinds == sorted(kinds, reverse=True)  # all tests come first
    assert 0 < sum(kinds) < len(NAMES)


def test_a_shape_that_would_be_refused_leaves_nothing(lab: Lab) -> None:
    lab.fake.refuse("test", "--nodes=3", "Batch job submission failed: Requested node configuration is not available")
    answer = lab.rumpun("submit", TINY, "--nodes", "3", code=2)
    assert "node" in answer.stderr and lab.submitted() == []
    assert not (lab.place / "runs").exists()


def test_a_refusal_in_the_middle_cancels_what_went_before(lab: Lab) -> None:
    lab.fake.refuse("submit", "job finetune", "Batch job submission failed: Job violates accounting/QOS policy")
    answer = lab.rumpun("submit", TINY, code=2)
    assert "3 jobs submitted before it were cancelled" in answer.stderr
    assert {job["state"] for job in lab.fake.jobs.values()} == {"CANCELLED"} and len(lab.fake.jobs) == 3
    assert not (lab.run / "chain" / "jobs.json").exists() and not list(lab.run.glob("chain/scripts/*"))


def test_an_interrupt_in_the_middle_cancels_what_went_before(lab: Lab) -> None:
    sbatch = lab.fake.folder / "sbatch"
    text = sbatch.read_text()
    quit_at = 'case "$*" in *test-only*) ;; *finetune.sbatch) kill -INT $PPID; sleep 5;; esac\n'
    sbatch.write_text(text.replace("\n", f"\n{quit_at}", 1))
    lab.rumpun("submit", TINY, code=130)
    assert {job["state"] for job in lab.fake.jobs.values()} == {"CANCELLED"} and len(lab.fake.jobs) == 3
    assert not (lab.run / "chain" / "jobs.json").exists()


def test_a_run_in_use_on_this_machine_is_not_submitted(lab: Lab) -> None:
    from launch.lock import RunLock

    with RunLock(lab.run):
        assert "is in use by process" in lab.rumpun("submit", TINY, code=2).stderr
    with RunLock(lab.run / "chain"):  # another submission
        (lab.run / "run.json").write_text('{"name": "tiny", "recipe": "tiny.toml"}')
        assert "is in use by process" in lab.rumpun("submit", TINY, code=2).stderr
    assert lab.submitted() == []


def test_a_chain_that_changed_meanwhile_is_left_alone(lab: Lab) -> None:
    lab.rumpun("submit", TINY)
    chain, ids = json.dumps(lab.chain), lab.ids
    sbatch, file = lab.fake.folder / "sbatch", lab.run / "chain" / "jobs.json"
    went_on = chain.replace(f'"id": "{ids["pretrain"]}"', '"id": "999"')
    (lab.place / "went_on").write_text(went_on)
    sbatch.write_text(sbatch.read_text().replace("\n", f"\ncp '{lab.place}/went_on' '{file}'\n", 1))
    answer = lab.rumpun("submit", lab.run, "--nodes", "2", code=2)
    assert "run the same command again" in answer.stderr and lab.ids["pretrain"] == "999"
    assert {lab.fake.jobs[id]["state"] for id in ids.values()} == {"PENDING"} and len(lab.fake.jobs) == 6


def test_a_second_submit_does_nothing(lab: Lab) -> None:
    lab.rumpun("submit", TINY, "--nodes", "2")
    before, scripts = lab.chain, len(lab.submitted())
    lab.fake.set("prepare", state="RUNNING", nodes="node1")
    answer = lab.rumpun("submit", lab.run, "--nodes", "2")
    assert lab.chain == before and len(lab.submitted()) == scripts
    assert "nothing to submit: 6 jobs of runs/tiny are there already" in answer.stdout and "running" in answer.stdout
    assert "--test-only" not in lab.fake.of("sbatch")[-1]


def test_a_run_folder_goes_on_with_the_same_overrides(lab: Lab) -> None:
    lab.rumpun("submit", TINY, "--set", "finetune.max_steps=4", "--nodes", "2")
    for name in NAMES:
        lab.fake.set(name, state="FAILED", left=True)
    first = lab.ids
    lab.rumpun("submit", lab.run, "--nodes", "4", "--set", "pretrain.max_steps=3")
    assert lab.chain["arguments"][1:7] == [
        "--set", "finetune.max_steps=4", "--set", "slurm.nodes=4", "--set", "pretrain.max_steps=3",
    ]  # fmt: skip
    assert all(lab.ids[name] != first[name] for name in NAMES)
    assert {name: entry["former"] for name, entry in lab.chain["jobs"].items()} == {n: [first[n]] for n in NAMES}


def test_a_failed_job_is_submitted_again_beside_those_that_run(lab: Lab) -> None:
    lab.rumpun("submit", TINY)
    first = lab.ids
    lab.fake.set("prepare", state="COMPLETED", left=True)
    lab.fake.set("pairs", state="RUNNING", nodes="node1")
    lab.fake.set("pretrain", state="FAILED", left=True)
    answer = lab.rumpun("submit", lab.run)
    now = lab.ids
    # nothing was built here, so preparing is to do too; pairs go on as they are
    assert now["pairs"] == first["pairs"] and now["pretrain"] != first["pretrain"]
    new = {words[-1].split("/")[-1].removesuffix(".sbatch"): dependency(words) for words in lab.submitted()[6:]}
    assert set(new) == {"prepare", "pretrain", "finetune", "eval", "export"}
    assert new["finetune"] == f"afterok:{now['pretrain']}:{now['pairs']},afterany:{first['finetune']}"
    # the jobs that waited for the failed one are replaced: they would wait for ever
    assert lab.fake.jobs[first["finetune"]]["state"] == "CANCELLED" == lab.fake.jobs[first["export"]]["state"]
    assert "5 jobs, 1 was there already" in answer.stdout


def test_resizing_asks_a_running_job_to_save_and_waits_for_its_end(lab: Lab) -> None:
    lab.rumpun("submit", TINY)
    first = lab.ids
    lab.fake.set("prepare", state="COMPLETED", left=True)
    lab.fake.set("pairs", state="COMPLETED", left=True)
    lab.fake.set("pretrain", state="RUNNING", nodes="node[1-2]")
    lab.rumpun("submit", lab.run, "--nodes", "4")
    words = next(words for words in lab.submitted()[6:] if "pretrain.sbatch" in words[-1])
    assert f"afterany:{first['pretrain']}" in dependency(words)
    assert lab.stop() == {first["pretrain"]: "resized"}
    calls = lab.fake.of("scancel")
    assert calls[-1][0] == "--signal=USR1" and calls[-1][-1] == first["pretrain"]
    waiting = [first[name] for name in ("export", "eval", "finetune")]  # the end of the chain first
    assert [id for words in calls for id in words if id in waiting] == waiting
    # nothing is cancelled before the new chain stands
    order = [words[0] for words in lab.fake.calls]
    assert order.index("scancel") > max(n for n, name in enumerate(order) if name == "sbatch")
    assert lab.chain["jobs"]["pretrain"]["nodes"] == 4
    # while it is still saving, another resize waits for both
    second = lab.ids
    lab.rumpun("submit", lab.run, "--nodes", "8", "--tasks-per-node", "1")
    words = [words for words in lab.submitted() if "pretrain.sbatch" in words[-1]][-1]
    assert dependency(words).endswith(f"afterany:{second['pretrain']}:{first['pretrain']}")


def test_a_resize_that_is_refused_leaves_the_chain_alone(lab: Lab) -> None:
    lab.rumpun("submit", TINY)
    before, script = lab.chain, (lab.run / "chain" / "scripts" / "pretrain.sbatch").read_text()
    lab.fake.set("pretrain", state="RUNNING", nodes="node1")
    lab.fake.refuse("submit", "job eval", "Batch job submission failed: Job violates accounting/QOS policy")
    lab.rumpun("submit", lab.run, "--nodes", "2", code=2)
    assert lab.chain == before and (lab.run / "chain" / "scripts" / "pretrain.sbatch").read_text() == script
    assert not (lab.run / "chain" / "stop.json").exists()
    old = {lab.fake.jobs[id]["state"] for id in lab.ids.values()}
    assert old == {"PENDING", "RUNNING"}  # and the new ones are gone
    assert {job["state"] for id, job in lab.fake.jobs.items() if id not in lab.ids.values()} == {"CANCELLED"}


def test_other_settings_are_refused_while_jobs_are_in_the_queue(lab: Lab) -> None:
    lab.rumpun("submit", TINY)
    answer = lab.rumpun("submit", lab.run, "--set", "finetune.max_steps=3", code=2)
    assert "other settings" in answer.stderr and "rumpun cancel" in answer.stderr
    lab.rumpun("submit", lab.run, "--set", "launch.restarts=1")  # changes no result


def test_a_finished_run_is_not_submitted(lab: Lab, tmp_path: Path) -> None:
    write_finished_run(lab)
    answer = lab.rumpun("submit", TINY, slurm=False)
    assert "nothing to do: all 16 stages are up to date in runs/tiny" in answer.stdout
    assert lab.fake.calls == []
    # evaluation differs: only its job and the export's are to do
    lab.rumpun("submit", TINY, "--set", "eval.bootstrap_samples=300")
    assert set(lab.ids) == {"eval", "export"}
    assert [dependency(words) for words in lab.submitted()] == ["", f"afterok:{lab.ids['eval']}"]


def test_files_that_were_touched_are_not_read_here(lab: Lab) -> None:
    write_finished_run(lab)
    file = next(file for file in (lab.run / "tokens").iterdir() if file.name != "stage.json")
    os.utime(file, (1, 1))
    lab.rumpun("submit", TINY)  # the job looks closer
    assert "prepare" in lab.ids


def test_a_damaged_stage_is_named(lab: Lab) -> None:
    write_finished_run(lab)
    (lab.run / "tokens" / "data").unlink()
    assert "is missing" in lab.rumpun("submit", TINY, code=2).stderr


def test_only_one_job(lab: Lab) -> None:
    assert "needs pretrain" in lab.rumpun("submit", TINY, "--only", "finetune", code=2).stderr
    assert "did you mean 'finetune'" in lab.rumpun("submit", TINY, "--only", "finetun", code=2).stderr
    lab.rumpun("submit", TINY, "--only", "prepare")
    assert set(lab.ids) == {"prepare"}
    lab.rumpun("submit", TINY, "--only", "pretrain")
    assert dependency(lab.submitted()[-1]) == f"afterok:{lab.ids['prepare']}" and set(lab.ids) == {
        "prepare",
        "pretrain",
    }


def test_hold_holds_what_waits_for_nothing(lab: Lab) -> None:
    lab.rumpun("submit", TINY, "--hold")
    assert ["--hold" in words for words in lab.submitted()] == [True] + [False] * 5


def test_a_dry_run_touches_nothing(lab: Lab) -> None:
    shown = lab.rumpun("submit", TINY, "--nodes", "2", "--dry-run").stdout
    assert not (lab.place / "runs").exists() and lab.submitted() == []
    for name in NAMES:
        assert f'exec "$RUMPUN" job {name} "$@"' in shown
    assert "--dependency=afterok:<pretrain>:<pairs>" in shown
    without = lab.rumpun("submit", TINY, "--nodes", "2", "--dry-run", slurm=False).stdout
    assert "nothing was checked" in without and "#SBATCH --nodes=2" in without
    lab.fake.refuse("test", "--nodes=9", "Requested node configuration is not available")
    assert (
        "#SBATCH --nodes=8" in lab.rumpun("submit", TINY, "--nodes", "8", "--tasks-per-node", "1", "--dry-run").stdout
    )


def test_without_slurm_one_line_says_where_to_go(lab: Lab) -> None:
    answer = lab.rumpun("submit", TINY, slurm=False, code=2)
    assert "login node" in answer.stderr and "sbatch" in answer.stderr
    assert not (lab.place / "runs").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "no such file or recipe"),
        ([TINY, "--cluster", "nowhere"], "no such profile"),
        ([TINY, "--data", "nowhere"], "is not a folder"),
        ([TINY, "--data", "."], "generates its own data"),
        ([TINY, "--nodes", "5"], "pretrain.batch_rows = 8 on 5 nodes with 2 processes each"),
        ([TINY, "--run", "a/b"], "--run 'a/b'"),
        ([TINY, "--runs", "a\nb"], "line break"),
        ([TINY, "--set", "about=a\nb"], "line break"),
        ([TINY, "--runs", "a\\b"], "backslash"),
        (["."], "is a folder, but no run"),
        ([TINY, "--cluster", "limit.toml", "--time", "61"], "60 minutes at most"),
        ([TINY, "--set", "slurm.links=no"], "slurm.links"),
        (["malaysian-600m"], "--data"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(lab: Lab, words: list[str | Path], says: str) -> None:
    (lab.place / "limit.toml").write_text('name = "limit"\nmax_time_min = 60\n')
    assert says in lab.rumpun("submit", *words, code=2).stderr
    assert lab.submitted() == [] and not (lab.place / "runs").exists()


def test_a_folder_of_something_else_is_refused(lab: Lab) -> None:
    lab.run.mkdir(parents=True)
    (lab.run / "thesis.txt").write_text("mine")
    assert "is not a run of rumpun" in lab.rumpun("submit", TINY, code=2).stderr
    assert lab.submitted() == []


def test_a_run_whose_recipe_is_gone_says_how_to_go_on(lab: Lab) -> None:
    lab.run.mkdir(parents=True)
    (lab.run / "run.json").write_text('{"name": "tiny", "recipe": "tiny.toml"}')
    answer = lab.rumpun("submit", lab.run, code=2)
    assert f"rumpun submit PATH/tiny.toml --runs {lab.run.parent} --run tiny" in answer.stderr


def test_strange_names_arrive_whole(lab: Lab, tmp_path: Path) -> None:
    recipe = lab.place / "; rm -rf x $(touch pwned) 'q' \"d\".toml"
    shutil.copy(TINY, recipe)
    lab.rumpun("submit", recipe, "--runs", "my $(touch pwned) runs")
    run = lab.place / "my $(touch pwned) runs" / "tiny"
    script = (run / "chain" / "scripts" / "eval.sbatch").read_text()
    assert shlex.quote(str(recipe)) in script
    assert f'--output="{run}/logs/slurm/eval-%j.out"' in script
    tell = tmp_path / "rumpun"
    tell.write_text('#!/bin/bash\nprintf "%s\\0" "$@"\n')
    tell.chmod(0o755)
    (tmp_path / "s").write_text(
        "\n".join(f"RUMPUN={tell}" if line[:7] == "RUMPUN=" else line for line in script.split("\n"))
    )
    told = subprocess.run(["bash", tmp_path / "s"], cwd=tmp_path, capture_output=True, text=True, timeout=20).stdout
    assert told.split("\0")[:-1] == ["job", "eval", str(recipe), "--runs", str(run.parent), "--run", "tiny"]
    assert not list(tmp_path.rglob("pwned"))


def test_the_submitting_shell_does_not_come_along(lab: Lab) -> None:
    lab.env = {"SBATCH_PARTITION": "elsewhere", "SLURM_MEM_PER_CPU": "1"}
    lab.rumpun("submit", TINY)


def test_nodes_with_a_bad_past_are_left_out(lab: Lab) -> None:
    from launch.slurm.health.memory import folder_of, remember

    scontrol = lab.fake.folder / "scontrol"
    nodes = "\n".join(
        f"NodeName=node{n} CPUTot=8 RealMemory=16000 State=IDLE Partitions=normal" for n in range(1, 5)
    )  # fmt: skip
    scontrol.write_text(f"#!/bin/sh\ncase \"$*\" in *'show node'*) cat <<'END'\n{nodes}\nEND\n;; esac\n")
    remember(folder_of(lab.place / "runs"), "node3", "sick", "rank 5 has no GPU", job="1", run="tiny")
    lab.rumpun("submit", TINY)
    text = (lab.run / "chain" / "scripts" / "finetune.sbatch").read_text()
    assert "#SBATCH --exclude=node3" in text and "rank 5 has no GPU" in text
    # where all nodes are needed, it is taken all the same
    shutil.rmtree(lab.run)
    lab.rumpun("submit", TINY, "--nodes", "4", "--tasks-per-node", "1")
    assert "--exclude" not in (lab.run / "chain" / "scripts" / "finetune.sbatch").read_text()


@pytest.mark.slow
def test_submitting_and_cancelling_cost_little_more_than_reading_a_recipe(lab: Lab) -> None:
    used: dict[str, list[float]] = {}
    for n in range(3):
        for name, words in {
            "read": ["recipe", "show", "demo"],
            "submit": ["submit", str(TINY), "--run", f"tiny{n}"],
            "again": ["submit", str(TINY), "--run", f"tiny{n}"],
            "cancel": ["cancel", f"runs/tiny{n}"],
        }.items():
            used.setdefault(name, []).append(lab.cpu_s(*words))
    best = {name: min(times) for name, times in used.items()}
    print(best)
    # reading and checking a recipe is most of it; starting a fake command costs more than a real one
    assert best["submit"] < 3 * best["read"]
    assert best["again"] < 2 * best["read"]
    assert best["cancel"] < 1.5 * best["read"]


def write_finished_run(lab: Lab) -> None:
    """A run in which every stage is up to date, without building one: each has its record and one small file."""
    from data_prep.files import sha256_file, write_json
    from launch.pipeline import Plan
    from launch.recipe import load_recipe
    from launch.stages import RECORD, Workshop

    recipe, _ = load_recipe(str(TINY))
    stages = Plan(recipe, lab.run, lab.run / "generate").stages()
    workshop = Workshop(lab.run)
    for stage in stages:
        folder = workshop.folder(stage.name)
        folder.mkdir(parents=True)
        (folder / "data").write_text(stage.name)
        status = (folder / "data").stat()
        file = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_file(folder / "data")}
        record = {
            "stage": stage.name, "version": stage.version, "content": stage.name, "config": stage.config, "key": "",
            "inputs": {need: need for need in stage.needs}, "external": {}, "files": {"data": {**file, "volatile": False}},
        }  # fmt: skip
        write_json(folder / RECORD, record)
        write_json(folder / RECORD, {**record, "key": workshop.judge(stage).key})
    (lab.run / "run.json").write_text('{"name": "tiny", "recipe": "tiny.toml"}')
