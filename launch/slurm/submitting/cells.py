"""The cells of an ablation as chains of jobs: each as `rumpun submit` does it, and nothing built by two of them.

Invariant: a cell is submitted when all that it shares with a cell before it is finished, and was taken from there;
until then it waits. So asking again and again, by hand or with --wait, submits each once and ends with the table.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.errors import UserError
from data_prep.files import disk_errors
from launch.ablation import Results, borrow, prepare_folder
from launch.sharing import likeness
from train.exit_codes import MISTAKE

if TYPE_CHECKING:
    from launch.ablation import Ablation, CellRun
    from launch.display import TerminalProgress
    from launch.slurm.scheduler.commands import Slurm
    from launch.slurm.submitting.order import Order
    from launch.slurm.submitting.submit import Prepared

EVERY_S = 30.0
_NOT_NEEDED = "export"
"""The job that no figure depends on."""


def run_on_cluster(
    ablation: Ablation, progress: TerminalProgress, *, name: str, cluster: str | None, wait: bool,
    sleep: Callable[[float], None] = time.sleep,
) -> None:  # fmt: skip
    """Submit the cells that can begin, collect those that are finished, and write the table.

    Args:
        name: of the recipe, or its file. cluster: a profile, None where the recipe says.
        wait: go on until no cell is in the queue or waits for another.
        sleep: waits so many seconds.

    Raises:
        UserError: no scheduler here.
    """
    from launch.lock import RunLock
    from launch.slurm.health.memory import folder_of
    from launch.slurm.scheduler.commands import Slurm

    slurm = Slurm.here()
    prepare_folder(ablation)
    # which nodes have a bad past is the same for all runs
    memory = folder_of(ablation.folder.parent.parent)
    with suppress(FileExistsError), disk_errors(memory):
        memory.mkdir(exist_ok=True)
        folder_of(ablation.folder).symlink_to(Path("..") / ".." / memory.name)
    results = Results(ablation)
    told: dict[str, tuple[str, str]] = {}
    with RunLock(ablation.folder):
        while True:
            _round(ablation, slurm, name=name, cluster=cluster)
            results.write()
            for run in ablation.runs:
                if told.get(run.place.name) != (run.state, run.reason):
                    told[run.place.name] = (run.state, run.reason)
                    progress.note(f"cell {run.place.name}: {run.state}" + (f" ({run.reason})" if run.reason else ""))
            if not wait or not any(run.state in ("queued", "waiting") for run in ablation.runs):
                return
            sleep(EVERY_S)


def _round(ablation: Ablation, slurm: Slurm, *, name: str, cluster: str | None) -> None:
    """Look at every cell once. Raises `UserError` where nothing works, and always for the same reason."""
    from launch.slurm.chain import Chain
    from launch.slurm.submitting.cancel import recent_ids

    # one question for all of them; each cell's own is then answered from it
    entries = [entry for run in ablation.runs for entry in Chain(run.place).jobs().get("jobs", {}).values()]
    slurm.jobs([id for entry in entries for id in recent_ids(entry)])
    building: dict[str, tuple[str, str]] = {}
    errors: list[UserError] = []
    for run in ablation.runs:
        if run.state == "failed":  # in this very command: it would fail again
            continue
        try:
            _look(run, ablation, slurm, building, name=name, cluster=cluster)
        except UserError as error:
            run.state, run.reason, run.code = "failed", str(error), MISTAKE
            errors.append(error)
    if len(errors) == len(ablation.runs) and len({error.rule for error in errors}) == 1:
        raise errors[0]  # it is not the cells


def _look(
    run: CellRun, ablation: Ablation, slurm: Slurm, building: dict[str, tuple[str, str]], *, name: str,
    cluster: str | None,
) -> None:  # fmt: skip
    """Submit one cell where it can begin; say what it is doing.

    Args:
        building: fingerprint of a stage → (cell, stage) that will make it; what this cell will make is added.
    """
    from launch.slurm.submitting.decide import decide
    from launch.slurm.submitting.order import new_order
    from launch.slurm.submitting.submit import check, submit

    order = new_order(
        name, overrides=run.overrides, data=ablation.data, runs=ablation.folder, run_name=run.place.name,
        cluster=cluster, asked={},
    )  # fmt: skip
    was_queued = run.state == "queued"
    prepared = _prepared(order, slurm)
    decisions = decide(prepared, slurm)
    in_queue = any(decision.keep or decision.ended for decision in decisions)
    if not in_queue:
        borrow(run, ablation, everything=True)
    to_do, prints = run.to_do(ablation.data), likeness(run.stages(ablation.data))
    if not to_do:
        run.state, run.reason = "done", ""
        return
    if not in_queue:
        owners = [building[prints[stage]] for stage in to_do if prints[stage] in building]
        if owners:
            _claim(run, to_do, prints, building)
            cell = owners[0][0]
            stages = [stage for owner, stage in owners if owner == cell]
            run.state, run.reason = "waiting", f"for {', '.join(stages)} of {cell}"
            return
        if was_queued:
            raise UserError(
                f"cell {run.place.name}", f"left the queue before {next(iter(to_do))} was built",
                f"`rumpun status {run.place}` says why; the same command submits it again",
            )  # fmt: skip
        prepared = _prepared(order, slurm)
        decisions = decide(prepared, slurm)
    if any(decision.keep is None for decision in decisions):
        check(prepared, decisions, slurm)
        submit(prepared, decisions, slurm)
    run.state, run.reason = "queued", f"`rumpun status {run.place}`"
    _claim(run, to_do, prints, building)


def _prepared(order: Order, slurm: Slurm) -> Prepared:
    """The chain of a cell, without the job that no figure depends on."""
    from launch.slurm.submitting.submit import prepare

    found = prepare(order, slurm=slurm)
    return replace(
        found,
        jobs=tuple(job for job in found.jobs if job.name != _NOT_NEEDED),
        texts={job: text for job, text in found.texts.items() if job != _NOT_NEEDED},
    )


def _claim(run: CellRun, to_do: dict[str, Any], prints: dict[str, str], building: dict[str, tuple[str, str]]) -> None:
    for stage in to_do:
        building.setdefault(prints[stage], (run.place.name, stage))
