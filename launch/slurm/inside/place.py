"""A rank's place among the others, from the environment that SLURM gives the tasks of a step."""

from __future__ import annotations

import os
import socket

from launch.slurm.inside.roll_call import ADDRESS, report

_NAMES = {
    "RANK": "SLURM_PROCID",
    "WORLD_SIZE": "SLURM_NTASKS",
    "LOCAL_RANK": "SLURM_LOCALID",
}


def node_name() -> str:
    """The name of this node as SLURM knows it; its host name outside a job."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def take_place() -> bool:
    """Set RANK, WORLD_SIZE, LOCAL_RANK and the rendezvous of a task that the controller has started.

    Returns whether this process is one; others keep their environment. Waits for all other ranks.
    """
    if ADDRESS not in os.environ:
        return False
    for name, told in _NAMES.items():
        os.environ[name] = os.environ[told]
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks // int(os.environ.get("SLURM_STEP_NUM_NODES", "1")))
    os.environ.update(report(rank=rank, ranks=ranks, host=node_name(), step=os.environ["SLURM_STEP_ID"]))
    return True
