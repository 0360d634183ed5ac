"""`rumpun ledger verify`: a proof that a reviewer can read, the wrong line where there is none, a hint for a typo."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from data_prep.pairs.row import pair_row
from data_prep.shards import Shards, ShardWriter
from launch.cli import main
from tests.train.ledger_fixture import BATCH, Training, read, write
from train.cursor import GlobalOrder, Source
from train.history.manifest import FORMAT, sealed


def rumpun(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """(exit code, what it printed, on single spaces)."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    printed = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, re.sub(r"\s+", " ", printed.out + printed.err)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two phases: one that is over, and one that was killed."""
    run = tmp_path / "runs" / "melayu-600m"
    tokens = GlobalOrder([Source("tokens", 40)], fingerprint="t", seed=1)
    Training(run / "history" / "pretrain" / "ledger.jsonl", order=tokens).start(ranks=4)
    killed = Training(run / "history" / "finetune" / "ledger.jsonl")
    killed.start(steps=6)
    killed.start(after=4, steps=9, ranks=3)
    kept = run / "history" / "finetune.kept-1"
    kept.mkdir()
    (kept / "ledger.jsonl").write_text("of an earlier life")
    return run


def test_every_phase_is_proven(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([run], ["melayu-600m", "--runs", run.parent]):
        code, text = rumpun(capsys, "ledger", "verify", *arguments)
        assert code == 0
        first, second = text.index(" pretrain An epoch is 40 samples"), text.index(" finetune An epoch is 88 samples")
        assert first < second
        assert "Proven: every sample was used exactly once in each of the 3 epochs" in text[first:second]
        assert "Proven so far (step 13): every sample was used exactly once in the one epoch that" in text[second:]
        assert "through 2 starts on 2 and 3 processes" in text


def test_what_is_not_proven_names_the_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = run / "history" / "finetune" / "ledger.jsonl"
    records = read(ledger)
    index = next(i for i, r in enumerate(records) if r.get("step") == 9)
    del records[index]
    write(ledger, records, sealed=True)
    code, text = rumpun(capsys, "ledger", "verify", run)
    assert code == 1
    assert "Proven: every sample" in text, "the other phase is told all the same"
    assert f"NOT PROVEN. Line {index + 1} of {ledger}: is step 10, but step 9 comes after step 8." in text


def test_lines_that_the_newest_checkpoint_knew_of_are_missed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = run / "history" / "finetune"
    lines = (history / "ledger.jsonl").read_bytes().splitlines(keepends=True)
    mark = {"bytes": sum(map(len, lines)), "chain": json.loads(lines[-1])["chain"]}
    checkpoint = history / "checkpoints" / "step-00000012"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_bytes(sealed({"format": FORMAT, "facts": {"ledger": mark}}))
    for step, spoiled in ((13, "[]"), (14, "{}"), (15, "{"), (16, '{"facts": 3}')):
        (checkpoint.with_name(f"step-{step:08d}")).mkdir()
        (checkpoint.with_name(f"step-{step:08d}") / "manifest.json").write_text(spoiled)
    code, text = rumpun(capsys, "ledger", "verify", run)
    assert (code, "nothing is missing that the newest checkpoint knew of" in text) == (0, True)
    (history / "ledger.jsonl").write_bytes(b"".join(lines[:-2]))
    code, text = rumpun(capsys, "ledger", "verify", run)
    assert code == 1
    assert "the newest checkpoint was written with a longer ledger" in text


def test_the_data_of_the_run_are_compared_where_they_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def write_pairs(count: int) -> Shards:
        with ShardWriter(run / "synth", "pairs") as writer:
            for i in range(count):
                writer.append(pair_row(f"soalan {i}", [f"jawab {i}"], [], "synth", "ms"))
        return Shards(run / "synth", "pairs")

    shards = write_pairs(3 * BATCH)
    order = GlobalOrder([Source("synth", len(shards))], fingerprint=shards.fingerprint, seed=1)
    Training(run / "history" / "finetune" / "ledger.jsonl", order=order).start()
    code, text = rumpun(capsys, "ledger", "verify", run)
    assert (code, "the data that are there are those of the run" in text) == (0, True)
    for file in (run / "synth").iterdir():
        file.unlink()
    write_pairs(3 * BATCH + 1)
    code, text = rumpun(capsys, "ledger", "verify", run)
    assert (code, "had 24 rows, and now has 25" in text) == (1, True)


def test_training_that_was_called_from_python(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Training(tmp_path / "out" / "history" / "ledger.jsonl").start()
    for folder in (tmp_path / "out", tmp_path / "out" / "history"):
        assert rumpun(capsys, "ledger", "verify", folder)[0] == 0


def test_a_mistyped_run_is_a_mistake_with_the_nearest_names(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run.parent / "demo").mkdir()
    code, text = rumpun(capsys, "ledger", "verify", "melayu-60m", "--runs", run.parent)
    assert code == 2
    assert "error: run 'melayu-60m': no such run. Fix: did you mean melayu-600m? runs in" in text
    assert "demo, melayu-600m" in text
    code, text = rumpun(capsys, "ledger", "verify", "x", "--runs", run / "nowhere")
    assert (code, "holds no runs; --runs DIR says where they are" in text) == (2, True)
    code, text = rumpun(capsys, "ledger", "verify", "demo", "--runs", run.parent)
    assert (code, "has no ledger: no training phase of it has started" in text) == (2, True)
