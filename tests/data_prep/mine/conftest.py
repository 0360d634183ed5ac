"""Mining a side as a fixture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.files import content_id
from data_prep.mine.policy import Policy
from data_prep.mine.select import Known, Mined, Task, mine_queries
from data_prep.mine.sides import Side
from data_prep.progress import Progress


@pytest.fixture
def mine_side(tmp_path: Path) -> Callable[..., Mined]:
    """Mine a side against itself (or with known positives) and return what came out."""
    number = iter(range(1000))

    def mine(
        side: Side, texts: list[str], policy: Policy, *, rows: np.ndarray | None = None, known: Known | None = None,
        neighbors: int = 30, seed: int = 3, fanout: Any = None, scratch: Path | None = None, **more: Any,
    ) -> Mined:  # fmt: skip
        asked = np.arange(len(side)) if rows is None else rows
        task = Task(
            policy=policy, queries=side.rows(asked) if rows is not None else side, corpus=side, own=asked,
            own_keys=side.keys[asked], ids=[content_id(texts[row]) for row in asked.tolist()], neighbors=neighbors,
            depth=max(neighbors, policy.last_rank), backend="exact", seed=seed, known=known, **more,
        )  # fmt: skip
        return mine_queries(task, fanout=fanout, scratch=scratch or tmp_path / f"s{next(number)}", progress=Progress())

    return mine
