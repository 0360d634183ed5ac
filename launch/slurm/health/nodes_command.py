"""`rumpun cluster nodes`: what is remembered of nodes, for an admin."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def nodes_command(
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="the folder whose runs remember")] = Path("runs"),
    forget: Annotated[
        list[str] | None, typer.Option("--forget", metavar="NODE", help="let its past count no more; may be repeated")
    ] = None,
) -> None:
    """What happened on which node, and which are kept out of new jobs until when."""
    from launch.slurm.health import memory as nodes

    folder = nodes.folder_of(runs)
    for node in forget or []:
        typer.echo(f"{node}: {nodes.forget(folder, node)} events count no more")
    rows = nodes.table(folder)
    for place in nodes.events_of(folder)[1]:
        typer.echo(f"warning: a damaged line was passed over: {place}", err=True)
    if not rows:
        typer.echo(f"nothing is remembered of any node in {folder}")
        return
    cells: list[tuple[str, ...]] = [("node", "kept out until", "events", "last", "job", "run", "what")]
    for row in rows:
        last = row["last"]
        counts = ", ".join(f"{count} × {kind}" for kind, count in sorted(row["counts"].items()))
        until = nodes.moment(row["until"]) if row["until"] else "-"
        cells.append((row["node"], until, counts, nodes.moment(last.time), last.job or "-", last.run or "-", last.what))
    if sys.stdout.isatty():
        _rich(cells)
        return
    widths = [max(len(row[column]) for row in cells) for column in range(6)]
    for cell in cells:
        typer.echo("  ".join(f"{text:<{width}}" for text, width in zip(cell, widths, strict=False)) + f"  {cell[6]}")


def _rich(cells: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False)
    for title in cells[0]:
        shown.add_column(title, overflow="fold")
    for cell in cells[1:]:
        shown.add_row(
            *(Text(text, style="red" if column == 1 and text != "-" else "") for column, text in enumerate(cell))
        )
    Console().print(shown)
