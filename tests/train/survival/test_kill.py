"""Kill it anywhere: whatever ends a run, going on comes to the same numbers, to the bit, and the ledger proves it.

Rows: what happens. Columns: when. Every cell is two starts of real ranks (see ranks.py): the one that it happens to, which
itself goes on from a crash, and the one that ends the run. Then the losses, norms, rates and samples of all steps that
count and the final weights are compared with those of a run that nobody disturbed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from survival.runs import EVERY, STEPS, Run, check_proof, left_over, newest, numbers

from train.exit_codes import DEFECT, DONE, MISTAKE, STOPPED

pytestmark = pytest.mark.slow

BEGUN = 2 * EVERY  # the last checkpoint of the crash that every cell begins after
HIT = BEGUN + EVERY + 3
SAVE = BEGUN + 2 * EVERY
# where each column is: the moment of faults.py, and its step
COLUMNS: dict[str, dict[str, Any]] = {
    "start-up": {"at": "start-up"},
    "data wait": {"at": "data", "step": HIT},
    "step": {"at": "after update", "step": HIT},
    "save": {"at": "save: half a file", "step": SAVE},
    "final export": {"at": "export"},
}


@pytest.fixture(scope="module")
def begun(zygote: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, str], Run]:
    """(folder, phase) → a run there that was killed in the middle of its third save."""
    made: dict[str, Run] = {}

    def get(home: Path, phase: str = "finetune") -> Run:
        if phase not in made:
            made[phase] = Run(zygote, data, tmp_path_factory.mktemp("begun") / phase, phase)
            made[phase].start(2, {"at": "save: half a file", "step": BEGUN + EVERY, "ranks": [0], "do": "KILL-ALL"})
            assert made[phase].starts[0].codes == [-9, -9], made[phase].starts[0].told()
            assert newest(made[phase].checkpoints).name == f"step-{BEGUN:08d}"
            assert left_over(made[phase].checkpoints), "the crash must leave the half of a save"
        return made[phase].copy(home)

    return get


def finish(run: Run, whole: Run, *, ranks: int = 2) -> None:
    """Go on to the end, and compare everything with the run that nobody disturbed."""
    run.start(ranks, expect=DONE)
    assert numbers(run.steps()) == numbers(whole.steps())
    assert run.weights() == whole.weights()
    assert left_over(run.checkpoints) == []
    assert newest(run.checkpoints).name == f"step-{STEPS:08d}"
    check_proof(run)


def _damaged(checkpoints: Path) -> list[str]:
    return sorted(path.name for path in checkpoints.glob(".damaged-*"))


@pytest.mark.parametrize("who", ["rank 0", "rank 1", "all ranks"])
@pytest.mark.parametrize("when", COLUMNS)
def test_kill_9(when: str, who: str, begun: Any, undisturbed: Any, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    do = {"ranks": [1 if who == "rank 1" else 0], "do": "KILL-ALL" if who == "all ranks" else "KILL"}
    result = run.start(2, {**COLUMNS[when], **do})
    rank = do["ranks"][0]
    assert result.codes[rank] == -9, result.told()
    other = result.codes[1 - rank]
    # who loses its partner ends with an exception, or is ended by the launcher where it waits for nothing
    assert other == -9 if who == "all ranks" or result.late else other == DEFECT, result.told()
    finish(run, undisturbed())
    assert _damaged(run.checkpoints) == []


# every step of saving that changes something on the disk, and what the first columns leave out
@pytest.mark.parametrize(
    "fault",
    [
        {"at": "restore"},
        {"at": "gradients", "step": HIT},
        {"at": "before update", "step": HIT},
        {"at": "save: copy", "step": SAVE},
        {"at": "save: part", "step": SAVE},
        {"at": "save: rename", "step": SAVE},
        {"at": "save: latest", "step": SAVE},
        {"at": "save: commit", "step": SAVE},
        {"at": "save: retain", "step": SAVE},
        {"at": "save: rename", "step": STEPS},
        {"at": "exported"},
    ],
    ids=lambda fault: " ".join(str(value) for value in fault.values()),
)
def test_kill_9_of_all_between_any_two_things(
    fault: dict[str, Any], begun: Any, undisturbed: Any, tmp_path: Path
) -> None:
    run = begun(tmp_path / "run")
    result = run.start(2, {**fault, "ranks": [0], "do": "KILL-ALL"})
    assert result.codes == [-9, -9], result.told()
    finish(run, undisturbed())


@pytest.mark.parametrize(
    "fault",
    [
        {"at": "start-up"},
        {"at": "data", "step": 1},
        {"at": "after update", "step": EVERY - 2},
        {"at": "save: half a file", "step": EVERY},
        {"at": "save: latest", "step": EVERY},
        {"at": "save: commit", "step": EVERY},
    ],
    ids=lambda fault: " ".join(str(value) for value in fault.values()),
)
def test_kill_9_before_anything_is_saved(fault: dict[str, Any], run: Run, undisturbed: Any) -> None:
    result = run.start(2, {**fault, "ranks": [0], "do": "KILL-ALL"})
    assert result.codes == [-9, -9], result.told()
    finish(run, undisturbed())


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
@pytest.mark.parametrize("when", COLUMNS)
def test_a_polite_end(when: str, signal: str, begun: Any, undisturbed: Any, tmp_path: Path) -> None:
    """TERM goes to all ranks, as from a scheduler; USR1 to one alone, of which the others hear in the next step."""
    run = begun(tmp_path / "run")
    do = {"do": "TERM-ALL", "ranks": [0]} if signal == "TERM" else {"do": "USR1", "ranks": [1]}
    result = run.start(2, {**COLUMNS[when], **do})
    if when == "final export":
        # every step is done and saved: the end is nearer than a stop would be, so the run just ends
        assert result.codes == [DONE, DONE], result.told()
    else:
        assert result.codes == [STOPPED, STOPPED], result.told()
        stop = run.records()[-1]
        assert (stop["kind"], stop["reason"]) == ("stop", f"SIG{signal}")
        assert newest(run.checkpoints).name == f"step-{stop['step']:08d}", "nothing that was done may be lost"
        # at once: after the step that it came in
        due = {"start-up": BEGUN + 1, "data wait": HIT, "step": HIT + 1}
        assert stop["step"] == due.get(when, stop["step"]) <= SAVE + 3
    before = run.recomputed()
    finish(run, undisturbed())
    assert run.recomputed() == before, "a polite end costs no step"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[Path, int], None]]:
    """(folder, MiB) mounts a real file system of that size there."""
    mounted: list[Path] = []

    def mount(folder: Path, mib: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() != 0:
            pytest.skip("mounting a small disk needs root")
        command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount a small disk here: {done.stderr.strip()}")
        mounted.append(folder)

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("what", ["checkpoints", "history"])
@pytest.mark.parametrize("when", [name for name in COLUMNS if name != "final export"])
def test_a_full_disk(when: str, what: str, begun: Any, undisturbed: Any, small_disk: Any, tmp_path: Path) -> None:
    """Full from that moment on: what is written next fails, in one line, and nothing that was there is lost."""
    run = begun(tmp_path / "run")
    folder = run.checkpoints if what == "checkpoints" else run.history
    content = folder.rename(run.home / "moved")
    small_disk(folder, 160)
    shutil.copytree(content, folder, dirs_exist_ok=True)
    result = run.start(2, {**COLUMNS[when], "ranks": [0], "do": "FILL", "where": str(folder)})
    assert result.code == MISTAKE, result.told()
    assert "free" in result.failure(), result.told()
    assert "Traceback" not in result.told()
    (folder / "filler").unlink()
    # a rank that was ended beside the one that failed may leave its half of a save: the next start sweeps it
    assert all(name.endswith(".building") for name in left_over(run.checkpoints))
    finish(run, undisturbed())


@pytest.mark.parametrize("leave", [0, 16 << 10], ids=["to the last byte", "but for the small files"])
def test_a_full_disk_at_the_final_export(
    leave: int, begun: Any, undisturbed: Any, small_disk: Any, tmp_path: Path
) -> None:
    """Every checkpoint is written by then, so this is the disk that takes the model."""
    run = begun(tmp_path / "run")
    small = run.home / "small"
    small_disk(small, 64)
    out = small / "out"
    out.mkdir()
    fault = {"at": "export", "ranks": [0], "do": "FILL", "where": str(small), "leave": leave}
    result = run.start(2, fault, out=out)
    assert result.code == MISTAKE, result.told()
    (small / "filler").unlink()
    assert newest(run.checkpoints).name == f"step-{STEPS:08d}"
    before = run.recomputed()
    finish(run, undisturbed())
    assert run.recomputed() == before, "only the export is done again"


@pytest.mark.parametrize("damage", ["truncated", "flipped byte"])
@pytest.mark.parametrize("when", COLUMNS)
def test_a_damaged_checkpoint(when: str, damage: str, begun: Any, undisturbed: Any, tmp_path: Path) -> None:
    """The machine goes down at that moment and takes a part of the newest checkpoint with it."""
    run = begun(tmp_path / "run")
    result = run.start(2, {**COLUMNS[when], "ranks": [0], "do": "KILL-ALL"})
    assert result.codes == [-9, -9], result.told()
    hurt = newest(run.checkpoints)
    hurt_file(hurt / f"state-000{len(when) % 2}-of-0002.safetensors", damage)
    finish(run, undisturbed())
    assert _damaged(run.checkpoints) == [f".damaged-{hurt.name}"]
    said = run.starts[-1].stderr[0]
    assert hurt.name in said and "is damaged" in said, said


def hurt_file(path: Path, damage: str) -> None:
    """Take half of a file away, or turn one bit in its middle."""
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("when", "do"),
    [("step", "KILL-ALL"), ("data wait", "USR1"), ("save", "KILL"), ("final export", "KILL-ALL")],
)
def test_pretraining_too(when: str, do: str, begun: Any, undisturbed: Any, tmp_path: Path) -> None:
    run = begun(tmp_path / "run", "pretrain")
    result = run.start(2, {**COLUMNS[when], "ranks": [1], "do": do})
    assert result.codes == [STOPPED, STOPPED] if do == "USR1" else result.codes[1] == -9, result.told()
    finish(run, undisturbed("pretrain"))


@pytest.mark.parametrize(
    ("phase", "settings"),
    [
        ("finetune", {"zero_stage": 0}),
        ("pretrain", {"zero_stage": 3}),
        ("finetune", {"zero_stage": 2, "reduce_once": True, "dropout": 0.1}),
        ("pretrain", {"zero_stage": 1, "precision": "bf16", "dropout": 0.1}),
        ("finetune", {"zero_stage": 3, "precision": "bf16"}),
        ("pretrain", {"zero_stage": 2, "offload": True}),
    ],
    ids=str,
)
def test_kill_9_under_other_settings(phase: str, settings: dict[str, Any], run: Run, undisturbed: Any) -> None:
    """Stages, precisions, and random numbers: what dropout draws goes on where it was."""
    run.phase, run.settings = phase, settings
    run.checkpoint = {"background": settings["zero_stage"] != 3}
    result = run.start(2, {"at": "after update", "step": 14, "ranks": [1], "do": "KILL-ALL"})
    assert result.codes == [-9, -9], result.told()
    finish(run, undisturbed(phase, 2, **settings))


def test_a_time_limit_is_a_polite_end(begun: Any, undisturbed: Any, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    result = run.start(2, deadline=time.time() - 1)
    assert result.codes == [STOPPED, STOPPED], result.told()
    # a step that cannot be saved in time is not begun, not even the first
    assert (run.records()[-1]["reason"], run.records()[-1]["step"]) == ("time limit", BEGUN)
    finish(run, undisturbed())


def test_kill_9_while_a_slow_disk_still_writes_the_save_before(begun: Any, undisturbed: Any, tmp_path: Path) -> None:
    """Steps go on while a save is in flight; what it has not finished is lost, and nothing else."""
    run = begun(tmp_path / "run")
    slow = {"at": "save: part", "step": BEGUN + EVERY, "ranks": [1], "do": "PAUSE", "seconds": 30}
    result = run.start(2, slow, {**COLUMNS["step"], "ranks": [0], "do": "KILL-ALL"})
    assert result.codes == [-9, -9], result.told()
    assert newest(run.checkpoints).name == f"step-{BEGUN:08d}"
    assert len(run.steps()) >= BEGUN + EVERY + 1, "the steps after it must not have waited"
    finish(run, undisturbed())


def test_saves_by_the_clock_change_no_number(run: Run, undisturbed: Any) -> None:
    run.checkpoint = {"every_steps": None, "every_s": 0.05, "keep": 1}
    for step in (9, 20):
        result = run.start(2, {"at": "data", "step": step, "ranks": [1], "do": "KILL-ALL"})
        assert result.codes == [-9, -9], result.told()
    finish(run, undisturbed())


def test_a_step_saved_for_the_second_time_needs_a_line_of_its_own(begun: Any, undisturbed: Any, tmp_path: Path) -> None:
    """Its first checkpoint was lost; the second is whole, and the crash came before the ledger heard of it."""
    run = begun(tmp_path / "run")
    hurt_file(newest(run.checkpoints) / "state-0001-of-0002.safetensors", "flipped byte")
    result = run.start(2, {"at": "save: commit", "step": BEGUN, "ranks": [0], "do": "KILL-ALL"})
    assert result.codes == [-9, -9], result.told()
    assert newest(run.checkpoints).name == f"step-{BEGUN:08d}"
    finish(run, undisturbed())
    starts = [record["step"] for record in run.records() if record["kind"] == "start"]
    assert starts == [0, BEGUN - EVERY, BEGUN]
