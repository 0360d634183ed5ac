"""The fields that every recipe table with an endpoint has; the key itself is never one of them."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator, model_validator

from data_prep.config import Section
from data_prep.errors import UserError

_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
_NO_KEY = "none"  # servers without keys ignore it, and the client insists on one


class EndpointConfig(Section):
    """An endpoint that speaks the OpenAI protocol: vLLM, llama.cpp, a vendor."""

    # a key that was typed into the wrong field must not come back in the error about it
    model_config = ConfigDict(hide_input_in_errors=True)

    base_url: str
    """Where the endpoint is, with its version, e.g. "http://node7:8000/v1". Not part of a request's hash: answers stay
    valid when the server moves."""
    model: str
    """The model's name as the server lists it under /models."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key, e.g. "VENDOR_API_KEY"; none for a server without keys. The
    key is read when the first request is sent and is written nowhere."""
    plain_http: bool = False
    """Allow the key to travel unencrypted to another machine; only for a network that you trust."""
    concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests at the server at one time, at most. More only where the server works on more at once."""
    retries: Annotated[int, Field(ge=0, le=20)] = 5
    """Further tries of a request after a cut connection, a timeout, a 5xx or an answer that is no JSON. Waiting for a
    rate limit does not count. Before the first answer of a run two retries are the most, so that an endpoint that is
    down is told within seconds."""
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds for one answer; a long answer of a busy server needs minutes. Connecting gets 10 s of them at most."""
    backoff_s: Annotated[float, Field(gt=0)] = 0.5
    """Seconds before the first retry; doubled for each further one, and drawn between half of that and all of it so
    that requests do not return at once."""
    backoff_max_s: Annotated[float, Field(gt=0)] = 30.0
    """The longest pause between two tries, unless the server asks for a longer one (Retry-After)."""
    patience_s: Annotated[float, Field(gt=0)] = 600.0
    """Stop where the server gave nothing but rate limits for so many seconds, or asks for a longer pause than this."""
    requests_per_minute: Annotated[float, Field(gt=0)] | None = None
    """Send at most so many requests a minute, retries included; none sends as fast as answers come."""
    price_in: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million prompt tokens, in your currency; 0 for your own server."""
    price_out: Annotated[float, Field(ge=0)] = 0.0
    """Price of a million completion tokens, in the same currency."""
    spending_limit: Annotated[float, Field(ge=0)] | None = None
    """Stop before a request that could take what was spent above this, earlier runs of the same request log included. A
    request is taken for the most that it can cost: a token for each byte of the prompt, and all of max_tokens."""

    @field_validator("base_url")
    @classmethod
    def _is_url(cls, base_url: str) -> str:
        # messages name no field: whoever reads the recipe puts its table and name before them
        fix = 'write for example base_url = "http://127.0.0.1:8000/v1"'
        try:
            parts = urlsplit(base_url)
            port_is_valid = parts.port is None or parts.port > 0
        except ValueError:
            parts, port_is_valid = urlsplit(""), False
        if parts.username or parts.password:
            # the value holds a secret, so it is not repeated
            raise ValueError("holds a user or password. Fix: put the key into api_key_env's variable")
        if (
            parts.scheme not in ("http", "https")
            or not parts.hostname
            or not port_is_valid
            or re.search(r"\s", base_url)
        ):
            raise ValueError(f"{base_url!r} is no http or https address. Fix: {fix}")
        if parts.query or parts.fragment:
            raise ValueError(f"has something after '?' or '#'. Fix: {fix}")
        return base_url.rstrip("/")

    @field_validator("model")
    @classmethod
    def _is_named(cls, model: str) -> str:
        if not model.strip():
            raise ValueError("must name a model. Fix: see what GET base_url/models lists")
        return model

    @field_validator("api_key_env")
    @classmethod
    def _is_environment_name(cls, name: str | None) -> str | None:
        if name is not None and not _ENVIRONMENT_NAME.fullmatch(name):
            raise ValueError(
                "must be the NAME of an environment variable (capitals, digits, _), not the key itself. "
                'Fix: export VENDOR_API_KEY=… in the shell and write api_key_env = "VENDOR_API_KEY"'
            )
        return name

    @model_validator(mode="after")
    def _fields_agree(self) -> EndpointConfig:
        if self.spending_limit is not None and not (self.price_in or self.price_out):
            raise ValueError(
                f"spending_limit = {self.spending_limit} cannot be kept without prices. "
                "Fix: set price_in and price_out (per million tokens), or remove it"
            )
        parts = urlsplit(self.base_url)
        if self.api_key_env and parts.scheme == "http" and not self.plain_http and not is_loopback(self.base_url):
            raise ValueError(
                f"base_url = {self.base_url!r} would send the key unencrypted to another machine. "
                "Fix: use https, or set plain_http = true on a network that you trust"
            )
        return self

    def key(self) -> str:
        """The key from the environment. Raises `UserError` where the variable is unset, empty or cannot be a key."""
        if self.api_key_env is None:
            return _NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise UserError(
                f'api_key_env = "{self.api_key_env}"',
                "this environment variable is not set",
                f"export {self.api_key_env}=… before the command (a batch job inherits it from the shell that submits)",
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            raise UserError(
                f'api_key_env = "{self.api_key_env}"',
                "this environment variable holds something that cannot be a key (spaces, line breaks, other scripts)",
                f"export {self.api_key_env}=… again, the key alone",
            )
        return key

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Price of so many tokens, in the currency of the prices."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6

    def identity(self) -> dict[str, Any]:
        """What decides the answers, for hashes: the model, not where it runs, how fast, or what it costs."""
        return {"model": self.model}


def is_loopback(url: str) -> bool:
    """Whether the address is this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
