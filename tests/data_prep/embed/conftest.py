"""A teacher that can be told to misbehave, and a place for its digests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.embed.embedder import Role, unit_rows
from data_prep.files import content_id
from data_prep.progress import Progress


class PlainTeacher:
    """Vectors that depend on the text and its prompt alone; counts what it was asked for.

    Attributes:
        asked: all texts so far. wrong: what it answers for single texts instead.
    """

    may_be_zero = False

    def __init__(self, *, dimension: int = 24, normalised: bool = True, name: str = "plain", query: str = "") -> None:
        self.name, self.dimension, self.normalised = name, dimension, normalised
        self.hash = content_id(f"{name} {dimension} {normalised}") * 2
        self.asked: list[str] = []
        self.wrong: dict[str, Any] = {}
        self._query = query

    def prompt(self, role: Role) -> str:
        return self._query if role == "query" else ""

    def embed(self, texts: Sequence[str], *, role: Role, progress: Progress | None = None) -> Any:
        self.asked += texts
        rows = np.empty((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            seed = int(content_id(self.prompt(role) + text), 16)
            row[:] = np.random.default_rng(seed).normal(size=self.dimension)
        rows = unit_rows(rows) if self.normalised else 3 * rows
        for number, text in enumerate(texts):
            if text in self.wrong:
                rows[number] = self.wrong[text]
        if progress:
            progress.advance(len(texts))
        return rows


@pytest.fixture
def plain_teacher() -> type[PlainTeacher]:
    """The class, for tests (test folders are no packages)."""
    return PlainTeacher


@pytest.fixture(autouse=True)
def _own_digest_notes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digests of models are noted in a folder of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder
