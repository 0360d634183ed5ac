"""The place of a drill: a scratch run beside the real one, with the real one's finished stages.

    RUNS/NAME               the run: read, and never written (but for chain/drill.json at the end)
    RUNS/.drill/NAME        the drill: run.json, chain, logs and history of its own
    RUNS/.drill/NAME/STAGE  a link to RUNS/NAME/STAGE, for each finished stage that comes before the phase

Why nothing can flow back: the drill walks the training phase alone, whose folder is not linked; a stage that is built
takes its place by a rename, which a link to a folder refuses; and what is removed at the end are links, not what they
point to. While the drill goes on it shares the run's lock: no walk can rebuild what it reads.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError
from data_prep.files import disk_errors
from launch.slurm.chain import Chain
from launch.slurm.submitting.order import Order, merged

if TYPE_CHECKING:
    from launch.recipe import Recipe

FOLDER = ".drill"
PHASES = ("pretrain", "finetune")
STEPS_AT_MOST = 20_000
"""Steps of the phase in the drill: more than it waits for, however short they are."""
_LINK_MIN = 60


@dataclass(frozen=True)
class Scene:
    """A drill that could begin.

    Attributes:
        order: what would be submitted, with the scratch run. run: the real one. phase: what trains.
        every: steps between two checkpoints. linked: stages taken from the run.
    """

    order: Order
    run: Path
    recipe: Recipe
    source: Path
    phase: str
    every: int
    linked: tuple[str, ...]

    @property
    def place(self) -> Path:
        """The scratch run."""
        return self.order.run

    @property
    def chain(self) -> Chain:
        """Its chain folder."""
        return Chain(self.place)

    @property
    def history(self) -> Path:
        """Where the phase trains."""
        return self.place / "history" / self.phase


def plan_scene(order: Order, *, phase: str | None, steps: int) -> Scene:
    """Find out what a drill of a run would do. Writes nothing.

    Args:
        phase: None for the first training phase that is not done, or else the last. steps: to measure.

    Raises:
        UserError: no such phase; what the phase reads is not built.
    """
    from launch.pipeline import Plan
    from launch.recipe import load_recipe
    from launch.slurm.submitting.todo import stages_to_do
    from launch.stages import Workshop, following, leading

    if phase is not None and phase not in PHASES:
        raise UserError(f"--phase {phase}", f"must be one of {', '.join(PHASES)}", "or leave it away")
    recipe, _ = load_recipe(order.recipe, order.overrides)
    data = order.data or (order.run / "generate" if recipe.generate else None)
    stages = Plan(recipe, order.run, data).stages()
    workshop = Workshop(order.run)
    if phase is None:
        to_do = stages_to_do(stages, workshop)
        phase = next((name for name in PHASES if name in to_do), PHASES[-1])
    later = following(stages, phase)
    done = tuple(s.name for s in stages if s.name not in later and workshop.record(s.name) is not None)
    missing = [s.name for s in stages if s.name in leading(stages, phase) - {phase} and s.name not in done]
    if missing:
        from launch.recipe import RECIPES

        file = Path(order.recipe)
        name = file.stem if file.parent == RECIPES else os.path.relpath(file)
        raise UserError(
            f"run {order.run}", f"has not built what {phase} reads: {', '.join(missing)}",
            f"build it first: rumpun submit {name}, or rumpun run {name} --only {missing[0]}"
            + (" and so on" if len(missing) > 1 else "") + ", or choose another --phase",
        )  # fmt: skip
    every = max(2, steps)
    wishes = (
        # as long as the drill needs; what is learned is thrown away
        f"{phase}.epochs=1e6", f"{phase}.max_steps={STEPS_AT_MOST}",
        # a save every few steps, so that one can be hit
        f"checkpoint.every_steps={every}", "checkpoint.every_s=1e9",
        # a crash shall be seen, not mended
        "launch.restarts=0", "launch.stop_after_s=1e9",
        "slurm.requeues=50", f"slurm.links={max(10, recipe.slurm.links)}",
        f"slurm.time_min={min(recipe.slurm.time_min, _LINK_MIN)}",
    )  # fmt: skip
    scratch = order.run.parent / FOLDER / order.run.name
    here = replace(order, overrides=merged(order.overrides, wishes), run=scratch)
    changed, source = load_recipe(here.recipe, here.overrides)
    return Scene(here, order.run, changed, source, phase, every, done)


def set_up(scene: Scene) -> None:
    """Make the scratch run anew; what an earlier drill left there goes."""
    from launch.lock import RunLock
    from launch.runner import claim, make_folder

    place = scene.place
    make_folder(place)
    with RunLock(place), disk_errors(place):  # a drill that goes on holds it
        clear(place)
        claim(place, scene.recipe, scene.source)
        for stage in scene.linked:
            target = os.path.relpath(scene.run / stage, place)
            (place / stage).symlink_to(target, target_is_directory=True)


def clear(place: Path) -> None:
    """Empty a scratch run: links are removed, not what they point to. Its locks stay."""
    for entry in place.iterdir():
        if entry.is_symlink() or entry.is_file():
            if not entry.name.startswith(".lock"):
                entry.unlink()
        elif entry.name != ".locks":
            shutil.rmtree(entry)


def tear_down(scene: Scene, *, keep_logs: bool) -> None:
    """Remove the scratch run, or only what is large of it."""
    shutil.rmtree(scene.place / "history", ignore_errors=True)
    if not keep_logs:
        shutil.rmtree(scene.place, ignore_errors=True)
