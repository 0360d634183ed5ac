"""A recipe as jobs: no stage is lost or early, and what each job asks for is what its cluster has."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from data_prep.errors import UserError
from launch.pipeline import STAGES, Plan
from launch.recipe import Recipe, load_recipe
from launch.slurm.clusters.profile import ClusterProfile
from launch.slurm.submitting.jobs import KINDS, NAMES, Job, following, jobs_of, kind_of, waits_for

GPUS = ClusterProfile(
    name="gpus", partition="gpu", account="us", constraint="a100", gpus_per_node=8, gpu_type="a100", cpus_per_node=96,
    memory_gb=960, stage_partition="cpu", stage_account="them", max_time_min=600, exclude=["bad1"],
)  # fmt: skip


def the_recipe(*overrides: str) -> Recipe:
    return load_recipe("demo", ["pretrain.batch_rows=64", *overrides])[0]


def every_stage(recipe: Recipe) -> list[str]:
    return [stage.name for stage in Plan(recipe, Path("run"), Path("data")).stages()]


def the_jobs(
    profile: ClusterProfile, *overrides: str, to_do: list[str] | None = None, **more: object
) -> dict[str, Job]:
    recipe = the_recipe(*overrides)
    stages = every_stage(recipe)
    found = jobs_of(recipe, profile, stages=stages, to_do=stages if to_do is None else to_do, **more)  # type: ignore[arg-type]
    return {job.name: job for job in found}


def test_every_stage_is_in_exactly_one_job() -> None:
    held = [stage for kind in KINDS for stage in kind.stages]
    assert sorted(held) == sorted(STAGES)


@pytest.mark.parametrize("name", ["demo", "malay-real-small", "malaysian-600m", "malaysian-1b", "malaysian-2b"])
def test_no_job_begins_before_what_its_stages_need(name: str) -> None:
    recipe = load_recipe(name)[0]
    stages = Plan(recipe, Path("run"), Path("data")).stages()
    home = {stage: kind.name for kind in KINDS for stage in kind.stages}
    jobs = {j.name: j for j in jobs_of(recipe, ClusterProfile(), stages=home, to_do=[s.name for s in stages])}
    finished: dict[str, set[str]] = {}  # what has surely ended when a job begins: by walking the edges that it has
    for job in jobs.values():
        finished[job.name] = set().union(*({before} | finished[before] for before in job.after), set())
    for stage in stages:
        for need in stage.needs:
            assert home[need] == home[stage.name] or home[need] in finished[home[stage.name]], (stage.name, need)


def test_pairs_are_made_beside_pretraining() -> None:
    jobs = the_jobs(ClusterProfile())
    assert list(jobs) == list(NAMES)
    assert {name: job.after for name, job in jobs.items()} == {
        "prepare": (), "pairs": ("prepare",), "pretrain": ("prepare",), "finetune": ("pretrain", "pairs"),
        "eval": ("finetune",), "export": ("eval",),
    }  # fmt: skip


def test_who_waited_for_a_job_that_is_left_out_waits_for_what_that_waited_for() -> None:
    # every subset of jobs, against the definition: a path through jobs that are not there, or a shorter way to say it
    edges = {kind.name: kind.after for kind in KINDS}

    def before(name: str, there: set[str]) -> set[str]:
        return {n for m in edges[name] for n in ([m] if m in there else before(m, there))}

    def all_before(name: str, there: set[str]) -> set[str]:
        direct = set(waits_for(name, there))
        return direct.union(*(all_before(n, there) for n in direct))

    for size in range(len(NAMES) + 1):
        for chosen in map(set, itertools.combinations(NAMES, size)):
            for name in chosen:
                assert set(waits_for(name, chosen)) <= before(name, chosen)
                assert before(name, chosen) <= all_before(name, chosen)


def test_only_what_is_to_do_is_submitted() -> None:
    jobs = the_jobs(ClusterProfile(), to_do=["eval", "report"])
    assert {name: (job.after, job.to_do) for name, job in jobs.items()} == {
        "eval": ((), ("eval",)), "export": (("eval",), ("report",)),
    }  # fmt: skip
    assert jobs["export"].stages == ("export", "report")
    assert the_jobs(ClusterProfile(), to_do=[]) == {}


def test_following_jobs() -> None:
    assert following(["pairs"]) == {"pairs", "finetune", "eval", "export"}
    assert following(["export"]) == {"export"}


def test_an_empty_profile_asks_for_nothing_that_a_cluster_may_lack() -> None:
    for job in the_jobs(ClusterProfile()).values():
        shape = job.shape
        assert (shape.partition, shape.account, shape.qos, shape.constraint, shape.memory_gb) == (None,) * 5
        assert shape.gpus_per_node == 0 and shape.exclude == ()
    assert the_jobs(ClusterProfile())["finetune"].shape.tasks_per_node == the_recipe().launch.nproc


def test_ranks_take_the_gpus_and_their_share_of_the_node() -> None:
    whole = the_jobs(GPUS, "slurm.nodes=3")["finetune"].shape
    assert (whole.nodes, whole.tasks_per_node, whole.gpus_per_node, whole.ranks) == (3, 8, 8, 24)
    assert (whole.cpus_per_task, whole.memory_gb) == (12, 960)
    part = the_jobs(GPUS, "slurm.tasks_per_node=2")["finetune"].shape
    assert (part.gpus_per_node, part.cpus_per_task, part.memory_gb) == (2, 12, 240)
    asked = the_jobs(GPUS, "slurm.cpus_per_task=5", "slurm.memory_gb=77")["finetune"].shape
    assert (asked.cpus_per_task, asked.memory_gb) == (5, 77)


def test_jobs_without_ranks_go_where_they_cost_less() -> None:
    jobs = the_jobs(GPUS)
    assert (jobs["prepare"].shape.partition, jobs["prepare"].shape.account) == ("cpu", "them")
    assert jobs["prepare"].shape.constraint is None and jobs["prepare"].shape.gpus_per_node == 0
    # those that run models take one GPU, and so go where there are any
    assert (jobs["eval"].shape.partition, jobs["eval"].shape.gpus_per_node) == ("gpu", 1)
    assert jobs["eval"].shape.memory_gb == 960 * jobs["eval"].shape.cpus_per_task // 96  # type: ignore[operator]
    assert jobs["export"].shape.gpus_per_node == 0
    assert jobs["pairs"].shape.gpus_per_node == 1  # the demo probes its cut
    assert all("bad1" in job.shape.exclude for job in jobs.values())
    assert all(job.shape.nodes == 1 for job in jobs.values() if not job.trains)


def test_parts_that_do_not_go_out_take_more_cores() -> None:
    def cores(profile: ClusterProfile, *overrides: str) -> int | None:
        return the_jobs(profile, *overrides)["prepare"].shape.cpus_per_task

    assert (cores(GPUS), cores(GPUS, "slurm.fan_out=false"), cores(ClusterProfile(), "slurm.fan_out=false")) == (
        4,
        16,
        4,
    )
    assert cores(ClusterProfile(cpus_per_node=2)) == 2
    assert cores(GPUS, "slurm.fan_out=false", "fanout.workers=6", "fanout.threads_per_worker=2") == 12


def test_models_for_mining_want_a_gpu() -> None:
    recipe = the_recipe()
    recipe = recipe.model_copy(update={"truncate": recipe.truncate.model_copy(update={"probe": None})})
    stages = every_stage(recipe)
    by_name = {job.name: job for job in jobs_of(recipe, GPUS, stages=stages, to_do=stages)}
    assert by_name["pairs"].shape.gpus_per_node == 0  # tf-idf asks no model
    assert recipe.mine is not None
    teacher = recipe.mine.teacher.model_copy(update={"kind": "sentence-transformers", "model": "x"})
    recipe = recipe.model_copy(update={"mine": recipe.mine.model_copy(update={"teacher": teacher})})
    by_name = {job.name: job for job in jobs_of(recipe, GPUS, stages=stages, to_do=stages)}
    assert by_name["pairs"].shape.gpus_per_node == 1


def test_times_are_cut_to_the_cluster_but_not_those_asked_for() -> None:
    jobs = the_jobs(GPUS, "slurm.time_min=1440")
    assert (jobs["finetune"].shape.time_min, jobs["finetune"].shape.shortened) == (600, True)
    assert (jobs["eval"].shape.time_min, jobs["eval"].shape.shortened) == (240, False)
    assert the_jobs(GPUS, time_min=500)["finetune"].shape.time_min == 500
    with pytest.raises(UserError, match="600 minutes at most"):
        the_jobs(GPUS, time_min=601)


def test_what_could_only_fail_in_the_job_fails_here() -> None:
    with pytest.raises(UserError, match=r"finetune.batch_pairs = 64 on 9 nodes with 8 processes each.*--nodes 8"):
        the_jobs(GPUS, "slurm.nodes=9", "pretrain.batch_rows=1000")
    with pytest.raises(UserError, match=r"pretrain.batch_rows = 4 on 1 node with 8 .*--nodes 1 --tasks-per-node 4"):
        the_jobs(GPUS, "pretrain.batch_rows=4")
    with pytest.raises(UserError, match="have 8 GPUs"):
        the_jobs(GPUS, "slurm.tasks_per_node=9")
    # a phase that is done needs no ranks
    assert "pretrain" not in the_jobs(GPUS, to_do=["finetune"])


def test_a_warning_must_come_after_the_beginning() -> None:
    with pytest.raises(UserError, match=r"slurm.signal_lead_s = 180.*more time than 3 minutes"):
        the_jobs(ClusterProfile(max_time_min=3))
    assert the_jobs(ClusterProfile(max_time_min=3), "slurm.signal_lead_s=60")["finetune"].lead_s == 60


@pytest.mark.parametrize(
    ("profile", "recipe", "training", "stage"),
    [
        ("requeue", "auto", "requeue", "requeue"), ("array", "auto", "array", "successor"),
        ("successor", "auto", "successor", "successor"), ("array", "requeue", "requeue", "requeue"),
        ("requeue", "array", "array", "successor"),
    ],
)  # fmt: skip
def test_routes(profile: str, recipe: str, training: str, stage: str) -> None:
    jobs = the_jobs(ClusterProfile(route=profile, max_array_tasks=5), f"slurm.route={recipe}")  # type: ignore[arg-type]
    assert (jobs["finetune"].route, jobs["eval"].route) == (training, stage)
    assert jobs["finetune"].links == 5


def test_a_mistyped_job_is_named() -> None:
    with pytest.raises(UserError, match="did you mean 'finetune'"):
        kind_of("finetun")
