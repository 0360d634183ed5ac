"""Chains written down by hand, in the files that jobs and training leave: what the commands that look at runs read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

JOBS: dict[str, dict[str, Any]] = {
    "prepare": {"id": "11", "stages": ["corpus", "tokens", "truncate"], "after": []},
    "pretrain": {"id": "12", "stages": ["pretrain"], "after": ["prepare"], "nodes": 2},
    "pairs": {"id": "13", "stages": ["mine", "synth"], "after": ["prepare"]},
    "finetune": {"id": "14", "stages": ["finetune"], "after": ["pretrain", "pairs"], "nodes": 2},
    "eval": {"id": "15", "stages": ["eval"], "after": ["finetune"]},
    "export": {"id": "16", "stages": ["export", "report"], "after": ["eval"]},
}


class Recorded:
    """A run folder that is written step by step; times are given as seconds after `epoch`."""

    def __init__(self, run: Path, *, epoch: float) -> None:
        self.run, self.epoch = run, epoch
        run.mkdir(parents=True, exist_ok=True)

    def jobs(self, jobs: Mapping[str, Mapping[str, Any]] = JOBS) -> Recorded:
        told = {"format": 1, "cluster": "lab", "run": str(self.run), "arguments": [], "submitted_at": self.epoch}
        self._write("chain/jobs.json", json.dumps({**told, "jobs": jobs}, sort_keys=True))  # as write_json does
        return self

    def stop(self, **ids: str) -> Recorded:
        self._write("chain/stop.json", json.dumps({"jobs": {id.removeprefix("id"): why for id, why in ids.items()}}))
        return self

    def event(self, name: str, event: str, at: float, *, job: str = "", restart: int = 0, **facts: Any) -> Recorded:
        told = {"event": event, "time": self.epoch + at, "job": job or JOBS[name]["id"], "restart": restart}
        self._append(f"chain/links/{name}.jsonl", json.dumps(told | facts) + "\n")
        return self

    def begin(
        self, name: str, at: float, *, restart: int = 0, nodes: list[str] | None = None, **facts: Any
    ) -> Recorded:
        told: dict[str, Any] = {
            "nodes": nodes or ["node1"],
            "ranks": 2,
            "submitted": self.epoch,
            "eligible": self.epoch + max(0.0, at - 5),
            "start": self.epoch + at - 1,
            "end_limit": None,
        }
        return self.event(name, "begin", at, restart=restart, **(told | facts))

    def end(self, name: str, at: float, outcome: str = "done", *, restart: int = 0, **facts: Any) -> Recorded:
        return self.event(name, "end", at, restart=restart, outcome=outcome, **({"reason": "", "next": "none"} | facts))

    def stage(self, *names: str, at: float = 0.0, seconds: float = 1.0) -> Recorded:
        for name in names:
            started = datetime.fromtimestamp(self.epoch + at, UTC).isoformat(timespec="seconds")
            self._write(f"{name}/stage.json", json.dumps({"stage": name, "started_at": started, "seconds": seconds}))
        return self

    def header(self, phase: str, *, end: int) -> Recorded:
        self._append(f"history/{phase}/ledger.jsonl", json.dumps({"kind": "header", "end": end}) + "\n")
        return self

    def start(self, phase: str, at: float, *, step: int = 0, batch: int = 4) -> Recorded:
        time = datetime.fromtimestamp(int(self.epoch + at), UTC).isoformat(timespec="seconds")
        told = {"kind": "start", "step": step, "position": step * batch, "batch": batch, "time": time}
        return self._ledger(phase, told)

    def steps(
        self, phase: str, first: int, last: int, *, at: float, each: float = 1.0, kept: bool = True, loss: float = 2.5
    ) -> Recorded:
        for n, step in enumerate(range(first, last + 1), start=1):
            self._ledger(phase, {"kind": "step", "step": step, "loss": loss})
            if kept:
                told = {"step": step, "loss": loss, "step_s": each, "time": self.epoch + at + n * each}
                self._append(f"history/{phase}/metrics.jsonl", json.dumps(told) + "\n")
        return self

    def saved(self, phase: str, step: int) -> Recorded:
        return self._ledger(phase, {"kind": "checkpoint", "step": step, "ranks": 2, "bytes": 1})

    def log(self, path: str, text: str) -> Path:
        return self._append(f"logs/{path}", text)

    def _ledger(self, phase: str, record: Mapping[str, Any]) -> Recorded:
        line = json.dumps(record, separators=(",", ":"))
        self._append(f"history/{phase}/ledger.jsonl", f'{line[:-1]},"chain":"{"0" * 32}"}}\n')
        return self

    def _append(self, path: str, text: str) -> Path:
        place = self.run / path
        place.parent.mkdir(parents=True, exist_ok=True)
        with place.open("a", encoding="utf-8") as stream:
            stream.write(text)
        return place

    def _write(self, path: str, text: str) -> None:
        place = self.run / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")


def halfway(run: Path, *, epoch: float) -> Recorded:
    """A chain of which `pretrain` runs since second 300 (link 2; the first was preempted), at step 60 of 200."""
    made = Recorded(run, epoch=epoch).jobs().stage("corpus", "tokens", "truncate", "mine")
    made.begin("prepare", 10).event("prepare", "stage", 11, stage="corpus").event(
        "prepare", "stage_done", 60, stage="corpus"
    )
    made.end("prepare", 61)
    made.begin("pairs", 70).event("pairs", "stage", 71, stage="mine").event("pairs", "stage_done", 90, stage="mine")
    made.event("pairs", "stage", 91, stage="synth")
    nodes = ["node1", "node2"]
    made.header("pretrain", end=800)
    made.begin("pretrain", 80, nodes=nodes).event("pretrain", "stage", 81, stage="pretrain")
    made.event("pretrain", "preflight", 90, seconds=8.0, sick={}, facts={})
    made.event("pretrain", "ranks", 91, phase="pretrain", attempt=0).start("pretrain", 100)
    made.steps("pretrain", 1, 30, at=105).event(
        "pretrain", "stepping", 106, phase="pretrain", step=1,
        parts_s={"starting the process": 3.0, "loading libraries": 5.0, "loading the model": 4.0, "computing gradients": 1.0},
    )  # fmt: skip
    made.saved("pretrain", 30)
    made.event("pretrain", "ranks_ended", 140, phase="pretrain", outcome="stopped", reason="SIGTERM", saved=30, last=30)
    made.end("pretrain", 141, "stopped", reason="SIGTERM", next="requeue", exit=75)
    made.begin("pretrain", 290, restart=1, nodes=nodes, end_limit=epoch + 1000)
    made.event("pretrain", "stage", 291, restart=1, stage="pretrain")
    made.event("pretrain", "ranks", 292, restart=1, phase="pretrain", attempt=0).start("pretrain", 296, step=30)
    made.event("pretrain", "stepping", 300, restart=1, phase="pretrain", step=31, parts_s={})
    made.steps("pretrain", 31, 60, at=299)
    return made
