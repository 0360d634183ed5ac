"""A server for each test, and an endpoint config that retries within milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from data_prep.endpoint.config import EndpointConfig
from tests.data_prep.endpoint_server import EndpointServer


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as running:
        yield running


@pytest.fixture
def config(server: EndpointServer) -> Callable[..., EndpointConfig]:
    """Make a config for the server; keywords change fields."""

    def make(**fields: Any) -> EndpointConfig:
        usual: dict[str, Any] = {"base_url": server.url, "model": server.model, "backoff_s": 0.01, "timeout_s": 5.0}
        return EndpointConfig(**{**usual, **fields})

    return make
