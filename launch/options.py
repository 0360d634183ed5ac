"""Options that several commands share, so that they read the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="a .toml file, or the name of one in recipes/")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override one value, e.g. finetune.epochs=2")
]
Data = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="what {data} stands for in the recipe's paths")
]
Runs = Annotated[Path, typer.Option("--runs", metavar="DIR", help="where run folders go")]
RunName = Annotated[
    str | None, typer.Option("--run", metavar="NAME", help="name of the run folder, if not the recipe's")
]
Nodes = Annotated[int | None, typer.Option("--nodes", metavar="N", min=1, help="nodes of a training job")]
TasksPerNode = Annotated[
    int | None, typer.Option("--tasks-per-node", metavar="N", min=1, help="ranks on each; unset: one for each GPU")
]
Cluster = Annotated[
    str | None, typer.Option("--cluster", metavar="NAME", help="a profile of slurm/clusters/, or its file")
]
