"""One zygote, one small world, and the runs that nobody disturbed, for all tests of this folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Any]:
    from survival.ranks import Zygote

    with Zygote() as started:
        yield started


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from survival.runs import make_data

    return make_data(tmp_path_factory.mktemp("survival") / "data")


@pytest.fixture(scope="session")
def undisturbed(zygote: Any, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(phase, ranks, settings) → the run from its beginning to its end in one go; each is made once."""
    from survival.runs import Run

    made: dict[str, Run] = {}

    def get(phase: str = "finetune", ranks: int = 2, **settings: Any) -> Run:
        key = f"{phase}-{ranks}-{sorted(settings.items())}"
        if key not in made:
            home = tmp_path_factory.mktemp("undisturbed") / "run"
            made[key] = Run(zygote, data, home, phase, settings)
            made[key].start(ranks, expect=0)
        return made[key]

    return get


@pytest.fixture
def run(zygote: Any, data: Path, tmp_path: Path) -> Any:
    """A finetuning that has not begun."""
    from survival.runs import Run

    return Run(zygote, data, tmp_path / "run")
