"""A recipe as jobs: which stages each holds, who waits for whom, and what each asks of the cluster.

    prepare → pretrain → finetune → eval → export          pairs (mining, synthesis) runs beside pretrain,
          ↘ pairs ──────↗                                  and finetune waits for both

Invariant: every stage of a recipe is in exactly one job, and a job comes after the jobs whose stages its own need. A
job without anything to do is left out; who waited for it then waits for what it had waited for.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from train.phase import check_fills

if TYPE_CHECKING:
    from launch.recipe import Recipe
    from launch.slurm.clusters.profile import ClusterProfile
    from launch.slurm.config import Route

_STAGE_CPUS = 4
"""Cores of a job without ranks whose parts go out as array jobs: what is left does not scale further."""
_STAGE_CPUS_MOST = 16
"""The same where it computes its parts itself: a queue finds so many cores sooner than a whole node."""
_STAGE_MEMORY_GB = 16
"""Memory of a job without ranks, at least, where the node's is known."""


@dataclass(frozen=True)
class Kind:
    """A job that a recipe may have: its stages in their order, the jobs it waits for, and whether ranks train in it."""

    name: str
    stages: tuple[str, ...]
    after: tuple[str, ...] = ()
    trains: bool = False


KINDS = (
    Kind("prepare", ("generate", "corpus", "held_out", "tokenizer", "tokens", "gate", "base", "truncate")),
    Kind("pairs", ("pairs", "mine", "synth", "gate_pairs", "probe"), ("prepare",)),
    Kind("pretrain", ("pretrain",), ("prepare",), trains=True),
    Kind("finetune", ("finetune",), ("pretrain", "pairs"), trains=True),
    Kind("eval", ("eval",), ("finetune",)),
    Kind("export", ("export", "report"), ("eval",)),
)
"""In an order in which each comes after those it waits for."""
NAMES = tuple(kind.name for kind in KINDS)


@dataclass(frozen=True)
class Shape:
    """What a job asks of the cluster; None and () leave it to the cluster's defaults.

    Attributes:
        gpus_per_node: 0 for none. memory_gb: of each node. time_min: of one link. shortened: whether the recipe's time
            was cut to the cluster's limit. exclude: nodes to stay away from.
    """

    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int | None = None
    gpus_per_node: int = 0
    gpu_type: str | None = None
    memory_gb: int | None = None
    time_min: int = 60
    shortened: bool = False
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude: tuple[str, ...] = ()

    @property
    def ranks(self) -> int:
        """Processes over all nodes."""
        return self.nodes * self.tasks_per_node


@dataclass(frozen=True)
class Job:
    """One job of a chain.

    Attributes:
        stages: of the recipe that it walks. to_do: those of them that are not up to date.
        after: names of the jobs of this chain that it waits for.
        lead_s: seconds between the warning and its end. links: tasks of an array chain.
    """

    name: str
    stages: tuple[str, ...]
    to_do: tuple[str, ...]
    after: tuple[str, ...]
    trains: bool
    shape: Shape
    route: Route
    lead_s: int
    links: int


def kind_of(name: str) -> Kind:
    """A kind of job by its name. Raises `UserError` where there is none."""
    for kind in KINDS:
        if kind.name == name:
            return kind
    near = difflib.get_close_matches(name, NAMES, 1)
    raise UserError(
        f"job {name!r}", "no such job", (f"did you mean {near[0]!r}? " if near else "") + f"jobs: {', '.join(NAMES)}"
    )


def waits_for(name: str, there: Collection[str]) -> tuple[str, ...]:
    """The jobs of `there` that a job waits for: through those that are not there to the ones before them."""
    found: dict[str, None] = {}
    for before in kind_of(name).after:
        found.update(dict.fromkeys([before] if before in there else waits_for(before, there)))
    # who is waited for by another of them need not be named
    return tuple(n for n in found if not any(n in _all_before(other) for other in found if other != n))


def _all_before(name: str) -> set[str]:
    direct = kind_of(name).after
    return set(direct).union(*map(_all_before, direct))


def following(names: Iterable[str]) -> set[str]:
    """These jobs and every one that waits for them, directly or not."""
    found = set(names)
    return found | {kind.name for kind in KINDS if _all_before(kind.name) & found}


def jobs_of(
    recipe: Recipe,
    profile: ClusterProfile,
    *,
    stages: Iterable[str],
    to_do: Collection[str],
    time_min: int | None = None,
    excluded: Mapping[str, str] | None = None,
) -> list[Job]:
    """The jobs that bring a run up to date, each after those it waits for.

    Args:
        stages: of the recipe, in their order. to_do: those that are not up to date.
        time_min: minutes of a link of a training job, where the user asked for them; the cluster must allow them.
        excluded: further nodes to stay away from, with the reason.

    Raises:
        UserError: what could only fail once the job runs: a batch smaller than the ranks, more ranks than GPUs, more
            time than the cluster gives.
    """
    there = list(stages)
    wanted = [kind for kind in KINDS if set(kind.stages) & set(to_do)]
    names = {kind.name for kind in wanted}
    found = []
    for kind in wanted:
        own = tuple(s for s in there if s in kind.stages)
        shape = (
            _training_shape(recipe, profile, time_min, excluded or {})
            if kind.trains
            else _stage_shape(recipe, profile, asks_gpu=_asks_gpu(kind.name, recipe), excluded=excluded or {})
        )
        if kind.trains:
            phase = getattr(recipe, kind.name)
            field = "batch_rows" if kind.name == "pretrain" else "batch_pairs"
            _check_warning(recipe.slurm.signal_lead_s, shape)
            _check_fills(getattr(phase, field), shape, name=f"{kind.name}.{field}")
        found.append(
            Job(
                name=kind.name, stages=own, to_do=tuple(s for s in own if s in to_do),
                after=waits_for(kind.name, names), trains=kind.trains, shape=shape,
                route=route_of(recipe, profile) if kind.trains else _stage_route(recipe, profile),
                lead_s=recipe.slurm.signal_lead_s if kind.trains else recipe.slurm.stage_lead_s,
                links=_links(recipe, profile),
            )
        )  # fmt: skip
    return found


def route_of(recipe: Recipe, profile: ClusterProfile) -> Route:
    """How a stopped job goes on: the recipe's wish, else the profile's, else requeueing."""
    if recipe.slurm.route != "auto":
        return recipe.slurm.route
    return profile.route or "requeue"


def _stage_route(recipe: Recipe, profile: ClusterProfile) -> Route:
    """Without ranks there is nothing that an array chain would have to go on with."""
    return "requeue" if route_of(recipe, profile) == "requeue" else "successor"


def _links(recipe: Recipe, profile: ClusterProfile) -> int:
    return min(recipe.slurm.links, profile.max_array_tasks or recipe.slurm.links)


def _check_fills(batch: int, shape: Shape, *, name: str) -> None:
    try:
        check_fills(batch, shape.ranks, name=name)
    except UserError as error:
        nodes, each = shape.nodes, shape.tasks_per_node
        fewer = f"--nodes {batch // each}" if batch >= each else f"--nodes 1 --tasks-per-node {batch}"
        raise UserError(
            f"{error.value} on {nodes} node{'s' * (nodes != 1)} with {each} processes each", error.rule,
            f"use {shape.ranks} or more, or fewer ranks: {fewer}",
        ) from error  # fmt: skip


def _check_warning(lead_s: int, shape: Shape) -> None:
    seconds = 60 * shape.time_min
    if lead_s >= seconds:
        raise UserError(
            f"slurm.signal_lead_s = {lead_s}",
            f"must be below the {seconds} seconds of a link, which would be warned at once",
            f"ask for more time than {-(-lead_s // 60)} minutes, or lower the lead (`rumpun drill`)",
        )


def _asks_gpu(name: str, recipe: Recipe) -> bool:
    """Whether a job without ranks runs models: then one GPU serves it better than many cores."""
    if name == "eval":
        return True
    if name != "pairs":
        return False
    teachers = [t for t in (recipe.mine.teacher, recipe.mine.second_teacher) if t] if recipe.mine else []
    teachers += [recipe.synth.teacher] if recipe.synth else []
    models = any(teacher.kind == "sentence-transformers" for teacher in teachers)
    return models or recipe.truncate.probe is not None or bool(recipe.mine and recipe.mine.cross_encoder)


def _time(wish: int, asked: int | None, profile: ClusterProfile) -> tuple[int, bool]:
    """Minutes, and whether the recipe's wish was cut to the cluster's limit. What was asked for by name is not cut."""
    limit = profile.max_time_min
    if asked is not None:
        if limit is not None and asked > limit:
            raise UserError(
                f"--time {asked}", f"cluster {profile.name} gives a job {limit} minutes at most",
                f"use --time {limit} or less: training goes on in the next link",
            )  # fmt: skip
        return asked, False
    return (wish, False) if limit is None or wish <= limit else (limit, True)


def _training_shape(
    recipe: Recipe, profile: ClusterProfile, time_min: int | None, excluded: Mapping[str, str]
) -> Shape:
    asked, gpus = recipe.slurm, profile.gpus_per_node
    tasks = asked.tasks_per_node or gpus or recipe.launch.nproc
    if gpus and tasks > gpus:
        raise UserError(
            f"slurm.tasks_per_node = {tasks}", f"nodes of cluster {profile.name} have {gpus} GPUs, one for each rank",
            f"use --tasks-per-node {gpus} and more nodes",
        )  # fmt: skip
    # a part of the GPUs takes the same part of the cores and of the memory
    parts = gpus or tasks
    cores = profile.cpus_per_node // parts if profile.cpus_per_node and gpus else None
    memory = profile.memory_gb * tasks // parts if profile.memory_gb and gpus else profile.memory_gb
    minutes, shortened = _time(asked.time_min, time_min, profile)
    return Shape(
        nodes=asked.nodes, tasks_per_node=tasks,
        cpus_per_task=asked.cpus_per_task or cores or recipe.launch.threads_per_process,
        gpus_per_node=tasks if gpus else 0, gpu_type=profile.gpu_type if gpus else None,
        memory_gb=asked.memory_gb or memory or None, time_min=minutes, shortened=shortened,
        partition=profile.partition, account=profile.account, qos=profile.qos, constraint=profile.constraint,
        exclude=tuple(dict.fromkeys((*profile.exclude, *excluded))),
    )  # fmt: skip


def _stage_shape(recipe: Recipe, profile: ClusterProfile, *, asks_gpu: bool, excluded: Mapping[str, str]) -> Shape:
    on_gpu = asks_gpu and profile.gpus_per_node > 0
    cores = _STAGE_CPUS
    if not recipe.slurm.fan_out and recipe.fanout.kind == "local":
        workers = recipe.fanout.workers
        most = _STAGE_CPUS_MOST if profile.cpus_per_node else _STAGE_CPUS  # an unknown node may have few
        cores = workers * recipe.fanout.threads_per_worker if workers else most
    if profile.cpus_per_node:
        cores = min(cores, profile.cpus_per_node)
    memory = recipe.slurm.memory_gb
    if profile.memory_gb:
        share = profile.memory_gb * cores // profile.cpus_per_node if profile.cpus_per_node else 0
        memory = min(profile.memory_gb, max(share, _STAGE_MEMORY_GB))
    minutes, shortened = _time(recipe.slurm.stage_time_min, None, profile)
    # a partition for jobs without ranks need not have GPUs
    elsewhere = not on_gpu
    return Shape(
        cpus_per_task=cores, gpus_per_node=1 if on_gpu else 0, gpu_type=profile.gpu_type if on_gpu else None,
        memory_gb=memory, time_min=minutes, shortened=shortened,
        partition=(elsewhere and profile.stage_partition) or profile.partition,
        account=(elsewhere and profile.stage_account) or profile.account, qos=profile.qos,
        constraint=profile.stage_constraint if elsewhere else profile.constraint,
        exclude=tuple(dict.fromkeys((*profile.exclude, *excluded))),
    )  # fmt: skip
