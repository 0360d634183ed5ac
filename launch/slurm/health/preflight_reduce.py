"""The all-reduce of a pair of nodes, by torch.distributed: does the library that training uses work between the two?

A process of its own does it, because a collective that hangs cannot be ended from within: it is killed when its time is
over, and the node goes on to its next pair. One process a node takes part, with its first GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

MEGABYTES = 64
REPEATS = 10


def own_reduce(me: str, ask: Mapping[str, Any]) -> dict[str, Any] | None:
    """What this node does in a round of pairs: its part of one all-reduce, or nothing (None).

    Args:
        me: this node.
        ask: {"pairs": [[first, second, address, port]], "backend": "nccl" or "gloo", "within_s": s, "interface": name}.

    Returns:
        {"pair": [first, second], "rate": bytes/s of the vector reduced}, or with "error".
    """
    for first, second, address, port in ask["pairs"]:
        if me not in (first, second):
            continue
        environment = dict(os.environ)
        if ask.get("interface"):
            environment |= {"NCCL_SOCKET_IFNAME": ask["interface"], "GLOO_SOCKET_IFNAME": ask["interface"]}
        rank = 0 if me == first else 1
        what = json.dumps([ask["backend"], address, port, rank, ask["within_s"]])
        command = [sys.executable, "-m", "launch.slurm.health.preflight_reduce", what]
        try:
            answer = subprocess.run(
                command,
                env=environment,
                capture_output=True,
                text=True,
                timeout=ask["within_s"],
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            return {"pair": [first, second], "error": f"the all-reduce did not end in {ask['within_s']:.0f} s"}
        if answer.returncode != 0:
            said = [line for line in answer.stderr.splitlines() if line.strip()] or [f"exit code {answer.returncode}"]
            return {"pair": [first, second], "error": said[-1][:300]}
        return {"pair": [first, second], "rate": float(answer.stdout.split()[-1])}
    return None


def reduce_pair(backend: str, address: str, port: int, rank: int, within_s: float) -> float:
    """Bytes/s of an all-reduce between two processes; rank 0 listens at the address.

    Raises:
        ArithmeticError: the sum is wrong.
    """
    import torch
    import torch.distributed as dist

    device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
    if backend == "nccl":
        torch.cuda.set_device(device)
    meet = f"tcp://{address}:{port}"
    dist.init_process_group(
        backend, init_method=meet, rank=rank, world_size=2, timeout=timedelta(seconds=max(1.0, within_s))
    )
    size = MEGABYTES << 18
    vector = torch.full((size,), float(rank + 1), device=device)
    dist.all_reduce(vector)  # connections are made here
    if not bool((vector == 3.0).all()):
        raise ArithmeticError("the sum of an all-reduce came out wrong")
    vector.fill_(0.0)
    if backend == "nccl":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        dist.all_reduce(vector)
    if backend == "nccl":
        torch.cuda.synchronize()
    rate = REPEATS * 4 * size / (time.perf_counter() - began)
    dist.barrier()
    dist.destroy_process_group()
    return rate


if __name__ == "__main__":
    print(round(reduce_pair(*json.loads(sys.argv[1]))))
