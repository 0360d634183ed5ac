"""What a step record and a summary say, against numbers worked out by hand."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

import train.meter
from train.flops import Flops, Work
from train.meter import Meter
from train.phase import PhaseConfig
from train.telemetry import Telemetry

FLOPS = Flops(per_token=1000.0, per_squared_token=10.0, head_per_token=500.0)


class Clock:
    def __init__(self) -> None:
        self.now_s = 50.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def _step(meter: Meter, clock: Clock, work: Work, *, loss: float, wait_s: float = 0.0, gather_s: float = 0.0) -> Any:
    meter.begin_step()
    with meter.waiting():
        clock.now_s += wait_s
    clock.now_s += 1.0
    meter.add("gather", gather_s / 2)
    meter.add("gather", gather_s / 2)
    clock.now_s += gather_s
    return meter.end_step(loss=loss, rate=0.5, norm=None, work=work)


def test_a_step_record(clock: Clock) -> None:
    meter = Meter(None)
    record = _step(meter, clock, Work.of([3, 5], pairs=2, computed=[5, 5]), loss=2.0, wait_s=2.0, gather_s=1.0)
    assert record["peak_memory_gb"] > 0
    assert {k: v for k, v in record.items() if k != "peak_memory_gb"} == {
        "step": 1,
        "loss": 2.0,
        "lr": 0.5,
        "grad_norm": None,
        "tokens": 8,
        "sequences": 2,
        "pairs": 2,
        "step_s": 4.0,
        "elapsed_s": 4.0,
        "tokens_per_s": 2.0,
        "sequences_per_s": 0.5,
        "pairs_per_s": 0.5,
        "padding": pytest.approx(0.2),
        "data_wait": 0.5,
        "gather": 0.25,
    }


def test_shares_of_one_step_do_not_leak_into_the_next(clock: Clock) -> None:
    meter = Meter(None)
    _step(meter, clock, Work.of([4]), loss=1.0, wait_s=3.0)
    assert _step(meter, clock, Work.of([4]), loss=1.0)["data_wait"] == 0.0
    assert meter.totals()["data_wait"] == pytest.approx(3 / 5)
    assert meter.totals()["tokens_per_s"] == pytest.approx(8 / 5)


def test_mfu_counts_the_trunk_on_real_tokens_and_all_ranks(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train.meter, "device_peak", lambda device, precision: 1e6)
    meter = Meter(None, flops=FLOPS, ranks=4)
    work = Work.of([2, 4], computed=[4, 4], again=[4], head_tokens=6)
    record = _step(meter, clock, work, loss=1.0, wait_s=1.0)
    assert record["trunk_mfu"] == pytest.approx(3 * (6 * 1000 + 20 * 10) / (2.0 * 4 * 1e6))
    hardware = 3 * (8 * 1000 + 32 * 10 + 6 * 500) + (4 * 1000 + 16 * 10)
    assert record["hfu"] == pytest.approx(hardware / (2.0 * 4 * 1e6))
    assert "convention" in " ".join(meter.totals())
    encoding = Meter(None, flops=FLOPS, ranks=4, training=False)
    encoding.begin_step()
    clock.now_s += 1.0
    assert encoding.end_step(work=work)["trunk_mfu"] == pytest.approx((6 * 1000 + 20 * 10) / (4 * 1e6))


def test_an_unknown_device_claims_no_use_of_its_peak(clock: Clock) -> None:
    meter = Meter(None, flops=FLOPS, device="cpu")
    record = _step(meter, clock, Work.of([4]), loss=1.0)
    assert not {"trunk_mfu", "hfu"} & (record.keys() | meter.totals().keys())
    assert meter.totals()["trunk_flops"] == 3 * (4 * 1000 + 16 * 10)


def test_the_summary_and_the_files(clock: Clock, tmp_path: Path) -> None:
    telemetry = Telemetry(tmp_path, history=tmp_path / "history", active=True)
    telemetry.status("starting")
    telemetry.resume(0)
    meter = Meter(telemetry, startup_s=7.0, flops=FLOPS)
    for loss in (3.0, 1.0):
        _step(meter, clock, Work.of([4, 4], pairs=1), loss=loss)
    summary = meter.summary(
        "finetune", PhaseConfig(precision="fp32"), ranks=1, device="cpu", sizes={"parameters": 9}, train_s=2.0,
        save_s=0.5, truncated=3,
    )  # fmt: skip
    telemetry.finish(summary)
    written = json.loads((tmp_path / "summary.json").read_text())
    wanted = {
        "phase": "finetune", "steps": 2, "world_size": 1, "zero_stage": 1, "parameters": 9, "startup_s": 7.0,
        "train_s": 2.0, "save_s": 0.5, "tokens": 16, "sequences": 4, "pairs": 2, "steps_s": 2.0, "tokens_per_s": 8.0,
        "loss_first": 3.0, "loss_last": 1.0, "device": "cpu", "precision": "fp32", "truncated": 3,
    }  # fmt: skip
    assert wanted.items() <= written.items()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["loss"] for r in records] == [3.0, 1.0]
    assert list((tmp_path / "tensorboard").iterdir())
    assert sorted(p.name for p in (tmp_path / "history").iterdir()) == ["metrics.jsonl"]


def test_a_resumed_meter_counts_as_one_that_never_stopped(clock: Clock) -> None:
    def train(meter: Meter, losses: list[float]) -> None:
        for loss in losses:
            _step(meter, clock, Work.of([4, 4], pairs=1), loss=loss)
            meter.pause("checkpoint", 0.25)

    whole = Meter(None, flops=FLOPS)
    train(whole, [3.0, 2.0, 1.0])
    first = Meter(None, flops=FLOPS)
    train(first, [3.0, 2.0])
    second = Meter(None, flops=FLOPS)
    second.load(json.loads(json.dumps(first.state())))
    train(second, [1.0])

    def summary(meter: Meter) -> dict[str, Any]:
        return meter.summary(
            "finetune", PhaseConfig(precision="fp32"), ranks=1, device="cpu", sizes={}, train_s=3.0, save_s=0.0
        )

    ours, reference = summary(second), summary(whole)
    assert (ours["train_here_s"], reference["train_here_s"]) == (1.0, 3.0)
    for changing in ("peak_rss_gb", "peak_memory_gb", "train_here_s"):
        del ours[changing], reference[changing]
    assert ours == reference
    assert ours["checkpoint_s"] == 0.75
    assert ours["checkpoint_share"] == 0.25
    assert (ours["steps"], ours["loss_first"], ours["loss_last"]) == (3, 3.0, 1.0)


def test_what_is_not_finite_is_written_as_null(clock: Clock) -> None:
    record = _step(Meter(None), clock, Work.of([4]), loss=float("nan"))
    assert record["loss"] is None
    json.dumps(record, allow_nan=False)


def test_records_behind_the_resumed_step_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss": 1.0 / step}) for step in (1, 2, 3, 4)]
    path.write_text("\n".join([*lines, '{"step": 5, "lo']))
    telemetry = Telemetry(tmp_path, history=tmp_path, active=True)
    telemetry.resume(3)
    telemetry.log({"step": 4, "loss": 9.0})
    assert [json.loads(line)["loss"] for line in path.read_text().splitlines()] == [1.0, 0.5, 1.0 / 3, 9.0]
    idle = Telemetry(tmp_path, history=tmp_path / "elsewhere", active=False)
    idle.status("starting")
    idle.resume(0)
    idle.log({"step": 1})
    assert not (tmp_path / "elsewhere").exists()
