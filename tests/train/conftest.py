"""The tiny world, and the process that forks ranks: each made once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def world_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import make_world

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="session")
def forks() -> Iterator[Any]:
    """Starts ranks of test scripts; see forks.py."""
    from forks import Forks

    with Forks() as started:
        yield started
