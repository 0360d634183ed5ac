"""Ranks of one machine meet through a file: no port that could be taken, no server that must come first.

Invariant: they either all meet, or every rank that came ends within a bounded time and says whom it waited for.
"""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep.errors import UserError

if TYPE_CHECKING:
    import torch

_POLL_S = 0.02


def meet(path: Path, *, rank: int, ranks: int, backend: str, device: torch.device | None, within_s: float) -> None:
    """Initialise torch.distributed with the ranks that name the same file, which must be new to this start.

    Args:
        device: this rank's GPU, None on CPUs; naming it lets NCCL start at once.
        within_s: for the last rank to come after this one, and afterwards for every collective.

    Raises:
        TimeoutError: names who did not come. UserError: two processes disagree about the number of ranks.
    """
    import torch.distributed as dist

    store = dist.FileStore(str(path), ranks)  # type: ignore[attr-defined]
    store.set_timeout(timedelta(seconds=within_s))
    store.set(f"here/{rank}", json.dumps({"ranks": ranks, "who": f"{socket.gethostname()}:{os.getpid()}"}))
    deadline = time.monotonic() + within_s
    for other in range(ranks):
        while not store.check([f"here/{other}"]):
            if time.monotonic() > deadline:
                missing = [r for r in range(ranks) if not store.check([f"here/{r}"])]
                raise TimeoutError(
                    f"rank {rank} waited {within_s:.0f} s for ranks {missing} of 0-{ranks - 1}, which did not come"
                )
            time.sleep(_POLL_S)
        told = json.loads(store.get(f"here/{other}"))
        if told["ranks"] != ranks:
            raise UserError(
                f"rank {other} ({told['who']})",
                f"was started as one of {told['ranks']} ranks, rank {rank} as one of {ranks}",
                "start all ranks with the same WORLD_SIZE",
            )
    prefixed = dist.PrefixStore("ranks", store)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, store=prefixed, rank=rank, world_size=ranks,
        timeout=timedelta(seconds=within_s), device_id=device if ranks > 1 else None,
    )  # fmt: skip
