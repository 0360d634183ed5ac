"""A hub on this machine, the client library pointed at it, and a run to publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.train.hub.fake_hub import TOKEN, FakeHub, running
from tests.train.hub.model_lab import write_run
from train.hub.client import Hub, Patience


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub that knows TOKEN, which the environment holds; the library speaks plain LFS to it and is not offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running(FakeHub()) as started:
        monkeypatch.setenv("HF_ENDPOINT", started.url)
        yield started


@pytest.fixture
def said() -> list[str]:
    """Lines that the client said."""
    return []


@pytest.fixture
def client(hub: FakeHub, said: list[str]) -> Callable[..., Hub]:
    """Makes a client that waits hardly at all; keywords are those of Patience, and `token`."""

    def make(token: str | None = TOKEN, **patience: float) -> Hub:
        waits = {"attempts": 3, "first_wait_s": 0.01, "longest_wait_s": 2.0, "timeout_s": 5.0} | patience
        return Hub(token, patience=Patience(**waits), note=said.append)  # type: ignore[arg-type]

    return make


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with an exported model."""
    return write_run(tmp_path / "run")
