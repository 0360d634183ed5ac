"""What is submitted: a recipe with its overrides, data and run folder, as the jobs get it on their command line.

A run remembers its order in `chain/jobs.json`, so that a run folder alone can be submitted again.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import UserError
from data_prep.files import read_json
from launch.slurm.chain import Chain

_SLURM, _LAUNCH = "slurm.", "launch."


@dataclass(frozen=True)
class Order:
    """A recipe bound to a run folder and a cluster.

    Attributes:
        recipe: absolute path of its file. overrides: `table.key=value`, each key once.
        data: absolute path, None where none was given. run: absolute path of the run folder.
        cluster: name of a profile or absolute path of its file; None where the recipe says.
    """

    recipe: str
    overrides: tuple[str, ...]
    data: Path | None
    run: Path
    cluster: str | None

    def arguments(self) -> list[str]:
        """What `rumpun job NAME` gets after the name."""
        found = [self.recipe]
        for override in self.overrides:
            found += ["--set", override]
        if self.data is not None:
            found += ["--data", str(self.data)]
        found += ["--runs", str(self.run.parent), "--run", self.run.name]
        return found + (["--cluster", self.cluster] if self.cluster else [])

    def settings(self) -> tuple[str, tuple[str, ...], str | None]:
        """What may change a result: all but the cluster and what its jobs ask for. To be compared."""
        kept = sorted(o for o in self.overrides if not _key(o).startswith((_SLURM, _LAUNCH)))
        return self.recipe, tuple(kept), None if self.data is None else str(self.data)


def _key(override: str) -> str:
    return override.partition("=")[0].strip()


def merged(former: Iterable[str], later: Iterable[str]) -> tuple[str, ...]:
    """Overrides, each key once: the last one holds, at the place of the first."""
    found: dict[str, str] = {}
    for override in (*former, *later):
        found[_key(override)] = override
    return tuple(found.values())


def absolute(path: Path | str) -> Path:
    """An absolute path; links stay, as the mount points of nodes may differ from what they point to here."""
    return Path(os.path.abspath(Path(path).expanduser()))


def is_run(target: str) -> bool:
    """Whether a word names a run folder."""
    place = Path(target).expanduser()
    return (place / "run.json").is_file() or (place / "chain" / "jobs.json").is_file()


def new_order(
    target: str,
    *,
    overrides: Sequence[str] = (),
    asked: Mapping[str, int | None],
    data: Path | None = None,
    runs: Path = Path("runs"),
    run_name: str | None = None,
    cluster: str | None = None,
) -> Order:
    """The order that a command gives.

    Args:
        target: a recipe, or a run folder: then its former order, with what is given here in front.
        asked: fields of [slurm] that options name (`nodes`), None where they do not.

    Raises:
        UserError: no such recipe; a run whose recipe is not known; a data folder that is not there.
    """
    from launch.recipe import find_recipe, load_recipe
    from launch.runner import check_run_name

    wishes = [*overrides, *(f"{_SLURM}{name}={value}" for name, value in asked.items() if value is not None)]
    if cluster is not None and (cluster.endswith(".toml") or "/" in cluster):
        cluster = str(absolute(cluster))
    if data is not None and not data.expanduser().is_dir():
        raise UserError(f"--data {data}", "is not a folder", "give the folder that holds the data")
    if is_run(target):
        place = absolute(target)
        if run_name is not None and run_name != place.name:
            raise UserError(
                f"{target} --run {run_name}",
                "is a run folder, which has its name",
                "give its recipe, or leave --run away",
            )
        former = former_order(place)
        recipe = str(absolute(find_recipe(former.recipe)))
        given = absolute(data) if data is not None else former.data
        return Order(recipe, merged(former.overrides, wishes), given, place, cluster or former.cluster)
    if (place := Path(target).expanduser()).is_dir():
        raise UserError(f"{target}", "is a folder, but no run of rumpun", "give a recipe, or the folder of a run")
    loaded, source = load_recipe(target, wishes)
    run = absolute(runs) / check_run_name(run_name or loaded.name)
    given = None if data is None else absolute(data)
    return Order(str(absolute(source)), merged((), wishes), given, run, cluster)


def former_order(run: Path) -> Order:
    """The order that a run was submitted with, or that its run.json tells where it never was.

    Raises:
        UserError: its recipe is not known.
    """
    arguments = Chain(run).jobs().get("arguments")
    if arguments:
        return _parsed(arguments, run)
    name = Path(read_json(run / "run.json")["recipe"]).stem
    from launch.recipe import RECIPES

    if not (RECIPES / f"{name}.toml").is_file():
        raise UserError(
            f"run {run}", f"was made from {name}.toml, and where that lies is not known",
            f"rumpun submit PATH/{name}.toml --runs {run.parent} --run {run.name}",
        )  # fmt: skip
    return Order(name, (), None, run, None)


def _parsed(arguments: Sequence[str], run: Path) -> Order:
    """The reverse of `Order.arguments`; the run is where it lies now, should it have been moved."""
    recipe, *words = arguments
    overrides: list[str] = []
    told: dict[str, str] = {}
    for option, value in zip(words[::2], words[1::2], strict=True):
        if option == "--set":
            overrides.append(value)
        else:
            told[option] = value
    data = Path(told["--data"]) if "--data" in told else None
    return Order(recipe, tuple(overrides), data, run, told.get("--cluster"))
