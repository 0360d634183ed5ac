"""What a history does not go on with: each refusal is one line that names what differs, and changes nothing on the disk."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from survival.runs import BATCH, EVERY, Run, check_proof, newest, numbers
from tiny import make_world

from data_prep.files import sha256_file
from train.exit_codes import DONE, MISTAKE
from train.history.manifest import read_manifest, sealed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def crashed(zygote: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Killed after step 13, with checkpoints of the steps 5 and 10."""
    run = Run(zygote, data, tmp_path_factory.mktemp("crashed") / "run")
    run.start(1, {"at": "save: part", "step": 3 * EVERY, "do": "KILL"}, expect=-9)
    assert newest(run.checkpoints).name == f"step-{2 * EVERY:08d}"
    return run


@pytest.fixture
def run(crashed: Run, tmp_path: Path) -> Run:
    return crashed.copy(tmp_path / "run")


def content(folder: Path) -> dict[str, str]:
    """Every file and its checksum, but for the line that says what is going on just now."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "status.json"]
    return {str(p.relative_to(folder)): sha256_file(p) for p in files}


def refused(run: Run, *words: str, **changes: Any) -> None:
    """This start is refused, in one line with these words, and leaves the history as it was."""
    before = content(run.history)
    result = run.start(1, **changes)
    assert result.code == MISTAKE, result.told()
    assert "Traceback" not in result.told()
    said = result.failure()
    assert "\n" not in said
    assert [word for word in words if word not in said] == [], said
    assert content(run.history) == before, "a refusal must change nothing"


def test_other_settings_are_listed_with_the_harmless_ones(run: Run) -> None:
    run.settings = {"learning_rate": 2e-3, "temperature": 0.1, "micro_batch_tokens": 96, "zero_stage": 2}
    refused(
        run, "finetune.learning_rate 0.001 -> 0.002", "finetune.temperature 0.05 -> 0.1",
        "harmless: finetune.micro_batch_tokens 192 -> 96, finetune.zero_stage 1 -> 2", "--fresh",
    )  # fmt: skip


def test_harmless_settings_alone_are_told_and_go_on(run: Run, undisturbed: Any) -> None:
    run.settings = {"micro_batch_tokens": 64, "zero_stage": 2, "kept_chunks": "all"}
    result = run.start(1, expect=DONE)
    assert "finetune.micro_batch_tokens 192 -> 64: changes nothing in the result" in result.stderr[0]
    assert [s["order"] for s in run.steps()] == [s["order"] for s in undisturbed().steps()]
    check_proof(run)


def test_another_seed(run: Run) -> None:
    refused(run, "seed 7 -> 8", seed=8)


def test_other_data_are_told_by_both_fingerprints(run: Run) -> None:
    prints = [json.loads((run.data / name / "manifest.json").read_text())["fingerprint"] for name in ("many", "pairs")]
    refused(run, *(p[:16] for p in prints), "'pairs'", sources={"pairs": run.data / "pairs"})


def test_a_model_of_another_size(run: Run, tmp_path: Path) -> None:
    smaller = make_world(tmp_path / "smaller", layers=1) / "model"
    refused(run, "the model to start from", "is not the one of the history", "parameters", model=smaller)


@pytest.mark.parametrize("batch", [12, 3])
def test_a_batch_that_does_not_fit_the_order(batch: int, run: Run) -> None:
    run.settings = {"batch_pairs": batch}
    refused(run, f"finetune.batch_pairs = {batch}", str(BATCH), "multiple")


def test_a_checkpoint_of_a_newer_rumpun(run: Run) -> None:
    place = newest(run.checkpoints)
    (place / "manifest.json").write_bytes(sealed(read_manifest(place) | {"format": 99}))
    refused(run, place.name, "format 99", "version of rumpun")


def test_an_identity_of_a_newer_rumpun(run: Run) -> None:
    path = run.history / "identity.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    refused(run, "newer rumpun", "format 99")


def test_deleted_checkpoints(run: Run) -> None:
    shutil.rmtree(run.checkpoints)
    refused(run, "holds no checkpoint, but one was saved at step 10", "--fresh")


def test_checkpoints_that_are_all_damaged(run: Run) -> None:
    for place in run.checkpoints.glob("step-*"):
        for path in place.glob("state-*"):
            os.truncate(path, 1000)
    refused(run, "holds no checkpoint that is whole", "step-00000005", "step-00000010", "--fresh")


def _cut(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:8]))


def _edit(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"step":7', b'"step":8', 1))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_cut, ["ledger.jsonl", "step-00000010", "--fresh"]),
        (_edit, ["ledger.jsonl", "line"]),
        (Path.unlink, ["ledger.jsonl"]),
    ],
    ids=["cut", "edited", "deleted"],
)
def test_a_ledger_that_was_tampered_with(harm: Callable[[Path], None], words: list[str], run: Run) -> None:
    harm(run.history / "ledger.jsonl")
    refused(run, *words)


def test_an_identity_that_is_gone(run: Run) -> None:
    (run.history / "identity.json").unlink()
    refused(run, "identity.json", "is missing", "--fresh")


def test_the_history_of_another_run(run: Run, zygote: Any, data: Path, tmp_path: Path) -> None:
    """The same recipe, but the checkpoints were copied over from another training of it."""
    other = Run(zygote, data, tmp_path / "other")
    other.start(1, {"at": "save: part", "step": 3 * EVERY, "do": "KILL"}, expect=-9)
    shutil.rmtree(run.checkpoints)
    shutil.copytree(other.checkpoints, run.checkpoints)
    refused(run, "checkpoints of another history")


def test_a_folder_that_may_not_be_written(run: Run) -> None:
    if os.geteuid() != 0:
        run.history.chmod(0o555)
        run.checkpoints.chmod(0o555)
        refused(run, "not allowed", "writable")
        return
    content = run.history.rename(run.home / "moved")
    run.history.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", run.history], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("cannot mount a small disk here")
    try:
        shutil.copytree(content, run.history, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", run.history], check=True)
        refused(run, "Read-only file system", "writable")
    finally:
        subprocess.run(["umount", "--lazy", run.history], check=True)


def test_a_line_that_a_crash_has_torn_is_no_reason_to_refuse(run: Run, undisturbed: Any) -> None:
    with (run.history / "ledger.jsonl").open("ab") as stream:
        stream.write(b'{"kind":"step","step":16,"ep')
    run.start(2, expect=DONE)
    assert [s["order"] for s in run.steps()] == [s["order"] for s in undisturbed().steps()]
    check_proof(run)


def test_a_finished_history_has_nothing_left_to_do(run: Run) -> None:
    """The ranks write the model once more, from the last checkpoint, and take no step."""
    run.start(1, expect=DONE)
    steps, weights = numbers(run.steps()), run.weights()
    run.start(1, expect=DONE)
    assert (numbers(run.steps()), run.weights()) == (steps, weights)
    assert run.recomputed() == len([r for r in run.records() if r["kind"] == "step"]) - len(steps)
    check_proof(run)
