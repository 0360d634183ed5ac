"""A rank that does as its job's `plan` says, for test_local.py and test_supervisor.py: `fake_worker.py JOB.json`.

plan[restart][rank] is a list of actions, each [name, argument]; see `act`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from launch.agent import die_with_parent
from launch.worker import FAILURE, STOPPED_FILE
from train.guard import StopRequest
from train.heartbeat import Heartbeat


def act(name: str, value: object, *, job: dict, rank: int, stop: StopRequest, heart: Heartbeat) -> None:
    out, history = Path(job["out"]), Path(job.get("history", job["out"]))
    if name == "steps":  # train so many, as rank 0 records it; `latest` names the last
        with (history / "metrics.jsonl").open("a") as stream:
            for step in value:  # type: ignore[attr-defined]
                stream.write(
                    json.dumps({"step": step, "loss": 1.0 / step, "tokens_per_s": 9.0, "at": time.time()}) + "\n"
                )
    elif name == "cut":  # what a resume does first
        path = history / "metrics.jsonl"
        kept = [line for line in path.read_text().splitlines(True) if json.loads(line)["step"] <= value]
        path.with_suffix(".new").write_text("".join(kept))
        path.with_suffix(".new").replace(path)
    elif name == "save":
        (history / "checkpoints").mkdir(exist_ok=True)
        (history / "checkpoints" / "latest").write_text(f"step-{value:08d}\n")
    elif name == "status":
        (history / "status.json").write_text(json.dumps({"what": value, "total": 9}))
    elif name == "wait for":  # a file of the test
        while not (out / str(value)).exists():
            time.sleep(0.02)
    elif name == "touch":
        (out / f"{value}-{rank}").write_text(str(os.getpid()))
    elif name == "sleep":
        time.sleep(float(value))  # type: ignore[arg-type]
    elif name == "at":
        heart.at(*value)  # type: ignore[misc]
    elif name == "raise":
        raise RuntimeError(value)
    elif name == "mistake":
        (out / FAILURE).write_text(json.dumps({"value": value, "rule": "is wrong", "fix": "mend it"}))
        os._exit(2)
    elif name == "signal":
        os.kill(os.getpid(), int(value))  # type: ignore[call-overload]
        time.sleep(60)
    elif name == "until asked":
        while stop.reason() is None:
            time.sleep(0.02)
        time.sleep(float(value))  # type: ignore[arg-type]
        (out / STOPPED_FILE).write_text(json.dumps({"reason": stop.reason(), "step": 7}))
        os._exit(75)
    elif name == "done":
        (out / "summary.json").write_text(
            json.dumps({"train_s": 9.0, "train_here_s": 2.5, "restart": job.get("restart")})
        )
    else:
        raise AssertionError(name)


def main(job: dict) -> None:
    stop = StopRequest()
    stop.install()
    rank = int(os.environ["RANK"])
    settings = dict(job["heartbeat"])
    heart = Heartbeat(
        Path(settings.pop("folder")), rank=rank, ranks=int(os.environ["WORLD_SIZE"]), beat_s=0.2, **settings
    )
    heart.start()
    plans = job["plan"][min(job.get("restart", 0), len(job["plan"]) - 1)]
    for name, value in plans[rank]:
        act(name, value, job=job, rank=rank, stop=stop, heart=heart)


if __name__ == "__main__":
    die_with_parent()
    main(json.loads(Path(sys.argv[1]).read_text()))
