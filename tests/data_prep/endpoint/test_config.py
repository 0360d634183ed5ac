"""The recipe's fields, and that the key is written nowhere."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.endpoint import Endpoint
from data_prep.endpoint.request import chat
from data_prep.errors import UserError
from tests.data_prep import endpoint_server as faults
from tests.data_prep.endpoint_server import EndpointServer

KEY = "sk-rahsia-0123456789abcdef"


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"base_url": "localhost:8000/v1"}, "no http or https address"),
        ({"base_url": "ftp://host/v1"}, "no http or https address"),
        ({"base_url": "http://"}, "no http or https address"),
        ({"base_url": "http://host:99999/v1"}, "no http or https address"),
        ({"base_url": "http://ho st/v1"}, "no http or https address"),
        ({"base_url": "http://[::1/v1"}, "no http or https address"),
        ({"base_url": "https://host/v1?key=1"}, "after '?'"),
        ({"model": " "}, "must name a model"),
        ({"spending_limit": 5.0}, "cannot be kept without prices"),
        ({"base_url": "http://gpu7:8000/v1", "api_key_env": "VENDOR_KEY"}, "unencrypted"),
        ({"concurrency": 0}, "greater than or equal to 1"),
        ({"timeout_s": 0.0}, "greater than 0"),
    ],
)
def test_a_wrong_field_is_told(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        EndpointConfig(**{"base_url": "http://127.0.0.1:8000/v1", "model": "m", **fields})
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:8000/v1", "https://x.example/v1/"]
)
def test_a_key_may_go_to_this_machine_and_over_tls(url: str) -> None:
    assert EndpointConfig(base_url=url, model="m", api_key_env="VENDOR_KEY").base_url == url.rstrip("/")
    assert EndpointConfig(base_url="http://gpu7/v1", model="m", api_key_env="VENDOR_KEY", plain_http=True)


@pytest.mark.parametrize(
    "fields", [{"api_key_env": KEY}, {"api_key_env": "abcdef0123456789"}, {"base_url": f"https://me:{KEY}@host/v1"}]
)
def test_a_key_in_the_wrong_field_is_not_repeated(fields: dict[str, str]) -> None:
    with pytest.raises(ValidationError) as caught:
        EndpointConfig(**{"base_url": "http://127.0.0.1:8000/v1", "model": "m", **fields})  # type: ignore[arg-type]
    secret = KEY if KEY in str(fields) else "abcdef0123456789"
    assert secret not in str(caught.value) and secret not in str(caught.value.errors()[0]["msg"])
    assert caught.value.errors()[0]["type"] == "value_error"  # the kind that recipes show without the value


def test_an_unset_variable_is_told_before_anything_is_sent(
    server: EndpointServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EndpointConfig(base_url=server.url, model="test-model", api_key_env="RUMPUN_NO_SUCH_KEY")
    with pytest.raises(UserError, match="RUMPUN_NO_SUCH_KEY"):
        Endpoint(config)
    monkeypatch.setenv("RUMPUN_NO_SUCH_KEY", "two words")
    with pytest.raises(UserError) as caught:
        Endpoint(config)
    assert "two words" not in str(caught.value)


def test_the_key_reaches_the_server_and_nothing_else(
    server: EndpointServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("VENDOR_KEY", f"{KEY}\n")
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, f"another-{name}")
    caplog.set_level(logging.DEBUG)
    config = EndpointConfig(base_url=server.url, model="test-model", api_key_env="VENDOR_KEY", backoff_s=0.01)
    said = [str(config), repr(config), config.model_dump_json()]
    echoing = [faults.refused(f"bad key {KEY} in request"), faults.server_error(), faults.unauthorised(f"key {KEY}")]
    for fault in (None, *echoing):
        server.faults.extend([None, fault] if fault else [])
        try:
            with Endpoint(config, log=tmp_path) as endpoint:
                for number in range(4):
                    for _, reply in endpoint.run(
                        [chat("test-model", [("user", f"soalan {len(said)} {number}")], max_tokens=4)]
                    ):
                        said.append(str(reply))
                said.append(str(endpoint.counts))
        except UserError as error:
            said += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
    assert any("[key]" in line for line in said)  # the server's own words were shown without it
    files = [path.read_text() for path in tmp_path.iterdir()]
    written = capfd.readouterr()
    assert not [text for text in (*said, *files, caplog.text, written.out, written.err) if KEY in text]
    first = server.asked[0].headers
    assert first["authorization"] == f"Bearer {KEY}"
    assert not [value for value in first.values() if "another-" in value]


def test_a_redirect_is_not_followed(server: EndpointServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENDOR_KEY", KEY)
    with EndpointServer() as other:
        server.faults.append(faults.Fault(307, headers={"Location": f"{other.url}/chat/completions"}))
        config = EndpointConfig(base_url=server.url, model="test-model", api_key_env="VENDOR_KEY")
        with pytest.raises(UserError, match="redirects"), Endpoint(config) as endpoint:
            list(endpoint.run([chat("test-model", [("user", "apa")], max_tokens=4)]))
        assert other.asked == []


def test_certificates_are_verified() -> None:
    import ssl

    import openai

    from data_prep.endpoint.session import _client

    client = _client(EndpointConfig(base_url="https://vendor.example/v1", model="m"), "k")
    assert isinstance(client, openai.AsyncOpenAI)
    context = client._client._transport._pool._ssl_context
    assert context.verify_mode == ssl.CERT_REQUIRED and context.check_hostname
