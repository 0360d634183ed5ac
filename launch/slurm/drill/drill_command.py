"""`rumpun drill` on the command line."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.options import Cluster, Data, Nodes, Overrides, RunName, Runs, TasksPerNode

if TYPE_CHECKING:
    from launch.slurm.drill.drill import OnCluster
    from launch.slurm.drill.drill_figures import Figures
    from launch.slurm.drill.drill_scene import Scene


def drill_command(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="a recipe as for `rumpun submit`, or the folder of a run")
    ],
    cluster: Cluster = None,
    nodes: Nodes = None,
    tasks_per_node: TasksPerNode = None,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=3, help="steps to measure")] = 10,
    phase: Annotated[
        str | None, typer.Option("--phase", metavar="NAME", help="pretrain or finetune; unset: the first not done")
    ] = None,
    moments: Annotated[
        list[str] | None, typer.Option("--moment", metavar="WHEN", help="step, start or save; unset: all three")
    ] = None,
    here: Annotated[bool, typer.Option("--here", help="with ranks on this machine, without a scheduler")] = False,
    overrides: Overrides = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    run_name: RunName = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the figures as JSON")] = False,
) -> None:
    """Rehearse preemption before it happens: signal training at the worst moments, on a copy, and measure.

    Exit code 2 where a signal loses something, or where the warning that the recipe asks for is too short.
    """
    from data_prep.errors import UserError
    from launch.cli import quiet_libraries
    from launch.lock import RunLock
    from launch.recipe import load_recipe
    from launch.slurm.clusters.profile import load_profile
    from launch.slurm.drill.drill import MOMENTS, OnCluster, proof_of
    from launch.slurm.drill.drill_figures import check
    from launch.slurm.drill.drill_scene import plan_scene, set_up, tear_down
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.order import new_order

    quiet_libraries()
    here = here or (cluster is None and shutil.which("sbatch") is None)
    unknown = [name for name in moments or () if name not in MOMENTS]
    if unknown:
        raise UserError(f"--moment {unknown[0]}", f"must be one of {', '.join(MOMENTS)}", "leave it away for all")
    if here and (cluster or (nodes or 1) > 1):
        given = f"--cluster {cluster}" if cluster else f"--nodes {nodes}"
        raise UserError(f"--here {given}", "exclude each other", "leave one of them away")
    order = new_order(
        target, overrides=overrides or [], data=data, runs=runs, run_name=run_name, cluster=cluster,
        asked={"nodes": nodes, "tasks_per_node": tasks_per_node},
    )  # fmt: skip
    if here and tasks_per_node:
        from dataclasses import replace

        order = replace(order, overrides=(*order.overrides, f"launch.nproc={tasks_per_node}"))
    scene = plan_scene(order, phase=phase, steps=steps)
    profile = load_profile(None if here else order.cluster or scene.recipe.slurm.cluster)
    chosen = [MOMENTS[name] for name in moments or MOMENTS]
    well = False
    with RunLock(scene.run, stages=("drill",)):  # one drill at a time, and no walk rebuilds what it reads
        on = None if here else OnCluster(scene, Slurm.here(), _note)
        if on is not None:
            on.end_former()
        set_up(scene)
        try:
            found = _rehearsed(scene, chosen, steps=steps, on=on)
            facts = _facts(scene, found, where="here" if here else profile.name, steps=steps)
            facts["proof"] = proof_of(scene)
            _keep(scene, facts)
            for line in [json.dumps(facts)] if as_json else table(scene, found, facts):
                typer.echo(line)
            asked, _ = load_recipe(order.recipe, order.overrides)  # without what the drill changes
            for line in check(found, asked, profile):
                typer.echo(line, err=as_json)
            well = True
        finally:
            tear_down(scene, keep_logs=not well)
            if not well:
                typer.echo(f"logs of the drill: {scene.place / 'logs'}", err=True)


def _note(line: str) -> None:
    typer.echo(f"[drill] {line}", err=True)


def _rehearsed(scene: Scene, moments: list[str], *, steps: int, on: OnCluster | None) -> Figures:
    from launch.slurm.drill.drill import Conductor, metrics, rehearse_here, signal_here
    from launch.slurm.drill.drill_figures import figures

    conductor = Conductor(scene, moments, steps=steps, send=on.send if on else signal_here, note=_note)
    if on is None:
        rehearse_here(scene, conductor, _quiet())
    else:
        _note(f"job {on.submit()} is submitted; it is signalled {len(moments) + 1} times")
        on.rehearse(conductor)
    conductor.look()
    return figures(scene.chain.events(scene.phase), sent=conductor.sent, records=metrics(scene))


def _quiet() -> Any:
    """A progress display that shows nothing."""
    import io

    from launch.display import TerminalProgress

    return TerminalProgress(stream=io.StringIO())


def _facts(scene: Scene, found: Figures, *, where: str, steps: int) -> dict[str, Any]:
    recipe = scene.recipe
    begins = [e for e in scene.chain.events(scene.phase) if e["event"] == "begin"]
    return {
        "format": 1, "phase": scene.phase, "where": where, "nodes": len(begins[0]["nodes"]),
        "ranks": begins[0]["ranks"], "measured_at": time.time(), "batch": _batch(recipe, scene.phase), **found.facts(),
    }  # fmt: skip


def _batch(recipe: Any, phase: str) -> int:
    return int(getattr(getattr(recipe, phase), "batch_rows" if phase == "pretrain" else "batch_pairs"))


def _keep(scene: Scene, facts: dict[str, Any]) -> None:
    """Write the figures into the run's chain folder."""
    from data_prep.files import disk_errors, write_json
    from launch.slurm.chain import Chain

    file = Chain(scene.run).drill_file
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, facts)


def table(scene: Scene, found: Figures, facts: dict[str, Any]) -> list[str]:
    """What the user reads."""
    many = f"{facts['nodes']} node{'s' * (facts['nodes'] != 1)}, {facts['ranks']} rank{'s' * (facts['ranks'] != 1)}"
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found.start_parts.items() if seconds >= 0.05)
    where = "on this machine" if facts["where"] == "here" else f"on {facts['where']}"
    lines = [
        f"drill of {scene.run}: {scene.phase}, {many}, {where}",
        f"start-up     {found.start:8.1f} s   {parts}",
        f"step         {found.step:8.2f} s   the longest of {found.steps}: {found.longest:.2f} s",
        f"save         {found.save:8.2f} s   then {found.leave:.2f} s until the ranks are gone",
    ]
    if found.requeue is not None:
        first = (
            "" if found.requeue_to_step is None else f"   to the end of the first step {found.requeue_to_step:.1f} s"
        )
        lines.append(f"requeue      {found.requeue:8.1f} s{first}")
    lines += ["", f"{'signal':26}{'after step':>10}{'gone after':>12}{'saved':>8}{'went on at':>12}"]
    for one in found.moments:
        on = "-" if one.went_on is None else str(one.went_on)
        told = f"{one.moment:26}{one.step:>10}{one.took_s:>10.2f} s{one.saved:>8}{on:>12}"
        lines.append(f"{told}   {'WRONG: ' + one.wrong if one.wrong else 'ok'}")
    return [
        *lines, "", facts["proof"], f"needed before a time limit: {found.lead} s = {found.formula}",
        f"needed before a preemption: {found.grace} s",
    ]  # fmt: skip
