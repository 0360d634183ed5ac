"""`rumpun ablate RECIPE --axis KEY=V1,V2`: the same recipe with one thing changed at a time, and one table.

Exit codes: 0 every cell is done (on a cluster: none has failed); else that of the first cell that failed, while the
others were done all the same; 75 stopped on request, the same command goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Cluster, Data, Overrides, RecipeName, Runs

if TYPE_CHECKING:
    from launch.ablation import Ablation
    from launch.recipe import Recipe


def ablate_command(
    recipe: RecipeName,
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis", metavar="KEY[=V1,V2…]",
            help="what to vary, again for each key; values are TOML, tables in quotes: 'finetune.blend={synth = 1.0}'; "
            "without values: built-in ones (--list)",
        ),
    ] = None,
    grid: Annotated[
        bool, typer.Option("--grid/--one-at-a-time", help="every combination of the axes, or one change at a time")
    ] = False,
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", min=1, max=20, help="runs of each cell, each with its own seed")
    ] = 1,
    metric: Annotated[
        str | None, typer.Option("--metric", metavar="NAME", help="what the table compares; unset: recall@10")
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    slurm: Annotated[bool, typer.Option("--slurm", help="submit the cells as jobs, on the recipe's cluster")] = False,
    cluster: Cluster = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="with --slurm or --cluster: stay until every cell has ended")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what each cell would build, and do nothing")] = False,
    list_axes: Annotated[bool, typer.Option("--list", help="the axes that have built-in values, and end")] = False,
) -> None:  # fmt: skip
    """Vary a recipe: every cell is a run of its own, shared stages are built once, and a table compares them."""
    from data_prep.errors import UserError
    from launch.ablation import new_ablation
    from launch.cli import quiet_libraries
    from launch.recipe import load_recipe

    quiet_libraries()
    if wait and not (slurm or cluster):
        raise UserError(
            "--wait", "is for cells in a queue; here the command stays anyway", "leave it out, or add --slurm"
        )
    if list_axes:
        for line in axis_lines(load_recipe(recipe, overrides or [])[0]):
            typer.echo(line)
        return
    ablation = new_ablation(
        recipe, axes or [], overrides=overrides or [], data=data, runs=runs, grid=grid, seeds=seeds, metric=metric
    )
    for note in ablation.notes:
        typer.echo(note)
    if dry_run:
        for line in plan_lines(ablation):
            typer.echo(line)
        return
    code = _carry_out(ablation, recipe, on_cluster=slurm or cluster is not None, cluster=cluster, wait=wait)
    if code:
        raise typer.Exit(code)


def _carry_out(ablation: Ablation, name: str, *, on_cluster: bool, cluster: str | None, wait: bool) -> int:
    """Run or submit the cells, print the table; returns the exit code."""
    from launch.ablation import run_here
    from launch.display import TerminalProgress

    if on_cluster:
        from launch.slurm.submitting.cells import run_on_cluster

        run_on_cluster(ablation, TerminalProgress(), name=name, cluster=cluster, wait=wait)
    else:
        run_here(ablation)
    typer.echo((ablation.folder / "table.txt").read_text(encoding="utf-8"), nl=False)
    typer.echo(f"page: {ablation.folder / 'ablation.html'}")
    states = [run.state for run in ablation.runs]
    if "queued" in states or "waiting" in states:
        typer.echo("cells are in the queue: the same command collects what is finished and submits what waits")
    failed = [run for run in ablation.runs if run.code]
    if failed:
        names = ", ".join(run.place.name for run in failed[:4]) + (" …" if len(failed) > 4 else "")
        what = f"cell{'s' * (len(failed) > 1)} {names}: failed. Fix: the reasons stand below the table"
        typer.echo(f"error: {what}; the same command tries again, and does nothing else twice", err=True)
    return failed[0].code if failed else 0


def axis_lines(recipe: Recipe) -> list[str]:
    """The known axes with the values that they have for this recipe."""
    from data_prep.errors import UserError
    from launch.ablation_axes import AXES, parse_axes

    lines = []
    for key, axis in AXES.items():
        try:
            values = ", ".join(parse_axes([key], recipe)[0].values)
        except UserError as error:
            values = error.rule
        lines.append(f"{key:24} {axis.about}\n{'':24} {values}")
    return lines


def plan_lines(ablation: Ablation) -> list[str]:
    """What each run would build, and what it would take from which other."""
    from launch.ablation import LAST
    from launch.ablation_axes import shown
    from launch.sharing import likeness
    from launch.stages import leading

    count, seeds = len(ablation.cells), len(ablation.seeds)
    several = f", each with {seeds} seeds" if seeds > 1 else ""
    lines = [f"{count} cells{several}, in {ablation.folder}"]
    owners: dict[str, str] = {}
    for run in ablation.runs:
        stages = run.stages(ablation.data)
        wanted, prints = leading(stages, LAST), likeness(stages)
        to_do = run.to_do(ablation.data) if run.place.exists() else {s.name: "" for s in stages if s.name in wanted}
        taken: dict[str, list[str]] = {}
        for name in to_do:
            taken.setdefault(owners.setdefault(prints[name], run.place.name), []).append(name)
        own = taken.pop(run.place.name, [])
        lines += ["", f"{run.place.name}   ({shown(run.cell.settings)}{f', seed {run.seed}' if seeds > 1 else ''})"]
        lines += [f"  builds {', '.join(own)}" if own else "  done" if not to_do else "  builds nothing"]
        lines += [f"  takes {', '.join(names)} from {origin}" for origin, names in taken.items()]
    return [*lines, "", "dry run: nothing was written"]
