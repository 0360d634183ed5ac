"""`rumpun job NAME RECIPE …`: what runs inside a job, on its first node. The controller of one link of a chain.

It walks the job's stages as `rumpun run` does; ranks are started on all nodes of the job (ranks.py). Whatever ends it
is written into the chain's record, and afterwards.py says what follows. It loads no torch.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from data_prep.errors import UserError
from launch.display import TerminalProgress
from launch.slurm.inside.afterwards import Ending
from train.exit_codes import DEFECT, DIVERGED, MISTAKE, STOPPED, SUPERSEDED

if TYPE_CHECKING:
    from launch.recipe import Recipe
    from launch.slurm.chain import Chain, LinkLog
    from launch.slurm.clusters.profile import ClusterProfile
    from launch.slurm.inside.allocation import Allocation
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.jobs import Kind

MARGIN_S = 30.0
"""Seconds before the end of the allocation by which ranks must have saved and left, if nobody warns them earlier."""


@dataclass(frozen=True)
class Link:
    """One start of a job: everything that its controller knows."""

    kind: Kind
    recipe: Recipe
    source: Path
    run: Path
    data: Path | None
    fresh: bool
    profile: ClusterProfile
    place: Allocation
    slurm: Slurm
    chain: Chain
    log: LinkLog


def own_stages(kind: Kind, recipe: Recipe, run: Path, data: Path | None) -> tuple[str, ...]:
    """The job's stages that the recipe has, in their order."""
    from launch.pipeline import Plan

    bound = data if data is not None else (run / "generate" if recipe.generate else None)
    return tuple(stage.name for stage in Plan(recipe, run, bound).stages() if stage.name in kind.stages)


def open_link(
    name: str, recipe_name: str, overrides: Sequence[str], *, data: Path | None, runs: Path, run_name: str | None,
    cluster: str | None, fresh: bool,
) -> Link:  # fmt: skip
    """Load everything. Raises `UserError` outside a job, and for whatever is wrong with the recipe or the profile."""
    from launch.recipe import load_recipe
    from launch.runner import check_run_name, make_folder
    from launch.slurm.chain import Chain, LinkLog
    from launch.slurm.clusters.profile import load_profile
    from launch.slurm.inside.allocation import Allocation
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.jobs import kind_of

    kind, slurm = kind_of(name), Slurm.here()
    place = Allocation.here(slurm)
    recipe, source = load_recipe(recipe_name, overrides)
    profile = load_profile(cluster or recipe.slurm.cluster)
    run = (runs / check_run_name(run_name or recipe.name)).resolve()
    make_folder(run)
    chain = Chain(run)
    log = LinkLog(chain, name, job_id=place.job_id, restart=place.restart)
    # a requeued job has the arguments of its first start: what it has trained since must not be put aside
    fresh = fresh and place.restart == 0 and not any(e["job"] == place.job_id for e in chain.events(name))
    return Link(kind, recipe, source, run, data, fresh, profile, place, slurm, chain, log)


def _walk(link: Link, progress: TerminalProgress) -> None:
    """Bring the job's stages up to date."""
    from launch.binding import Surroundings
    from launch.runner import Choice, walk

    recipe, place = link.recipe, link.place
    launch = recipe.launch.model_copy(update={"nproc": place.ranks, "port": 0}) if link.kind.trains else None
    here = Surroundings(
        launch=launch,
        starter=_starter(link, progress) if link.kind.trains else None,
        fanout=_fanout(link),
        deadline=None if place.ends_at is None else place.ends_at - MARGIN_S,
        job=place.job_id,
        restart=place.restart,
    )
    stages = own_stages(link.kind, recipe, link.run, link.data)
    walk(
        recipe, link.source, run=link.run, data=link.data, choice=Choice(stages=stages),
        progress=progress, fresh=link.fresh, here=here,
    )  # fmt: skip


def _starter(link: Link, progress: TerminalProgress) -> Any:
    from launch.slurm.inside.look import Look
    from launch.slurm.inside.ranks import StepStarter
    from launch.slurm.inside.wrapping import wrapping

    prefix, options, python = wrapping(link.profile)
    return StepStarter(
        link.place, link.recipe.slurm, link.slurm, note=link.log.write,
        before=Look(link, progress) if link.recipe.slurm.preflight else lambda: None,
        prefix=prefix, options=options, python=python,
    )  # fmt: skip


def _fanout(link: Link) -> Any:
    """Parts of data stages as array jobs of this cluster, where the recipe does not say otherwise."""
    if not link.recipe.slurm.fan_out or link.kind.trains:
        return None
    from launch.fanout_array import ArrayConfig

    return ArrayConfig.on(link.profile, link.recipe.fanout)


class Told(TerminalProgress):
    """The progress display, with the stages written into the link's record as well."""

    def __init__(self, log: LinkLog) -> None:
        super().__init__()
        self._log = log

    @contextmanager
    def stage(self, name: str, index: int, count: int) -> Iterator[dict[str, int | float]]:
        """As the display's; begin and end are recorded."""
        began = time.monotonic()
        self._log.write("stage", stage=name)
        with super().stage(name, index, count) as counts:
            yield counts
        self._log.write("stage_done", stage=name, seconds=round(time.monotonic() - began, 3))


def gained(run: Path, stages: Sequence[str]) -> int:
    """A number that grows with whatever these stages have done and saved: steps, finished parts, finished stages."""
    from launch.history import folder_of
    from launch.relay import saved_step

    total = 0
    for stage in stages:
        total += saved_step(folder_of(run, stage))
        total += sum(1 for _ in (run / "work" / stage).glob("*/*.json"))
        total += 1_000_000_000 * (run / stage / "stage.json").exists()
    return total


def ending_of(error: BaseException | None, link: Link) -> Ending:
    """How the walk ended, in terms of the chain."""
    from launch.failure import Hung, NodeFailure, RankFailure, normalised
    from launch.history import folder_of
    from launch.relay import last_step
    from launch.slurm.inside.look import node_of
    from train.guard import Diverged
    from train.history.fence import Superseded
    from train.survival import Stopped

    stages = own_stages(link.kind, link.recipe, link.run, link.data)
    step = max((last_step(folder_of(link.run, stage)) for stage in stages), default=0)
    common: dict[str, Any] = {"step": step, "gained": gained(link.run, stages)}
    if error is None:
        return Ending("done", **common)
    if isinstance(error, Stopped):
        return Ending("stopped", error.reason, STOPPED, **common)
    if isinstance(error, Superseded):
        return Ending("superseded", str(error), SUPERSEDED, **common)
    if isinstance(error, Diverged):
        return Ending("diverged", str(error), DIVERGED, **common)
    if isinstance(error, UserError):
        return Ending("mistake", str(error), MISTAKE, **common)
    if isinstance(error, RankFailure):
        return Ending(
            "hung" if isinstance(error, Hung) else "failed", error.line, error.exit_code, cause=error.cause,
            repeated=error.repeated, hosts=tuple(node_of(host, link.place.nodes) for host in error.hosts),
            leave_out=isinstance(error, (NodeFailure, Hung)), **common,
        )  # fmt: skip
    if isinstance(error, (SystemExit, KeyboardInterrupt)):  # a warning or the end, where no rank runs
        name = {STOPPED: "the warning before the time limit", 143: "SIGTERM"}.get(getattr(error, "code", None) or 0)
        return Ending("stopped", name or "a signal", STOPPED, **common)
    line = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    return Ending("failed", line, DEFECT, cause=normalised(line), **common)


def job_command(
    name: str, recipe: str, overrides: Sequence[str], *, data: Path | None, runs: Path, run_name: str | None,
    cluster: str | None, fresh: bool = False,
) -> int:  # fmt: skip
    """Run one link of a job, and see to what follows. Returns the exit code."""
    import traceback

    from launch.slurm.inside.follow import follow, stopped_why

    link = open_link(
        name, recipe, overrides, data=data, runs=runs, run_name=run_name, cluster=cluster, fresh=fresh
    )  # fmt: skip
    place = link.place
    number = link.log.link()
    progress = Told(link.log)
    progress.note(
        f"rumpun: job {name} ({place.job_id}, link {number}) of {link.run} on {', '.join(place.nodes)}, "
        f"{place.ranks if link.kind.trains else 1} process{'es' * (link.kind.trains and place.ranks != 1)}"
    )
    link.log.write(
        "begin", nodes=list(place.nodes), ranks=place.ranks if link.kind.trains else 0, submitted=place.submitted,
        eligible=place.eligible, start=place.started, end_limit=place.ends_at, link=number,
    )  # fmt: skip
    error: BaseException | None = None
    why = stopped_why(link)
    if why is None:
        try:
            _walk(link, progress)
        except BaseException as caught:
            error = caught
            if not isinstance(caught, (UserError, SystemExit, KeyboardInterrupt)) and _is_defect(caught):
                traceback.print_exc()
    else:
        from train.survival import Stopped

        error = Stopped(why, 0)
    ending = ending_of(error, link)
    if ending.outcome != "done":
        typer.echo(f"{'error: ' * (ending.outcome not in ('stopped', 'superseded'))}{error or ending.reason}", err=True)
    return follow(link, ending, progress)


def _is_defect(error: BaseException) -> bool:
    """Whether its traceback is what there is to say."""
    from launch.failure import RankFailure
    from train.guard import Diverged
    from train.history.fence import Superseded
    from train.survival import Stopped

    return not isinstance(error, (RankFailure, Diverged, Superseded, Stopped))
