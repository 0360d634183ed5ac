"""`rumpun cluster`: learn a cluster's facts into a profile, list the profiles, show one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from data_prep.errors import UserError
from launch.slurm.health.nodes_command import nodes_command

if TYPE_CHECKING:
    from launch.slurm.clusters.learn import Learned

cluster_app = typer.Typer(help="Cluster profiles: what jobs ask for, and why.", no_args_is_help=True)
cluster_app.command("nodes")(nodes_command)

ClusterName = Annotated[str, typer.Argument(metavar="NAME", help="of the profile, as in slurm/clusters/NAME.toml")]


@cluster_app.command("learn")
def cluster_learn(
    name: ClusterName,
    partition: Annotated[
        str | None, typer.Option("--partition", metavar="P", help="where training runs; unset: the cluster's default")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FILE", help="write here instead of slurm/clusters/NAME.toml")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="overwrite a profile that is there")] = False,
) -> None:
    """Ask this cluster's scheduler, and write a profile that cites the fact behind each value."""
    import re

    from launch.slurm.clusters.learn import learn
    from launch.slurm.clusters.profile import CLUSTERS, NAME, profile_lines
    from launch.slurm.scheduler.commands import Slurm

    if not re.match(NAME, name):
        raise UserError(f"cluster {name!r}", "is no name for a profile", "letters, digits, '.', '_' and '-'")
    file = to or CLUSTERS / f"{name}.toml"
    if file.exists() and not force:
        raise UserError(str(file), "exists already", "see it with `rumpun cluster show`; --force overwrites it")
    found = learn(Slurm.here(), name, partition=partition)
    head = [
        f"# Written by `rumpun cluster learn {name}`. Every value is yours to change; `From …` is where it came from.",
        "# A value behind a # is not set: the cluster's own default holds.",
    ]
    text = "\n".join([*head, *profile_lines(found.profile, notes=found.notes)]) + "\n"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(str(file), f"cannot be written ({error.strerror})", "name another file with --to") from error
    _print_found(found)
    typer.echo(f"wrote {file}\nuse it: rumpun submit RECIPE --cluster {name if to is None else to}")


@cluster_app.command("list")
def cluster_list() -> None:
    """The profiles that there are."""
    from launch.slurm.clusters.profile import load_profile, profiles

    for path in profiles():
        try:
            profile = load_profile(str(path))
        except UserError as error:
            typer.echo(f"{path.stem:16} broken: {error}")
            continue
        typer.echo(f"{path.stem:16} {profile.about}")
    if not profiles():
        typer.echo("no profiles yet; on a login node: rumpun cluster learn NAME")


@cluster_app.command("show")
def cluster_show(name: ClusterName) -> None:
    """A profile resolved: every value with its meaning and, where it was learned, its source."""
    from launch.slurm.clusters.profile import load_profile, profile_lines

    typer.echo("\n".join(profile_lines(load_profile(name))).lstrip("\n"))


def _print_found(found: Learned) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from launch.slurm.clusters.learn import table

    shown = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("value", "", "from"):
        shown.add_column(title, overflow="fold")
    for key, value, source in table(found):
        shown.add_row(Text(key), Text(value), Text(source, style="dim"))
    console = Console()
    console.print(shown)
    for warning in found.warnings:
        console.print(Text(f"mind: {warning}", style="yellow"), soft_wrap=True)
