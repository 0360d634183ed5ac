"""An ablation: the cells of a recipe as runs of their own, what they share built once, and one table at the end.

    RUNS/ablations/NAME/CELL/          a run folder each, to be looked at, gone on with or deleted as any other
    RUNS/ablations/NAME/ablation.json  every cell with its state and its figures; table.txt and ablation.html beside it

Invariant: a cell's result is that of its recipe run alone. What it shares with another cell, or with the recipe's
ordinary run, it takes finished (launch/sharing.py). A cell that fails is recorded and the next one begins; whatever
ends the command, the same command goes on.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors, write_atomically, write_json
from launch.ablation_axes import BASE, Axis, Cell, base_values, cells_of, parse_axes, value_of
from launch.display import TerminalProgress
from launch.stages import Stage, Workshop, leading
from train.exit_codes import DEFECT, DIVERGED, DONE, MISTAKE

if TYPE_CHECKING:
    from eval.ablation import Measured
    from launch.pipeline import Plan
    from launch.recipe import Recipe

FOLDER = "ablations"
LAST = "eval"
_ALONE = ("bm25", "tfidf", "teacher", "untrained", "pretrained", "checkpoints", "published")


@dataclass(eq=False)
class CellRun:
    """One run of a cell, with one seed.

    Attributes:
        overrides: all that stands after `--set`. place: its run folder.
        state: `pending`, `done`, `failed`, or on a cluster `queued` and `waiting`; `reason` says why, in a line.
        code: the exit code of what it failed with.
    """

    cell: Cell
    seed: int
    overrides: tuple[str, ...]
    place: Path
    recipe: Recipe
    state: str = "pending"
    reason: str = ""
    code: int = DONE

    def stages(self, data: Path | None) -> list[Stage]:
        """Its graph."""
        return self.plan(data).stages()

    def plan(self, data: Path | None) -> Plan:
        """Its recipe, bound to its run folder and the data."""
        from launch.pipeline import Plan

        return Plan(self.recipe, self.place, data or (self.place / "generate" if self.recipe.generate else None))

    def to_do(self, data: Path | None) -> dict[str, str]:
        """The stages that its figures still need, each with the reason."""
        from launch.slurm.submitting.todo import stages_to_do

        stages = self.stages(data)
        wanted = leading(stages, LAST)
        return stages_to_do([s for s in stages if s.name in wanted], Workshop(self.place))


@dataclass(frozen=True)
class Ablation:
    """What is asked for.

    Attributes:
        source: the recipe's file; recipe: with the command's overrides. folder: where the cells lie.
        runs: every cell with every seed, the base first. notes: built-in values that were left out.
    """

    source: Path
    recipe: Recipe
    data: Path | None
    folder: Path
    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    metric: str
    runs: list[CellRun] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    @property
    def donors(self) -> list[Path]:
        """Runs that finished stages may be taken from."""
        return [*(run.place for run in self.runs), self.folder.parent.parent / self.recipe.name]


def new_ablation(
    name: str, axes: Sequence[str], *, overrides: Sequence[str], data: Path | None, runs: Path, grid: bool,
    seeds: int, metric: str | None,
) -> Ablation:  # fmt: skip
    """Read a recipe, its axes and its cells; nothing is written.

    Args:
        name: of the recipe, or its file. axes: as in `parse_axes`. grid: every combination.
        seeds: how many runs of each cell; the first has the recipe's seed, each further one the next.
        metric: what is compared; None: that of headlines.

    Raises:
        UserError: any mistake in the recipe, an axis, a value or the metric.
    """
    from eval.metrics import all_metric_names, lead_metric
    from launch.recipe import load_recipe

    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}", "is not a folder", "give the folder that holds the data")
    recipe, source = load_recipe(name, overrides)
    known, metric = all_metric_names(recipe.eval.ks), metric or lead_metric(recipe.eval.ks)
    if metric not in known:
        raise UserError(f"--metric {metric}", "is not measured by this recipe", f"use one of: {', '.join(known)}")
    if not recipe.eval.finetuned:
        raise UserError("eval.finetuned = false", "leaves an ablation nothing to compare", "set it to true")
    parsed = parse_axes(axes, recipe)
    cells, notes = cells_of(recipe, parsed, lambda more: load_recipe(name, [*overrides, *more])[0], grid=grid)
    if len(cells) == 1:
        raise UserError(
            "rumpun ablate", "has no cell beside the recipe itself: every value is what the recipe has", "give others"
        )  # fmt: skip
    first = recipe.seed
    found = Ablation(
        source, recipe, data, runs / FOLDER / recipe.name, tuple(parsed), tuple(cells),
        tuple(range(first, first + seeds)), metric, notes=tuple(notes),
    )  # fmt: skip
    for cell in cells:
        for seed in found.seeds:
            main = cell.name == BASE and seed == first
            more = (*cell.overrides, *(() if seed == first else (f"seed={seed}",)), *(() if main else _alone(recipe)))
            place = found.folder / (cell.name if seed == first else f"{cell.name}.seed-{seed}")
            whole = (*overrides, *more)
            found.runs.append(CellRun(cell, seed, whole, place, load_recipe(name, whole)[0]))
    return found


def _alone(recipe: Recipe) -> list[str]:
    """Overrides that measure the finetuned model alone: what else is measured is the same in every cell, or no part of
    the comparison, and the base cell has it."""
    off = [f"eval.{name}=false" for name in _ALONE if getattr(recipe.eval, name, False)]
    return [*off, *(f"eval.{name}=[]" for name in ("baselines", "endpoints") if getattr(recipe.eval, name, []))]


class CellProgress(TerminalProgress):
    """Shows what a cell builds; that the other stages are up to date is said once, by name."""

    def skipped(self, name: str) -> None:
        """Nothing: a cell is mostly made of stages that are there."""


def borrow(run: CellRun, ablation: Ablation, *, everything: bool = False) -> dict[str, str]:
    """Take what other runs have finished. Returns stage → where it is from.

    Args:
        everything: also what the figures do not need, but a chain of jobs would build.
    """
    from launch.lock import RunLock
    from launch.runner import claim, make_folder
    from launch.sharing import Borrower, take

    make_folder(run.place)
    with RunLock(run.place):
        claim(run.place, run.recipe, ablation.source)
        workshop = Borrower(run.place, ablation.donors)
        workshop.sweep()
        stages = run.stages(ablation.data)
        wanted = {s.name for s in stages} - {"export", "report"} if everything else leading(stages, LAST)
        return take(stages, workshop, wanted)


def prepare_folder(ablation: Ablation) -> None:
    """Make the folder of the cells; what runs keep for each other (vectors, answers) they share with all other runs."""
    from launch.runner import make_folder

    make_folder(ablation.folder)
    shared = ablation.folder / ".cache"
    with suppress(FileExistsError), disk_errors(shared):
        os.symlink(Path("..") / ".." / ".cache", shared)


def run_here(ablation: Ablation) -> None:
    """Bring every cell up to date, one after another, and write the table after each.

    Raises:
        Stopped: training was asked to stop and has saved.
    """
    from launch.lock import RunLock

    prepare_folder(ablation)
    results, progress = Results(ablation), CellProgress()
    with RunLock(ablation.folder):
        for run in ablation.runs:
            _look(run, ablation)
        try:
            for number, run in enumerate(ablation.runs, start=1):
                if run.state == "done":
                    continue
                results.write(draw=False)
                progress.note(f"cell {number} of {len(ablation.runs)}: {run.place.name}")
                _attempt(run, ablation, progress)
                if run.state == "failed":
                    progress.note(f"cell {run.place.name} failed: {run.reason}")
        finally:
            results.write()


def _look(run: CellRun, ablation: Ablation) -> None:
    """Find a cell that is done; what cannot be told at a glance is looked at when its turn comes."""
    with suppress(UserError):
        if (run.place / LAST).exists() and not run.to_do(ablation.data):
            run.state = "done"


def _attempt(run: CellRun, ablation: Ablation, progress: TerminalProgress) -> None:
    """One cell, and what became of it."""
    from launch.failure import RankFailure
    from launch.runner import Choice, walk
    from train.guard import Diverged
    from train.history.fence import Superseded
    from train.survival import Stopped

    try:
        for origin, names in _by_origin(borrow(run, ablation)).items():
            progress.note(f"taken from {origin}: {', '.join(names)}")
        walk(
            run.recipe, ablation.source, run=run.place, data=ablation.data, choice=Choice(until=(LAST,)),
            progress=progress,
        )  # fmt: skip
        run.state, run.reason = "done", ""
    except (Stopped, Superseded):
        raise
    except UserError as error:
        run.state, run.reason, run.code = "failed", str(error), MISTAKE
    except Diverged as error:
        run.state, run.reason, run.code = "failed", _line(error), DIVERGED
    except RankFailure as error:
        run.state, run.reason, run.code = "failed", error.line, error.exit_code
    except Exception as error:  # our defect: the others still count
        traceback.print_exc()
        run.state, run.reason, run.code = "failed", f"{type(error).__name__}: {_line(error)}", DEFECT


def _line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "")


def _by_origin(taken: dict[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for stage, origin in taken.items():
        found.setdefault(origin, []).append(stage)
    return found


class Results:
    """The table of an ablation, written anew as cells become done; each evaluation is read once."""

    def __init__(self, ablation: Ablation) -> None:
        from eval.ablation import Measurements

        self._ablation, self._reader = ablation, Measurements()
        self._known: dict[Path, Measured] = {}
        self._compared: dict[tuple[Path, ...], dict[str, float] | None] = {}

    def write(self, *, draw: bool = True) -> None:
        """Write ablation.json, table.txt and, where asked to `draw`, ablation.html.

        Raises:
            UserError: the folder cannot be written. A cell that cannot be read is failed instead.
        """
        from eval.ablation_page import page, table_lines

        table, folder = self.table(), self._ablation.folder
        write_json(folder / "ablation.json", table)
        write_atomically(folder / "table.txt", ("\n".join(table_lines(table)) + "\n").encode())
        if draw:
            write_atomically(folder / "ablation.html", page(table).encode())

    def table(self) -> dict[str, Any]:
        """The value of ablation.json."""
        from eval.ablation import correct

        asked = self._ablation
        measured = {run: found for run in asked.runs if (found := self._measured(run)) is not None}
        cells = [self._cell(cell, measured) for cell in asked.cells]
        correct(cells)
        return {
            "recipe": asked.recipe.name,
            "axes": {axis.key: [value_of(text) for text in axis.values] for axis in asked.axes},
            "base": base_values(asked.recipe, asked.axes),
            "metric": asked.metric,
            "seeds": list(asked.seeds),
            "cells": cells,
        }

    def _measured(self, run: CellRun) -> Measured | None:
        if run.state != "done":
            return None
        if run.place not in self._known:
            try:
                sets = run.plan(self._ablation.data).all_sets()
                self._known[run.place] = self._reader.read(run.place / LAST, sets)
            except UserError as error:
                run.state, run.reason, run.code = "failed", str(error), MISTAKE
                return None
        return self._known[run.place]

    def _cell(self, cell: Cell, measured: dict[CellRun, Measured]) -> dict[str, Any]:
        from eval.ablation import cell_metrics

        metric = self._ablation.metric
        own = {run.seed: run for run in self._ablation.runs if run.cell == cell}
        base = {run.seed: run for run in self._ablation.runs if run.cell.name == BASE}
        done = [run for run in own.values() if run in measured]
        both = [seed for seed, run in own.items() if run in measured and base[seed] in measured]
        mine, theirs = ([measured[side[seed]] for seed in both] for side in (own, base))
        compared = cell.name != BASE and bool(both)
        gain = self._difference(tuple(own[seed].place for seed in both), mine, theirs) if compared else None
        means = [measured[run].means[metric]["mean"] for run in done]
        return {
            "name": cell.name,
            "settings": cell.settings,
            "run": cell.name,
            "state": _state([run.state for run in own.values()]),
            "reason": next((run.reason for run in own.values() if run.reason), ""),
            "metrics": cell_metrics([measured[run] for run in done]) if done else {},
            "difference": gain,
            "comparable": gain is not None if compared else None,
            "seeds": [
                {
                    "seed": seed, "run": run.place.name, "state": run.state, "reason": run.reason,
                    "mean": measured[run].means[metric]["mean"] if run in measured else None,
                }
                for seed, run in own.items()
            ],
            "spread": {"low": min(means), "high": max(means)} if len(means) > 1 else None,
        }  # fmt: skip

    def _difference(
        self, places: tuple[Path, ...], mine: list[Measured], theirs: list[Measured]
    ) -> dict[str, float] | None:
        """Of a cell from the base, None where they answered other queries. The table is written often: kept."""
        from eval.ablation import difference, paired

        if places not in self._compared:
            metric = self._ablation.metric
            self._compared[places] = difference(mine, theirs, metric) if paired(mine, theirs) else None
        found = self._compared[places]
        return None if found is None else dict(found)


def _state(states: Sequence[str]) -> str:
    """The state of a cell from those of its seeds: done where all are."""
    for word in ("failed", "queued", "waiting", "pending"):
        if word in states:
            return word
    return "done"
