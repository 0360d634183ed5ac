"""What one task of an array does: its parts of a data stage, one after another.

Kept apart and small: every task imports it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from data_prep.errors import UserError
from data_prep.fanout import Part, finished, run_part
from train.exit_codes import STOPPED

WARNED = "warned"
"""Folder beside the tasks' logs: a file for each task that was warned, a byte for each time without a part done."""
WITHOUT_GAIN = 3
"""Starts in a row, of a task that finishes no part, after which it requeues itself; then whoever waits for it decides
(launch/fanout_array.py)."""


class Share:
    """Called in a task with its parts; those that are done are passed over, so it may be called again.

    Args:
        folder: of the array, on storage that all nodes see.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._computed = folder, 0

    def __call__(self, function: str, parts: Sequence[Part], records: Sequence[str]) -> int:
        """Compute parts and record each before the next begins. Returns how many were computed.

        Args:
            function: `package.module:function`. records: where the result of each part goes.
        """
        for part, record in zip(parts, map(Path, records), strict=True):
            if finished(record) is None:
                run_part(function, part, record)
                self._computed += 1
        return self._computed

    def checkpoint(self, *_: Any) -> NoReturn:
        """submitit calls it in the signal handler of a task that is warned: it requeues the task, and ends it.

        What submitit would do itself where the site forbids that is to raise an exception, in the middle of a part,
        which would take it for its own failure.
        """
        name = own_name()
        with suppress(OSError, UserError):  # refused: who waits for this task finds the file, and submits its rest anew
            (self._folder / WARNED).mkdir(exist_ok=True)
            with (self._folder / WARNED / name).open("wb" if self._computed else "ab") as stream:
                stream.write(b".")
                times = stream.tell()
            if times <= WITHOUT_GAIN:
                from launch.slurm.scheduler.commands import Slurm

                Slurm.here(need=("scontrol",)).requeue(name)
        os._exit(STOPPED)


def own_name() -> str:
    """The scheduler's name of this task: `21_3`, or `21` outside an array."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", str(os.getpid()))
