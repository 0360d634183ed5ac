"""An endpoint as a system: it ranks by its own vectors, is paid once, and its key goes nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from data_prep.errors import UserError
from eval.systems.config import EndpointSystemConfig
from eval.systems.endpoint import endpoint_ranker
from tests.data_prep import endpoint_server as faults
from tests.data_prep.endpoint_server import EndpointServer, vector_of

pytest.importorskip("openai")
KEY = "sk-rahsia-sungguh-123"
DOCUMENTS = [f"dokumen {number}" for number in range(30)]
QUERIES = ["hujan", "padi", "dokumen 7"]


@pytest.fixture
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as server:
        yield server


def config(server: EndpointServer, **fields: Any) -> EndpointSystemConfig:
    known = {"base_url": server.url, "model": "test-model", "backoff_s": 0.01, "batch_size": 8}
    return EndpointSystemConfig(**{**known, **fields})


def texts_sent(server: EndpointServer) -> list[str]:
    return [text for asked in server.asked for text in asked.body["input"]]


def test_it_ranks_by_cosine_with_its_prefixes(server: EndpointServer) -> None:
    settings = config(server, query_prefix="query: ", passage_prefix="passage: ")
    indices, scores = endpoint_ranker(settings).rank(DOCUMENTS, QUERIES, 5)
    raw = [
        np.array([vector_of(p + t, 8) for t in texts]) for p, texts in (("query: ", QUERIES), ("passage: ", DOCUMENTS))
    ]
    asked, held = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in raw)
    expected = np.argsort(-(asked @ held.T), axis=1, kind="stable")[:, :5]
    assert indices.tolist() == expected.tolist()
    np.testing.assert_allclose(scores, np.take_along_axis(asked @ held.T, expected, 1), atol=1e-6)


def test_what_was_paid_for_is_not_asked_again(server: EndpointServer, tmp_path: Path) -> None:
    first = endpoint_ranker(config(server), cache=tmp_path).rank(DOCUMENTS, QUERIES, 5)
    sent = len(server.asked)
    again = endpoint_ranker(config(server), cache=tmp_path).rank(DOCUMENTS, QUERIES, 5)
    assert len(server.asked) == sent
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    # other documents, another prefix, another model: each asks for its own
    endpoint_ranker(config(server), cache=tmp_path).rank(["lain"], QUERIES, 1)
    assert texts_sent(server)[-1] == "lain"
    endpoint_ranker(config(server, query_prefix="q: "), cache=tmp_path).rank(DOCUMENTS, QUERIES, 5)
    assert "q: hujan" in texts_sent(server)
    with pytest.raises(UserError, match=r"eval\.endpoints, other-model: base_url"):  # which this server has not
        endpoint_ranker(config(server, model="v/other-model"), cache=tmp_path).rank(DOCUMENTS, QUERIES, 5)


def test_a_kill_between_two_sets_loses_nothing(server: EndpointServer, tmp_path: Path) -> None:
    server.rule = lambda asked: faults.unauthorised() if "lain" in asked.body["input"] else None
    ranker = endpoint_ranker(config(server), cache=tmp_path)
    ranker.rank(DOCUMENTS, QUERIES, 5)
    with pytest.raises(UserError):
        ranker.rank(["lain"], QUERIES, 1)
    server.rule, sent = None, len(server.asked)
    ranker = endpoint_ranker(config(server), cache=tmp_path)
    ranker.rank(DOCUMENTS, QUERIES, 5)
    assert len(server.asked) == sent
    ranker.rank(["lain"], QUERIES, 1)
    assert set(texts_sent(server)[sent - len(server.asked) :]) & {"lain"}


def test_a_file_that_is_not_whole_is_asked_for_again(server: EndpointServer, tmp_path: Path) -> None:
    first = endpoint_ranker(config(server), cache=tmp_path).rank(DOCUMENTS, QUERIES, 5)
    for kept in tmp_path.rglob("*.safetensors"):
        kept.write_bytes(kept.read_bytes()[:-5])
    sent = len(server.asked)
    again = endpoint_ranker(config(server), cache=tmp_path).rank(DOCUMENTS, QUERIES, 5)
    assert len(server.asked) > sent
    np.testing.assert_array_equal(first[0], again[0])


def test_the_key_goes_to_the_server_and_nowhere_else(
    server: EndpointServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VENDOR_API_KEY", KEY)
    settings = config(server, api_key_env="VENDOR_API_KEY")
    ranker = endpoint_ranker(settings, cache=tmp_path)
    ranker.rank(DOCUMENTS, QUERIES, 3)
    headers = {name.lower(): value for name, value in server.asked[0].headers.items()}
    assert headers["authorization"] == f"Bearer {KEY}"
    server.rule = lambda _: faults.unauthorised(f"Incorrect API key provided: {KEY}")
    with pytest.raises(UserError) as caught:
        ranker.rank(["lain"], QUERIES, 1)
    assert KEY not in str(caught.value) and "eval.endpoints" in str(caught.value)
    told = "".join(capfd.readouterr()) + repr(ranker) + settings.model_dump_json()
    told += "".join(path.read_bytes().decode("latin-1") + str(path) for path in tmp_path.rglob("*") if path.is_file())
    assert KEY not in told


def test_a_key_that_is_not_set_is_told_before_anything_is_sent(
    server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VENDOR_API_KEY", raising=False)
    with pytest.raises(UserError, match=r"eval\.endpoints.*api_key_env.*not set"):
        endpoint_ranker(config(server, api_key_env="VENDOR_API_KEY"))
    assert server.asked == []


@pytest.mark.parametrize(
    "fields", [{"name": ""}, {"name": "a/b"}, {"name": "x" * 65}, {"api_key_env": KEY}, {"key": KEY}]
)
def test_settings_that_cannot_be(server: EndpointServer, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        config(server, **fields)
    assert KEY not in str(caught.value)


def test_names() -> None:
    plain = EndpointSystemConfig(base_url="http://127.0.0.1:1/v1", model="BAAI/bge-m3")
    assert plain.title == "bge-m3"
    assert EndpointSystemConfig(base_url="http://127.0.0.1:1/v1", model="x", name="ada 002").title == "ada 002"
