"""Submitting a run: its jobs in an order in which each comes after those it waits for, all of them or none.

Invariant: a run's chain is replaced by a whole one or stays as it was. New jobs wait for the ones that they replace, so
that nothing of a run runs twice; a refusal in the middle cancels what was submitted before it.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors, write_atomically
from launch.slurm.chain import Chain
from launch.slurm.submitting.cancel import ids_of, numbers_of
from launch.slurm.submitting.decide import Decision, decide, options_of
from launch.slurm.submitting.directives import OUTPUT, directives, setup
from launch.slurm.submitting.jobs import Job, jobs_of
from launch.slurm.submitting.script import TEMPLATES, render

if TYPE_CHECKING:
    from launch.recipe import Recipe
    from launch.slurm.clusters.profile import ClusterProfile
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.order import Order

__all__ = ["Decision", "Prepared", "check", "decide", "prepare", "program", "submit"]

RESIZED = "resized"


@dataclass(frozen=True)
class Prepared:
    """A run that could be submitted.

    Attributes:
        jobs: what is to do, each after those it waits for. texts: their scripts. stages: how many the recipe has.
        former: the chain of the run as it was when this was judged.
    """

    order: Order
    recipe: Recipe
    source: Path
    profile: ClusterProfile
    jobs: tuple[Job, ...]
    texts: Mapping[str, str]
    stages: int
    former: Mapping[str, Any]


def program() -> str:
    """The absolute path of this environment's `rumpun`. Raises `UserError` where it has none."""
    place = Path(sys.prefix) / "bin" / "rumpun"
    if place.is_file():
        return str(place)
    raise UserError(str(place), "no such file: jobs start it", "install rumpun into this environment: pip install -e .")


def prepare(
    order: Order, *, time_min: int | None = None, only: str | None = None, slurm: Slurm | None = None
) -> Prepared:
    """Load, judge and render: what can be said before anything is submitted. Writes nothing.

    Args:
        time_min: minutes of a training link, where this command asks for them. only: this job alone.
        slurm: tells which nodes there are, so that those with a bad past are left out; None leaves none out.

    Raises:
        UserError: what would fail once a job runs, as far as it can be known here.
    """
    from launch.pipeline import Plan
    from launch.recipe import load_recipe
    from launch.slurm.clusters.profile import load_profile
    from launch.slurm.submitting.jobs import kind_of
    from launch.slurm.submitting.room import check_room
    from launch.slurm.submitting.todo import stages_to_do
    from launch.stages import Workshop

    former = Chain(order.run).jobs()
    recipe, source = load_recipe(order.recipe, order.overrides)
    profile = load_profile(order.cluster or recipe.slurm.cluster)
    if recipe.generate is not None and order.data is not None:
        raise UserError(f"--data {order.data}", "this recipe generates its own data ([generate])", "leave --data away")
    stages = Plan(recipe, order.run, order.data or (order.run / "generate" if recipe.generate else None)).stages()
    to_do = stages_to_do(stages, Workshop(order.run))
    kind = kind_of(only) if only else None
    avoid = _nodes_to_avoid(order, recipe, profile, slurm) if slurm and to_do else {}
    jobs = jobs_of(
        recipe, profile, stages=[s.name for s in stages], to_do=to_do, time_min=time_min, excluded=avoid
    )  # fmt: skip
    if to_do:
        check_room(recipe, order.run)
    texts = {
        job.name: render(
            TEMPLATES / f"{job.name}.sbatch",
            directives=directives(job, run=order.run, profile=profile, avoid=avoid),
            setup=setup(profile),
            arguments=order.arguments(),
            program=program(),
        )
        for job in jobs
        if kind is None or job.name == kind.name
    }
    return Prepared(order, recipe, source, profile, tuple(jobs), texts, len(stages), former)


def _nodes_to_avoid(order: Order, recipe: Recipe, profile: ClusterProfile, slurm: Slurm) -> dict[str, str]:
    """Nodes whose past keeps them out for now, with the reason; as many nodes as training needs are left."""
    from launch.slurm.health.memory import excluded, folder_of

    memory = folder_of(order.run.parent)
    if not memory.is_dir():
        return {}
    mine = set((profile.partition or "").split(",")) - {""}
    known = [node.name for node in slurm.node_facts() if not mine or mine & set(node.partitions)]
    found = list(excluded(memory, known=known).items())
    return dict(found[: max(0, len(known) - recipe.slurm.nodes)])


def check(prepared: Prepared, decisions: Sequence[Decision], slurm: Slurm) -> dict[str, str]:
    """Ask for each distinct shape whether it would be accepted. Returns the scheduler's line by job.

    Raises:
        UserError: one would not; nothing was submitted.
    """
    answers: dict[object, str] = {}
    told = {}
    with tempfile.TemporaryDirectory(prefix="rumpun-") as folder:
        for decision in decisions:
            job = decision.job
            if decision.keep is not None:
                continue
            shape = (job.shape, job.route, job.trains)
            if shape not in answers:
                script = Path(folder) / f"{job.name}.sbatch"
                script.write_text(prepared.texts[job.name], encoding="utf-8")
                answers[shape] = slurm.test(script)
            told[job.name] = answers[shape]
    return told


def submit(prepared: Prepared, decisions: Sequence[Decision], slurm: Slurm, *, hold: bool = False) -> None:
    """Submit what is not kept, and record it; the ids are put into the decisions.

    Raises:
        UserError: a job was refused: what was submitted before it is cancelled, and the chain is as it was.
    """
    from launch.lock import RunLock

    order, chain = prepared.order, Chain(prepared.order.run)
    _claim(prepared, any(d.keep or d.ended for d in decisions))
    with RunLock(chain.folder):
        before = chain.jobs()
        if before != prepared.former:
            raise UserError(
                f"run {order.run}", "was submitted by somebody else just now, or one of its jobs has just gone on",
                "run the same command again",
            )  # fmt: skip
        _submit_all(prepared, decisions, slurm, chain, hold=hold)
        # the new chain stands: now the jobs that it replaces may go, those first that would begin otherwise
        for decision in reversed(decisions):
            slurm.cancel(decision.waiting)
        running = [id for decision in decisions for id in decision.running]
        if running:
            chain.stop([n for d in decisions for id in d.running for n in numbers_of(chain, d.job.name, id)], RESIZED)
            slurm.cancel(running, pending_only=True)  # of an array, the links that wait
            slurm.cancel(running, signal="USR1")


def _submit_all(prepared: Prepared, decisions: Sequence[Decision], slurm: Slurm, chain: Chain, *, hold: bool) -> None:
    order, before = prepared.order, prepared.former
    entries: dict[str, Any] = dict(before.get("jobs", {}))
    ids = {d.job.name: d.keep for d in decisions if d.keep is not None}
    with _all_or_none(chain, before, slurm) as new:
        for decision in decisions:
            job, former = decision.job, entries.get(decision.job.name, {})
            if decision.keep is not None:
                continue
            script = chain.script(job.name)
            new.texts[script] = script.read_bytes() if script.exists() else None
            script.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(script, prepared.texts[job.name].encode())
            decision.id = slurm.submit(script, options=options_of(decision, ids, hold=hold), tested=True)
            ids[job.name] = decision.id
            new.ids.append(decision.id)
            entries[job.name] = _entry(job, decision.id, script.relative_to(order.run), ids_of(former))
            # at once: the job may begin before the next one is submitted
            chain.write_jobs(
                {
                    "cluster": prepared.profile.name, "run": str(order.run), "arguments": order.arguments(),
                    "submitted_at": time.time(), "jobs": entries,
                }
            )  # fmt: skip


def _entry(job: Job, id: str, script: Path, former: list[str]) -> dict[str, Any]:
    shape = job.shape
    return {
        "id": id, "stages": list(job.stages), "after": list(job.after), "script": script.as_posix(),
        "nodes": shape.nodes, "tasks_per_node": shape.tasks_per_node, "partition": shape.partition,
        "gpus_per_node": shape.gpus_per_node, "route": job.route, "links": job.links, "time_min": shape.time_min,
        "trains": job.trains, "former": former,
    }  # fmt: skip


@dataclass
class _New:
    ids: list[str] = field(default_factory=list)
    texts: dict[Path, bytes | None] = field(default_factory=dict)


@contextmanager
def _all_or_none(chain: Chain, before: Mapping[str, Any], slurm: Slurm) -> Iterator[_New]:
    """Takes back what was submitted and written where the body fails or is interrupted."""
    new = _New()
    try:
        yield new
    except BaseException as error:
        with suppress(UserError, OSError):
            slurm.cancel(new.ids[::-1])
        with suppress(UserError, OSError):
            for script, text in new.texts.items():
                script.unlink(missing_ok=True) if text is None else write_atomically(script, text)
            if before:
                chain.write_jobs(before)
            else:
                chain.jobs_file.unlink(missing_ok=True)
        if isinstance(error, UserError) and new.ids:
            raise UserError(
                error.value, f"{error.rule} (the {len(new.ids)} jobs submitted before it were cancelled)", error.fix
            ) from error
        raise


def _claim(prepared: Prepared, in_use: bool) -> None:
    """Make the run folder this recipe's; where jobs of it are there, it is already."""
    from launch.lock import RunLock
    from launch.runner import claim, make_folder

    run = prepared.order.run
    make_folder(run)
    if not in_use:
        with RunLock(run):
            claim(run, prepared.recipe, prepared.source)
    with disk_errors(run):
        (run / OUTPUT).mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(run).free == 0:
            raise UserError(f"run folder {run}", "lies on a full disk", "free space or use --runs DIR")
