"""Walking the graph of one recipe: what is done is skipped, what changed is rebuilt, and the user sees why."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.files import disk_errors, read_json, write_atomically, write_json
from launch.binding import ON_THIS_MACHINE, PLACEHOLDER, Surroundings
from launch.lock import LOCK, STAGE_LOCKS, RunLock
from launch.pipeline import GATES, STAGES, Plan
from launch.stages import Stage, Workshop, following, leading
from train.history.fence import briefly_alone

if TYPE_CHECKING:
    from launch.display import TerminalProgress
    from launch.recipe import Recipe


_BEFORE = (LOCK, f"{LOCK}.claim", STAGE_LOCKS, "chain", "logs")  # what may be in a run folder before its run.json
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True)
class Choice:
    """Which stages a command asks for.

    Attributes:
        only: this stage alone; its inputs must be there. start: rebuild this stage and all that depends on it.
        until: build this stage and what it needs, nothing after. force: rebuild even what is up to date.
        stages: exactly these, in the graph's order; what they need must be there.
    """

    only: str | None = None
    start: str | None = None
    until: tuple[str, ...] = ()
    force: bool = False
    stages: tuple[str, ...] = ()


@dataclass
class Outcome:
    """What a walk did: stages built and stages that were up to date, and its seconds."""

    built: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    wall_s: float = 0.0
    work_s: float = 0.0


def check_run_name(name: str) -> str:
    """The name itself. Raises `UserError` where it cannot name a run folder."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise UserError(
            f"--run {name!r}", "must be letters, digits, '.', '_' and '-', not starting with one of the last three",
            "choose a plain name; --runs DIR says where run folders go",
        )  # fmt: skip
    return name


def check_stage(name: str, stages: Sequence[Stage]) -> str:
    """The name itself. Raises `UserError` where the recipe has no such stage."""
    known = [s.name for s in stages]
    if name in known:
        return name
    if name in STAGES:
        raise UserError(f"stage {name!r}", "this recipe has it switched off", f"add a [{name}] table to the recipe")
    near = difflib.get_close_matches(name, known, 1)
    raise UserError(
        f"stage {name!r}",
        "no such stage",
        (f"did you mean {near[0]!r}? " if near else "") + f"stages: {', '.join(known)}",
    )


def make_folder(run: Path) -> None:
    """Create a run folder. Raises `UserError` where nothing can be created there."""
    try:
        with disk_errors(run):
            run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run folder {run}", f"cannot be created ({error.strerror})", "choose a folder of your own with --runs DIR"
        ) from error


def claim(run: Path, recipe: Recipe, source: Path) -> None:
    """Mark a run folder as this recipe's, or refuse it where it is another's. The lock is held."""
    mark = run / "run.json"
    if mark.exists():
        owner = read_json(mark)
        if (owner["name"], owner["recipe"]) != (recipe.name, source.name):
            raise UserError(
                f"run folder {run}",
                f"belongs to recipe {owner['name']!r} ({owner['recipe']}), not to {recipe.name!r} ({source.name})",
                "choose another folder with --run NAME, or delete this one if nothing in it is needed",
            )
    elif any(p.name not in _BEFORE for p in run.iterdir()):
        raise UserError(
            f"run folder {run}",
            "holds files but no run.json: it is not a run of rumpun",
            "choose another folder with --run NAME",
        )
    else:
        write_json(mark, {"name": recipe.name, "recipe": source.name})


def walk(
    recipe: Recipe,
    source: Path,
    *,
    run: Path,
    data: Path | None,
    choice: Choice,
    progress: TerminalProgress,
    fresh: bool = False,
    here: Surroundings = ON_THIS_MACHINE,
) -> Outcome:
    """Bring the asked stages of a run up to date.

    Args:
        source: the recipe's file. run: the run folder. data: what `{data}` stands for.
        fresh: start a training phase over beside its unfinished history, which is kept.
        here: where this happens.

    Raises:
        UserError: whatever a user can mend; finished stages stay as they are.
        Superseded: a newer restart of the same job has taken over; nothing was changed since.
    """
    from launch.recipe import show

    started = time.perf_counter()
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data}", "is not a folder", "give the folder that holds the data")
    limit_s = recipe.launch.stop_after_s
    limits = [t for t in (here.deadline, None if limit_s is None else time.time() + limit_s) if t is not None]
    plan = Plan(
        recipe,
        run,
        data if data is not None else (run / "generate" if recipe.generate else None),
        fresh=fresh,
        here=replace(here, deadline=min(limits, default=None)),
    )
    if recipe.generate is not None and data is not None:
        raise UserError(
            f"--data {data}",
            f"this recipe generates its own data ([generate]), {PLACEHOLDER} is taken",
            "leave --data away",
        )
    stages = plan.stages()
    wanted = _wanted(stages, choice)
    outcome = Outcome()
    make_folder(run)
    own = [s.name for s in stages if s.name in wanted] if choice.stages else None
    with RunLock(run, stages=own, job=here.job, restart=here.restart) as lock:
        text = f"# recipe {source.name} as it was resolved for this run\n" + "\n".join(show(recipe)) + "\n"
        with briefly_alone(run / f"{LOCK}.claim"):  # jobs of one run may begin in the same moment
            claim(run, recipe, source)
            if not (run / "recipe.toml").exists() or (run / "recipe.toml").read_text() != text:
                write_atomically(run / "recipe.toml", text.encode())
        workshop = Workshop(run, stages=own, check=lock.check)
        workshop.sweep()
        chosen = [s for s in stages if s.name in wanted]
        forced = set()
        if choice.start:
            forced = following(stages, choice.start)
        elif choice.force:
            forced = {choice.only} if choice.only else set(wanted)
        if choice.only:
            _gates_are_closed(workshop, stages, chosen[0])
        for stage in chosen if choice.stages else ():
            _gates_are_closed(workshop, [s for s in stages if s.name not in wanted], stage)
        for number, stage in enumerate(chosen, start=1):
            verdict = workshop.judge(stage)
            reason = verdict.reason or ("asked for" if stage.name in forced else None)
            if reason is None:
                outcome.kept.append(stage.name)
                progress.skipped(stage.name)
                continue
            with progress.stage(stage.name, number, len(chosen)) as counts:
                if reason != "not built yet":
                    progress.note(f"[{stage.name}] rebuilding: {reason}")
                record = workshop.build(stage, verdict, progress)
                counts.update(record["counts"])
            outcome.built.append(stage.name)
            outcome.work_s += sum(record["work_s"].values())
    outcome.wall_s = time.perf_counter() - started
    return outcome


def _gates_are_closed(workshop: Workshop, stages: Sequence[Stage], stage: Stage) -> None:
    """Raises `UserError` where a stage would train on text that its gate has not seen as it is now.

    What a gate writes does not depend on what it reads, so nothing after it would notice.
    """
    for gate in stages:
        if gate.name in GATES and gate.name in stage.needs and workshop.record(gate.name) is not None:
            reason = workshop.judge(gate).reason
            if reason is not None:
                raise UserError(
                    f"stage {stage.name}",
                    f"needs {gate.name}, which is not up to date ({reason})",
                    f"run --only {gate.name} first, or run without --only",
                )


def _wanted(stages: Sequence[Stage], choice: Choice) -> set[str]:
    if choice.only and choice.start:
        raise UserError(f"--only {choice.only} --from {choice.start}", "exclude each other", "give one of them")
    if choice.only:
        return {check_stage(choice.only, stages)}
    if choice.stages:
        return {check_stage(name, stages) for name in choice.stages}
    if choice.start:
        check_stage(choice.start, stages)
    if choice.until:
        return set().union(*(leading(stages, check_stage(name, stages)) for name in choice.until))
    return {s.name for s in stages}
