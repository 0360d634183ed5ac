"""The random generators of a process as tensors, so that a resumed rank draws what it would have drawn.

Training draws nothing unless dropout is above 0. A rank that did not exist when the state was saved is seeded from
(seed, rank, step): any start on that number of ranks draws the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def generator_states() -> dict[str, torch.Tensor]:
    """The states of torch (host and device), numpy and Python."""
    import numpy as np
    import torch

    _, numbers, cached = random.getstate()
    _, keys, place, *gauss = np.random.get_state()  # type: ignore[misc]
    found = {
        "rng/torch": torch.get_rng_state(),
        "rng/python": torch.tensor(numbers, dtype=torch.int64),
        "rng/python_rest": torch.tensor([math.nan if cached is None else cached], dtype=torch.float64),
        "rng/numpy": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "rng/numpy_rest": torch.tensor([float(place), *map(float, gauss)], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        found["rng/cuda"] = torch.cuda.get_rng_state()
    return found


def set_generators(states: Mapping[str, torch.Tensor], *, seed: int, rank: int, step: int) -> None:
    """Put the states back; without any (a new rank), seed from the arguments."""
    import numpy as np
    import torch

    if not states:
        own = (seed * 1_000_003 + rank * 10_007 + step) % (1 << 31)
        torch.manual_seed(own)
        random.seed(own)
        np.random.seed(own)
        return
    torch.set_rng_state(states["rng/torch"])
    waiting = float(states["rng/python_rest"])  # a second normal number that came with the last one
    random.setstate((3, tuple(states["rng/python"].tolist()), None if math.isnan(waiting) else waiting))
    place, has_gauss, cached = states["rng/numpy_rest"].tolist()
    keys: Any = states["rng/numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), cached))
    if "rng/cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["rng/cuda"])
