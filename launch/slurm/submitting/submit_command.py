"""`rumpun submit` and `rumpun cancel` on the command line."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from launch.options import Cluster, Data, Nodes, Overrides, RunName, Runs, TasksPerNode

if TYPE_CHECKING:
    from launch.slurm.submitting.decide import Decision
    from launch.slurm.submitting.submit import Prepared

FOLLOW = (
    ("status", "the chain: states, progress, what waits and why"),
    ("watch", "the same, live"),
    ("logs", "what a job or a rank prints"),
    ("cancel", "ends its jobs; training saves first"),
    ("history", "where the time went"),
)


def submit_command(
    target: Annotated[
        str, typer.Argument(metavar="RECIPE|RUN", help="a recipe as for `rumpun run`, or a run folder to go on with")
    ],
    nodes: Nodes = None,
    tasks_per_node: TasksPerNode = None,
    cluster: Cluster = None,
    time_min: Annotated[
        int | None, typer.Option("--time", metavar="MIN", min=1, help="minutes of a link of a training job")
    ] = None,
    overrides: Overrides = None,
    data: Data = None,
    runs: Runs = Path("runs"),
    run_name: RunName = None,
    only: Annotated[str | None, typer.Option("--only", metavar="JOB", help="this job alone")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print every script and how it would be submitted; touch nothing")
    ] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="let the first jobs wait until `scontrol release` lets them go")
    ] = False,
) -> None:
    """Submit a recipe to SLURM as jobs that wait for each other; what is done is not done again.

    A run folder goes on as it was submitted: `rumpun submit runs/demo --nodes 8`.
    """
    from data_prep.errors import UserError
    from launch.slurm.drill.drill_figures import lead_warning
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.decide import decide
    from launch.slurm.submitting.order import new_order
    from launch.slurm.submitting.submit import check, prepare, submit

    order = new_order(
        target, overrides=overrides or [], data=data, runs=runs, run_name=run_name, cluster=cluster,
        asked={"nodes": nodes, "tasks_per_node": tasks_per_node, "time_min": time_min},
    )  # fmt: skip
    slurm: Slurm | None = None
    trouble: UserError | None = None
    try:
        slurm = Slurm.here()
    except UserError as error:
        trouble = error
    prepared = prepare(order, time_min=time_min, only=only, slurm=slurm)
    if warning := lead_warning(order.run, prepared.recipe):
        typer.echo(warning, err=True)
    if not prepared.texts:
        what = f"all stages of {only} are" if only and prepared.jobs else f"all {prepared.stages} stages are"
        typer.echo(f"nothing to do: {what} up to date in {shown(order.run)}")
        return
    if trouble is not None and not dry_run:
        raise trouble
    decisions, answers = decide(prepared, slurm), {}
    if slurm:
        try:
            answers = check(prepared, decisions, slurm)
        except UserError as error:
            if not dry_run:
                raise
            trouble = error
    if dry_run:
        for line in dry_run_lines(prepared, decisions, answers, hold=hold):
            typer.echo(line)
        typer.echo("### dry run: nothing was submitted or written" + ("; nothing was checked" if slurm is None else ""))
        if slurm is not None and trouble is not None:
            raise trouble
        return
    assert slurm is not None
    new = [d for d in decisions if d.keep is None]
    if new:
        submit(prepared, decisions, slurm, hold=hold)
    for line in told(prepared, decisions):
        typer.echo(line)


def shown(run: Path) -> str:
    """A run folder as the user would type it from here."""
    relative = os.path.relpath(run)
    return str(run) if relative.startswith("..") else relative


def told(prepared: Prepared, decisions: Sequence[Decision]) -> list[str]:
    """What the user is told: one line a job, and the commands that follow."""
    run, new = shown(prepared.order.run), sum(d.keep is None for d in decisions)
    kept = len(decisions) - new
    on = "" if prepared.profile.name == "default" else f" on {prepared.profile.name}"
    first = f"submitted {run}{on}: {new} job{'s' * (new != 1)}"
    if not new:
        first = (
            f"nothing to submit: {kept} job{'s' * (kept != 1)} of {run} {'are' if kept != 1 else 'is'} there already"
        )
    elif kept:
        first += f", {kept} {'were' if kept != 1 else 'was'} there already"
    rows = [("job", "id", "waits for", "nodes", "ranks", "time", "partition", "")]
    there = {d.job.name for d in decisions}
    for decision in decisions:
        job, shape = decision.job, decision.job.shape
        note = f"there already, {decision.state.lower()}" if decision.keep else ""
        if decision.running:
            note = f"begins when {', '.join(decision.running)} has saved and ended"
        elif decision.waiting:
            note = f"in place of {', '.join(decision.waiting)}"
        rows.append(
            (
                job.name, decision.keep or decision.id, ", ".join(n for n in job.after if n in there) or "-",
                str(shape.nodes), str(shape.ranks) if job.trains else "-", hours(shape.time_min),
                shape.partition or "(default)", note,
            )
        )  # fmt: skip
    wide = [max(len(row[n]) for row in rows) for n in range(len(rows[0]))]
    lines = [first, *("  ".join(f"{cell:{wide[n]}}" for n, cell in enumerate(row)).rstrip() for row in rows)]
    quoted = shlex.quote(run)
    return [*lines, *(f"rumpun {name} {quoted:<{len(quoted) + 9 - len(name)}}{text}" for name, text in FOLLOW)]


def hours(minutes: int) -> str:
    """Minutes as SLURM shows them: 1-00:00, 4:00, 0:30 (days, hours, minutes)."""
    days, rest = divmod(minutes, 1440)
    return (f"{days}-{rest // 60:02}" if days else f"{rest // 60}") + f":{rest % 60:02}"


def dry_run_lines(
    prepared: Prepared, decisions: Sequence[Decision], answers: dict[str, str], *, hold: bool
) -> list[str]:
    """Every script, with the line that would submit it; ids that are not there yet are named by their job."""
    from launch.slurm.chain import Chain
    from launch.slurm.submitting.decide import options_of

    ids = {d.job.name: d.keep or f"<{d.job.name}>" for d in decisions}
    lines = []
    for decision in decisions:
        name, script = decision.job.name, Chain(prepared.order.run).script(decision.job.name)
        if decision.keep:
            lines += [f"### {name}: job {decision.keep} is there already, {decision.state.lower()}", ""]
            continue
        words = ["sbatch", "--parsable", *options_of(decision, ids, hold=hold), shlex.quote(str(script))]
        lines += [f"### {name}: {' '.join(words)}"]
        if name in answers:
            lines += [f"### {answers[name]}"]
        lines += ["", prepared.texts[name]]
    return lines


def cancel_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or its name")],
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB]…", help="these, and what waits for them; none: all of the run")
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="where run folders are")] = Path("runs"),
    now: Annotated[bool, typer.Option("--now", help="do not wait until training has saved")] = False,
) -> None:
    """End the jobs of a run: those that wait leave the queue, training saves and ends, nothing goes on by itself."""
    from launch.ledger_command import find_run
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.cancel import cancel, cancel_lines, chain_of

    folder = find_run(run, runs)
    chain_of(folder)
    for line in cancel_lines(folder, cancel(folder, jobs or [], Slurm.here(), now=now)):
        typer.echo(line)
