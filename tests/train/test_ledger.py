"""What a ledger vouches for survives kill -9, a torn line and a full disk, and is gone on with in its own chain."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import threading
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from ledger_fixture import BATCH, Training, order_of, read, run_python

from data_prep.errors import UserError
from train.draws import Draw, Draws
from train.history import ledger as ledger_module
from train.history import ledger_file
from train.history.ledger import Ledger, read_records
from train.history.records import LedgerFault, order_hash
from train.history.verify import verify


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path / "run" / "ledger.jsonl")


def begin(training: Training) -> Ledger:
    opened = Ledger.open(training.path, training.header)
    opened.start(
        step=0, position=0, restart=opened.starts, ranks=1, nodes=1, hosts=["n"], job="7", zero_stage=2, batch=BATCH
    )
    return opened


def draw(training: Training, step: int) -> Draw:
    return Draws(training.order, batch=BATCH, end=training.end, arrangement=training.arrangement)(step)


def record(opened: Ledger, training: Training, step: int, **changed: Any) -> None:
    made = draw(training, step)
    opened.step(made, **{"samples": made.samples, "loss": 1.5, "norm": 0.5, "rate": 1e-3} | changed)


def test_the_lines_say_what_happened(training: Training) -> None:
    opened = begin(training)
    record(opened, training, 1)
    record(opened, training, 2, loss=math.nan, norm=math.inf, skipped="loss nan")
    record(opened, training, 3, loss=-math.inf, norm=None)
    opened.event("checkpoint", step=3, ranks=1, bytes=10)
    opened.event("stop", step=3, reason="SIGTERM")
    opened.close()
    header, start, one, two, three, saved, stop = read(training.path)
    assert {key: header[key] for key in training.header} == training.header
    assert (header["kind"], header["format"]) == ("header", 1)
    assert (start["hosts"], start["job"], start["zero_stage"], start["batch"]) == (["n"], "7", 2, BATCH)
    made = draw(training, 1)
    assert one["moved"] == {str(i): p for i, p in enumerate(made.positions) if i != p} != {}
    assert one["order"] == order_hash(made.samples)
    counts = [sum(s == number for s, _ in made.samples) for number in range(3)]
    assert one["sources"] == {s.name: [0, n] for s, n in zip(training.order.sources, counts, strict=True)}
    assert [two["sources"][s.name][0] for s in training.order.sources] == counts
    assert (one["loss"], one["grad_norm"], one["rate"]) == (1.5, 0.5, 1e-3)
    assert "skipped" not in one
    assert (two["loss"], two["grad_norm"], two["skipped"]) == ("nan", "inf", "loss nan")
    assert (three["loss"], three["grad_norm"]) == ("-inf", None)
    assert math.isnan(float(two["loss"]))
    assert (saved["kind"], saved["step"], stop["reason"]) == ("checkpoint", 3, "SIGTERM")


def test_the_hash_is_the_one_that_is_documented() -> None:
    samples = [(0, 5), (2, 2**40), (1, 0)]
    raw = b"".join(n.to_bytes(8, "little", signed=True) for pair in samples for n in pair)
    assert order_hash(samples) == blake2b(raw, digest_size=16).hexdigest() == order_hash(np.array(samples))
    assert order_hash([]) == blake2b(b"", digest_size=16).hexdigest()


def test_the_chain_is_the_one_that_is_documented(training: Training) -> None:
    training.start(steps=5)
    chain = ""
    for line in training.path.read_text().splitlines():
        body, _, rest = line.rpartition(',"chain":"')
        chain = blake2b((chain + body + "}").encode(), digest_size=16).hexdigest()
        assert rest == chain + '"}'


def test_what_a_mark_vouches_for_is_there(training: Training) -> None:
    opened = begin(training)
    for step in range(1, 4):
        record(opened, training, step)
    mark = opened.mark()
    assert mark["bytes"] == training.path.stat().st_size
    assert read(training.path)[-1]["chain"] == mark["chain"]
    record(opened, training, 4)
    opened.close()
    again = Ledger.open(training.path, training.header)
    assert again.holds(mark)
    assert not again.holds(mark | {"chain": "0" * 32})
    assert not again.holds(mark | {"bytes": mark["bytes"] - 1})
    assert not again.holds(mark | {"bytes": 10**9})
    again.close()


def test_it_goes_on_in_its_own_chain_with_its_own_counts(training: Training) -> None:
    training.start(steps=6)
    training.start(after=4, steps=5)
    opened = Ledger.open(training.path, training.header)
    assert (opened.starts, opened.last_step, opened.committed) == (2, 9, 8)
    opened.close()
    training.start(after=8)
    assert verify(training.path).tape.ended


def test_a_checkpoint_whose_line_was_lost_is_vouched_for_when_it_is_found(training: Training) -> None:
    training.start(steps=6, save_every=100)
    training.saved[5] = draw(training, 5).end  # complete on the disk; the crash came before its line
    training.start(after=5)
    assert [r["step"] for r in read(training.path) if r.get("found")] == [5]
    assert "1 checkpoint had been completed just before a crash" in "\n".join(verify(training.path).sentences())


def test_a_checkpoint_of_steps_that_are_not_in_it_is_refused(training: Training) -> None:
    training.start(steps=3)
    training.saved[7] = 56
    with pytest.raises(UserError, match="holds no step 7"):
        training.start(after=7)


@pytest.mark.parametrize("cut", [1, 20, 300])
def test_a_torn_last_line_is_cut_off(training: Training, cut: int) -> None:
    training.start(steps=6)
    whole = training.path.read_bytes()
    training.path.write_bytes(whole[:-cut])
    opened = Ledger.open(training.path, training.header)
    opened.close()
    left = training.path.read_bytes()
    assert whole.startswith(left)
    assert left.endswith(b"\n")
    assert opened.last_step == (5 if cut < 300 else 4)
    training.start(after=4)
    assert verify(training.path).tape.ended


def test_zeros_that_a_power_cut_left_are_cut_off(training: Training) -> None:
    training.start(steps=6)
    with training.path.open("ab") as file:
        file.write(bytes(5000))
    training.start(after=4)
    assert verify(training.path).tape.ended


@pytest.mark.parametrize("left", [0, 17])
def test_a_torn_header_is_a_new_ledger(training: Training, left: int) -> None:
    training.start(steps=0)
    training.path.write_bytes(training.path.read_bytes()[:left])
    Ledger.open(training.path, training.header).close()
    assert [r["kind"] for r in read(training.path)] == ["header"]


def test_damage_in_the_middle_is_not_written_behind(training: Training) -> None:
    training.start(steps=6)
    content = training.path.read_bytes()
    training.path.write_bytes(content.replace(b'"step":3,', b'"step":9,'))
    with pytest.raises(LedgerFault, match="line 5"):
        Ledger.open(training.path, training.header)
    with pytest.raises(LedgerFault, match="line 5"):
        list(read_records(training.path))


@pytest.mark.parametrize(("key", "value"), [("seed", 8), ("fingerprint", "x"), ("end", 5), ("history", "other")])
def test_a_ledger_of_something_else_is_refused(training: Training, key: str, value: Any) -> None:
    training.start(steps=1)
    before = training.path.read_bytes()
    with pytest.raises(UserError, match=f"{key} = .*this run has {json.dumps(value)}"):
        Ledger.open(training.path, training.header | {key: value})
    assert training.path.read_bytes() == before


def test_a_newer_format_is_refused(training: Training) -> None:
    with mock.patch.object(ledger_file, "FORMAT", 2):
        training.start(steps=1)
    with pytest.raises(UserError, match="written by a newer rumpun"):
        Ledger.open(training.path, training.header)


def test_a_step_that_does_not_follow_is_a_defect(training: Training) -> None:
    opened = begin(training)
    record(opened, training, 1)
    with pytest.raises(RuntimeError, match="does not follow"):
        record(opened, training, 3)
    opened.close()
    with pytest.raises(ValueError, match="'epoch' is none of"):
        opened.event("epoch")
    with pytest.raises(RuntimeError, match="is closed"):
        opened.event("stop", step=1, reason="")


def test_another_writer_is_noticed(training: Training) -> None:
    first = begin(training)
    first.mark()
    second = Ledger.open(training.path, training.header)
    record(first, training, 1)
    first.mark()
    second.event("stop", step=0, reason="")
    with pytest.raises(UserError, match="another process"):
        second.mark()
    with pytest.raises(UserError):
        second.close()
    first.close()


def test_a_step_does_not_wait_for_the_disk(training: Training) -> None:
    opened = begin(training)
    opened.mark()
    let_go = threading.Event()
    synced = os.fdatasync

    def slow(descriptor: int) -> None:
        let_go.wait(10)
        synced(descriptor)

    with mock.patch.object(ledger_module.os, "fdatasync", slow):
        for step in range(1, 20):
            record(opened, training, step)  # returns while the disk hangs
        assert not let_go.is_set()
        let_go.set()
        opened.close()
    assert len(read(training.path)) == 21


def test_an_error_of_the_disk_comes_out_of_the_next_call_and_leaves_whole_lines(training: Training) -> None:
    opened = begin(training)
    record(opened, training, 1)
    opened.mark()
    with mock.patch.object(ledger_module.os, "fdatasync", side_effect=OSError(28, "No space left on device")):
        record(opened, training, 2)
        with pytest.raises(UserError, match=r"disk .* is full"):
            opened.mark()
    with pytest.raises(UserError, match=r"disk .* is full"):
        record(opened, training, 3)
    with pytest.raises(UserError, match=r"disk .* is full"):
        opened.close()
    assert [r.get("step") for r in read(training.path) if r["kind"] == "step"] == [1]


def test_a_really_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        training = Training(disk / "ledger.jsonl", epochs=100)
        with pytest.raises(UserError, match=r"disk .* is full"):
            training.start()
        again = Ledger.open(training.path, training.header)
        with pytest.raises(UserError, match=r"disk .* is full"):  # every line that was written is whole
            for _ in range(10_000):
                again.event("stop", step=0, reason="x" * 100)
        with pytest.raises(UserError):
            again.close()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


ENDLESS = """
import sys
from pathlib import Path
from ledger_fixture import *
training = Training(Path(sys.argv[1]), epochs=10**6)
training.restart = int(sys.argv[2])
training.saved[int(sys.argv[3])] = int(sys.argv[4])
print("going", flush=True)
training.start(after=int(sys.argv[3]), save_every=int(sys.argv[5]))
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_appending_leaves_a_ledger_that_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    saved = position = 0
    for kill in range(5):
        process = run_python(ENDLESS, path, kill, saved, position, 10)
        assert process.stdout is not None
        process.stdout.readline()
        before = path.stat().st_size if path.exists() else 0
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < before + 20_000 + 3331 * kill:
            assert time.monotonic() < deadline and process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        proof = verify(path)  # a torn line, if there is one, is the last
        assert len(proof.tape.starts) == kill + 1
        assert proof.tape.step > saved
        records = list(read_records(path))
        saved = [r["step"] for r in records if r["kind"] == "checkpoint"][-1]
        position = next(r["end"] for r in reversed(records) if r["kind"] == "step" and r["step"] == saved)
    assert proof.recomputed > 0
    assert proof.samples == proof.tape.step * BATCH
    assert order_of().facts() == {k: v for k, v in records[0].items() if k in order_of().facts()}
