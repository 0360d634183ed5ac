"""What this process has been given: the job that it runs in, its nodes, and when they are taken away."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from data_prep.errors import UserError

if TYPE_CHECKING:
    from launch.slurm.scheduler.commands import Slurm


@dataclass(frozen=True)
class Allocation:
    """A start of a job by the scheduler.

    Attributes:
        job_id: of this start; a task of an array has its own. restart: how often the job was requeued before.
        nodes: in the order of the ranks. tasks_per_node: ranks on each.
        ends_at: when the time limit ends it, seconds since the epoch; None where there is no limit.
        array: (id of the array, number of this task, last number), None outside an array chain.
        submitted, eligible, started: seconds since the epoch, where the scheduler says them.
    """

    job_id: str
    restart: int
    nodes: tuple[str, ...]
    tasks_per_node: int
    ends_at: float | None
    array: tuple[str, int, int] | None = None
    submitted: float | None = None
    eligible: float | None = None
    started: float | None = None

    @property
    def ranks(self) -> int:
        """Ranks over all nodes."""
        return len(self.nodes) * self.tasks_per_node

    @property
    def last_of_array(self) -> bool:
        """Whether no link of an array chain comes after this one."""
        return self.array is not None and self.array[1] >= self.array[2]

    @classmethod
    def here(cls, slurm: Slurm, environment: Mapping[str, str] = os.environ) -> Allocation:
        """The allocation that this process runs in. Asks the scheduler once.

        Raises `UserError` outside a job.
        """
        job_id = environment.get("SLURM_JOB_ID")
        if not job_id:
            raise UserError(
                "this command", "runs inside a job and was started outside one (SLURM_JOB_ID is not set)",
                "use `rumpun submit RECIPE`, or `sbatch slurm/finetune.sbatch RECIPE` by hand",
            )  # fmt: skip
        told = slurm.show(job_id)
        nodes = slurm.hosts(environment.get("SLURM_JOB_NODELIST") or told.get("NodeList", ""))
        array = None
        if environment.get("SLURM_ARRAY_JOB_ID"):
            last = environment.get("SLURM_ARRAY_TASK_MAX", environment["SLURM_ARRAY_TASK_ID"])
            array = (environment["SLURM_ARRAY_JOB_ID"], int(environment["SLURM_ARRAY_TASK_ID"]), int(last))
        return cls(
            job_id=job_id,
            restart=int(environment.get("SLURM_RESTART_COUNT") or told.get("Restarts") or 0),
            nodes=tuple(nodes),
            tasks_per_node=tasks_per_node(environment),
            ends_at=moment(told.get("EndTime")),
            array=array,
            submitted=moment(told.get("SubmitTime")),
            eligible=moment(told.get("EligibleTime")),
            started=moment(told.get("StartTime")),
        )


def tasks_per_node(environment: Mapping[str, str]) -> int:
    """Tasks on each node. Raises `UserError` where nodes have different numbers: ranks are dealt evenly."""
    if told := environment.get("SLURM_NTASKS_PER_NODE"):
        return int(told)
    uneven = environment.get("SLURM_TASKS_PER_NODE", "1")  # e.g. 2(x3), or 2(x3),1
    found = re.fullmatch(r"(\d+)(\(x\d+\))?", uneven)
    if found is None:
        raise UserError(
            f"SLURM_TASKS_PER_NODE = {uneven}", "every node must have the same number of tasks",
            "submit with --nodes and --ntasks-per-node instead of --ntasks",
        )  # fmt: skip
    return int(found[1])


def moment(text: str | None) -> float | None:
    """Seconds since the epoch of a time as SLURM prints it in local time; None for `Unknown`, `N/A` and the like."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return None
