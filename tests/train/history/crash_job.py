"""Kill a process with SIGKILL before its k-th touch of a checkpoint folder, for every k, and look at what is left.

Usage: python crash_job.py SCENE FOLDER: prints one JSON line with what was found after each kill: [step, version].

A child is forked for each k and dies before the k-th system call of its scene that names, creates, renames, removes or
syncs anything in the folder, or in the middle of the k-th write. After each death the parent, as the next start would,
searches for a checkpoint, compares every bit of it, saves another and searches again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from saved import alone, assert_whole, look, names, save, savers

from train.history.checkpoint import Checkpoint, find
from train.history.folder import step_name, steps_in

KEEP = 2
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "os.listdir"}


def next_save(folder: Path) -> None:
    """Step 3 after 1 and 2: one is added, the oldest leaves."""
    assert save(savers(folder, 2, keep=KEEP, background=False), 3) == [None, None]


def only_one(folder: Path) -> None:
    """The only checkpoint is replaced by the same step."""
    assert save(savers(folder, 2, keep=1, background=False), 2, version=1) == [None, None]


def first_save(folder: Path) -> None:
    """There was none."""
    assert save(savers(folder, 2, keep=KEEP, background=False), 3) == [None, None]


def fallback(folder: Path) -> None:
    """The newest is damaged: the search sets it aside and another save follows."""
    assert find(folder, rank=0, ranks=1, exchange=alone).notes
    assert save(savers(folder, 2, keep=KEEP, background=False), 2, version=1) == [None, None]


def _nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def _only_two(folder: Path) -> None:
    shutil.rmtree(folder / "step-00000001")


def _damage(folder: Path) -> None:
    os.truncate(folder / "step-00000002" / "state-0001-of-0002.safetensors", 50)


Prepare = Callable[[Path], None]
SCENES: dict[str, tuple[Prepare, Prepare, set[int]]] = {  # what is there, what is killed, which steps may be found
    "next": (lambda _: None, next_save, {2, 3}),
    "only": (_only_two, only_one, {2}),
    "first": (_nothing, first_save, {0, 3}),
    "fallback": (_damage, fallback, {1, 2}),
}


def arm(folder: Path, k: int) -> None:
    """From now on, die before the k-th touch of `folder`."""
    left = k
    real_write, real_fsync = os.write, os.fsync

    def touch(last: Callable[[], Any] = lambda: None) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            last()
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        # names inside a folder that is being deleted are relative to it
        if event in EVENTS and not str(arguments[0]).startswith(("/proc", "/sys", "/dev/null", "/usr")):
            touch()

    def write(descriptor: int, data: Any) -> int:
        touch(lambda: real_write(descriptor, data[: len(data) // 2]))
        return real_write(descriptor, data)

    def fsync(descriptor: int) -> None:
        touch()
        real_fsync(descriptor)

    os.write, os.fsync = write, fsync  # type: ignore[assignment]
    sys.addaudithook(audit)


def died(work: Prepare, folder: Path, k: int) -> bool:
    """Run `work` in a child that dies at its k-th touch; whether it got that far."""
    child = os.fork()
    if child == 0:
        try:
            arm(folder, k)
            work(folder)
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{k}: {error!r}\n".encode())
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    if status != 0:
        raise RuntimeError(f"the child ended with {status} at touch {k}")
    return False


def look_after(folder: Path, allowed: set[int], *, damaged: bool) -> tuple[int, int]:
    """What the next start finds, that all that has a name is whole, and that it can go on: (step, version)."""
    first = look(folder)
    checkpoint = first.checkpoint
    if first.notes and not damaged:
        raise RuntimeError(f"a crash was taken for damage: {first.notes}")
    for named in steps_in(folder):
        assert_whole(Checkpoint(folder / step_name(named)))
    step, version = (checkpoint.step, checkpoint.facts["version"]) if checkpoint else (0, 0)
    if step not in allowed:
        raise RuntimeError(f"found step {step}")
    if checkpoint is not None:
        assert_whole(checkpoint)
        if (again := look(folder)).notes or again.checkpoint is None or again.checkpoint.step != step:
            raise RuntimeError(f"a second search finds something else: {again}")
    if save(savers(folder, 2, keep=KEEP, background=False), 4) != [None, None]:
        raise RuntimeError("a save after the crash fails")
    last = look(folder).checkpoint
    if last is None or last.step != 4:
        raise RuntimeError("the save after the crash is not found")
    assert_whole(last)
    expected = {"latest", *(f"step-{s:08d}" for s in steps_in(folder))}
    if (left := {name for name in names(folder) if "damaged" not in name} - expected) or len(steps_in(folder)) > KEEP:
        raise RuntimeError(f"left over: {left or names(folder)}")
    return step, version


def main() -> None:
    """Kill at every touch until the scene ends by itself."""
    scene, base = sys.argv[1], Path(sys.argv[2])
    prepare, work, allowed = SCENES[scene]
    good, folder = base / "good", base / "checkpoints"
    made = savers(good, 2)
    for step in (1, 2):
        save(made, step)
    prepare(good)
    found: list[tuple[int, int]] = []
    k = 0
    while True:
        k += 1
        shutil.rmtree(folder, ignore_errors=True)
        if good.exists():
            shutil.copytree(good, folder)
        if not died(work, folder, k):
            break
        found.append(look_after(folder, allowed, damaged=scene == "fallback"))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
