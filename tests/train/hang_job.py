"""A rank of a made-up run for test_heartbeat.py: steps of a real gloo all_reduce, and one rank that misbehaves.

hang_job.py FOLDER RANK RANKS JSON      JSON: {"who": rank, "step": when, "how": …, "steps": …, "pause_s": …}
"""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

from train.heartbeat import Heartbeat


def wait_for_data() -> None:
    """As a read from a file system that does not answer."""
    time.sleep(1000)


def spin() -> None:
    """An endless loop in Python."""
    while True:
        pass


def block() -> None:
    """One call into C that never ends and keeps the interpreter lock."""
    re.match(r"(a+)+$", "a" * 64 + "b")


def main(folder: Path, rank: int, ranks: int, plan: dict) -> None:
    heart = Heartbeat(
        folder / "beats", rank=rank, ranks=ranks, hang_after_s=plan["hang_after_s"], start_within_s=60, beat_s=0.2
    )
    heart.start()
    import torch
    import torch.distributed as dist

    dist.init_process_group(
        "gloo", store=dist.FileStore(str(folder / "store"), ranks), rank=rank, world_size=ranks,
        timeout=datetime.timedelta(seconds=120),
    )  # fmt: skip
    for step in range(1, plan["steps"] + 1):
        heart.at("data", step)
        time.sleep(plan["pause_s"])
        if rank == plan["who"] and step == plan["step"]:
            if plan["how"] == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            {"data": wait_for_data, "spin": spin, "block": block, "stop": time.time}[plan["how"]]()
        heart.at("sum", step)
        try:
            dist.all_reduce(torch.ones(3))
        except RuntimeError:
            heart.hold()
            raise
        if rank == 0:
            (folder / "reached").write_text(str(step))
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))
