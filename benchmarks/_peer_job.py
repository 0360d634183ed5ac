"""What every side does with its job alike."""

from __future__ import annotations

import resource

from _turns import Job


def memory(device: str) -> dict[str, float]:
    """Peak memory in GB: of the device on CUDA, else of the process."""
    if device == "cuda":
        import torch

        return {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9}
    return {"peak_memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9}


def ahead(job: Job) -> int:
    """Batches made in the background. None where sides take turns: they would be made while another is timed."""
    return 2 if job["device"] == "cuda" else 0
