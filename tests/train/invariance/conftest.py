"""The suite of this session: each world size is started once, when the first test asks for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(scope="session")
def suite(forks: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from invariance.suite import Suite

    return Suite(tmp_path_factory.mktemp("invariance"), forks)
