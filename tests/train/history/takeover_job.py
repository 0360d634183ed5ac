"""Stop an old start before its k-th touch of anything, let a newer start take over, and let the old one go on.

Usage: python takeover_job.py FOLDER late FIRST EVERY     for k = FIRST, FIRST + EVERY, …: the newer start ends first
       python takeover_job.py FOLDER between SEED COUNT   at COUNT random places of both: the old one goes on while the
                                                          newer one is at its m-th touch

Both starts are the real loop, ledger, saver and telemetry around weights that count (small_loop.py), in processes of
their own; a touch is any system call that names, creates, renames or removes a file, and any write or sync. Prints one
JSON line: [k, m, how the old one ended] of each.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from small_loop import SIZE, Batch, train

from train.exit_codes import SUPERSEDED
from train.guard import StopRequest
from train.history.checkpoint import Checkpoint
from train.history.fence import Fence, Superseded, claim
from train.history.folder import steps_in
from train.history.verify import verify
from train.survival import Stopped

BEGUN, STEPS, OTHER = 4, 8, 70
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.scandir", "os.listdir", "os.link"}


def arm(base: Path, k: int, act: Callable[[], None]) -> None:
    """From now on, `act` before the k-th touch."""
    left = k
    real_write, real_fsync, real_fdatasync = os.write, os.fsync, os.fdatasync

    def touch() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            act()

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        # names inside a folder that is being deleted are relative to it
        if event in EVENTS and str(arguments[0]).startswith(str(base) if str(arguments[0])[0:1] == "/" else ""):
            touch()

    def before(real: Callable[..., Any]) -> Callable[..., Any]:
        def work(*arguments: Any) -> Any:
            touch()
            return real(*arguments)

        return work

    os.write, os.fsync, os.fdatasync = before(real_write), before(real_fsync), before(real_fdatasync)  # type: ignore[assignment]
    sys.addaudithook(audit)


def start(base: Path, name: str, fence: Fence, k: int, act: Callable[[], None]) -> int:
    """A start in a process of its own; ends as launch/worker.py ends a rank."""
    child = os.fork()
    if child:
        return child
    code = OTHER
    try:
        out = base / name
        out.mkdir()
        arm(base, k, act)
        train(base / "history", out, fence=fence, steps=STEPS, keep=1)
        code = 0
    except Superseded:
        code = SUPERSEDED
    except BaseException:
        if fence.lost:
            code = SUPERSEDED + 1
        else:
            traceback.print_exc()
    finally:
        os._exit(code)


def begin(history: Path, out: Path) -> None:
    """The first steps, and then a stop."""
    stop = StopRequest()

    def teach(batch: Batch) -> float:
        stop.deadline = 0.0 if batch.draw.step == BEGUN else None
        return 1.0

    with suppress(Stopped):
        train(history, out, steps=STEPS, keep=1, stop=stop, teach=teach)


def stop_me() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def ended(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def content(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything below a folder: inode and bytes by name."""
    return {
        str(path.relative_to(folder)): (path.stat().st_ino, path.read_bytes() if path.is_file() else b"")
        for path in folder.rglob("*")
    }


def look_after(history: Path, k: int, m: int) -> None:
    """What the newer start was to leave behind, and nothing else."""
    proof = verify(history / "ledger.jsonl")
    assert proof.claim().startswith("Proven") and proof.tape.ended, (k, m, proof.sentences())
    assert proof.tape.step == STEPS
    left = {path.name for path in (history / "checkpoints").iterdir()} - {"latest"}
    # the old one may have ended before it deleted the oldest, as in a crash; and a start that had lost the history may
    # still make a folder for a save that does not come: both go with the next save or start
    whole = {name for name in left if not name.endswith(".building")}
    assert whole in ({f"step-{STEPS:08d}"}, {f"step-{STEPS:08d}", f"step-{STEPS - 2:08d}"}), (k, m, left)
    assert (history / "checkpoints" / "latest").read_text() == f"step-{STEPS:08d}\n", (k, m)
    for step in steps_in(history / "checkpoints"):
        assert (
            Checkpoint(history / "checkpoints" / f"step-{step:08d}").read("w", "weight", 0, SIZE).tolist()
            == [float(step)] * SIZE
        )
    records = [json.loads(line) for line in (history / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "loss" in r] == [*range(1, STEPS + 1)], (k, m, records)
    assert (
        len({json.loads(line).get("history", 0) for line in (history / "ledger.jsonl").read_text().splitlines()}) == 2
    )


def scene(base: Path, begun: Path, k: int, m: int | None) -> int | None:
    """One takeover. Returns how the old start ended, None where it ended before its k-th touch."""
    shutil.rmtree(base, ignore_errors=True)
    base.mkdir()
    history = base / "history"
    if begun.exists():
        shutil.copytree(begun, history)
    old = start(base, "old", claim(history, job="7", restart=0), k, stop_me)
    _, status = os.waitpid(old, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        assert os.waitstatus_to_exitcode(status) == 0
        return None

    def wake() -> None:
        os.kill(old, signal.SIGCONT)
        time.sleep(0.05)

    new = start(base, "new", claim(history, job="7", restart=1), m or 0, wake)
    assert ended(new) == 0, (k, m)
    before = content(history)
    wake()
    code = ended(old)
    if m is None:
        changed = {name for name, was in content(history).items() if before.get(name) != was} | {
            name for name in before if name not in content(history)
        }
        assert not changed, (k, changed)
    look_after(history, k, m or 0)
    assert code in (0, SUPERSEDED, SUPERSEDED + 1), (k, m, code)
    return code


def main() -> None:
    folder, mode, first, many = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    import tensorboard.summary.writer.event_file_writer  # noqa: F401 - not during the count

    begun, nothing, base = folder / "begun", folder / "nothing", folder / "run"
    if os.fork() == 0:  # this process stays without threads
        begin(begun, folder / "out")
        os._exit(0)
    assert ended(-1) == 0
    found: list[tuple[int, int, int]] = []
    if mode == "late":
        k, code = first, scene(base, begun, first, None)
        while code is not None:
            found.append((k, 0, code))
            k += many
            code = scene(base, begun, k, None)
    else:
        draw = random.Random(first)
        for number in range(many):
            k, m = draw.randrange(1, 320), draw.randrange(1, 320)
            code = scene(base, nothing if number % 5 == 0 else begun, k, m)
            if code is not None:
                found.append((k, m, code))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
