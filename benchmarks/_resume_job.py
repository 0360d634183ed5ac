"""One start of a training for benchmarks/resume_cost.py: prints its record as JSON on the last line.

`python benchmarks/_resume_job.py JOB.json`; a job holds `model`, `tokens`, `out`, `history`, `config` (of [pretrain]),
`checkpoint` (of [checkpoint]) and `stop_after`: steps after which this start is asked to stop, 0 for never.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_WORLD_SIZE="1")


def main(job: dict[str, Any]) -> None:
    """Train until the stop or the end."""
    from train.guard import StopRequest
    from train.history.checkpoint import CheckpointConfig
    from train.survival import Stopped, Survival

    class StopAfter(StopRequest):
        """Asks for a stop in the given step of this start; the loop looks once a step."""

        looks = 0

        def reason(self) -> str | None:
            self.looks += 1
            return "time limit" if self.looks == job["stop_after"] else None

    survival = Survival(
        history=Path(job["history"]), checkpoint=CheckpointConfig(**job["checkpoint"]), stop=StopAfter()
    )
    survival.at("joining the ranks")
    from train.engine import start_ranks

    start_ranks(Path(job["history"]).with_suffix(".store"))
    survival.at("importing the phase")
    from train.history.saver import Saver
    from train.loop import Loop
    from train.pretrain import PretrainConfig, pretrain

    saves: list[float] = []
    loops: list[Loop[Any]] = []
    save, run = Saver.save, Loop.run

    def timed_save(self: Saver, *arguments: Any) -> float:
        saves.append(save(self, *arguments))
        return saves[-1]

    def noted_run(self: Loop[Any]) -> None:
        loops.append(self)
        run(self)

    Saver.save, Loop.run = timed_save, noted_run  # type: ignore[method-assign]
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    stopped = None
    try:
        pretrain(
            PretrainConfig(**job["config"]),
            tokens=Path(job["tokens"]),
            model=Path(job["model"]),
            out=out,
            seed=0,
            survival=survival,
        )
    except Stopped as stop:
        stopped = stop.step
    print(json.dumps({"stopped": stopped, "saves_s": saves, "start_parts_s": loops[0].start_s}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
