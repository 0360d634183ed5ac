"""What can go wrong with one try of a request, told apart by what to do about it.

| kind | what happened | what follows |
|---|---|---|
| unreachable | no connection | retried |
| cut | the connection ended within the answer | retried, may have been paid |
| timeout | no answer in time | retried, may have been paid |
| server_error | status 5xx, 408 or 409 | retried |
| malformed | status 200 and no answer of the protocol | retried, may have been paid |
| rate_limited | status 429 | waits; never uses up a retry |
| refused | status 400, 413, 422 …: the request's own fault | given up |
| fatal | status 401, 402, 403, 404, a redirect, no quota left | everything stops |
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["unreachable", "cut", "timeout", "server_error", "malformed", "rate_limited", "refused", "fatal"]
RETRIED: tuple[Kind, ...] = ("unreachable", "cut", "timeout", "server_error", "malformed")
MAYBE_PAID: tuple[Kind, ...] = ("cut", "timeout", "malformed")
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True)
class Trouble:
    """One try that went wrong.

    Attributes:
        kind: see the table above.
        why: one line for people; never holds the key.
        status: of the response, 0 where there was none.
        wait_s: the pause that the server asks for, None where it asks for none.
    """

    kind: Kind
    why: str
    status: int = 0
    wait_s: float | None = None


def of_status(status: int, body: Any, headers: Mapping[str, str], *, key: str) -> Trouble:
    """The trouble of a response whose status is not 200."""
    message, code = _message(body)
    why = f"HTTP {status}" + (f": {_one_line(message, key)}" if message and status not in (401, 403) else "")
    wait_s = retry_after(headers)
    if status == 429 and code in ("insufficient_quota", "billing_hard_limit_reached"):
        return Trouble("fatal", why, status)
    if status == 429:
        return Trouble("rate_limited", why, status, wait_s)
    if status >= 500 or status in (408, 409):
        return Trouble("server_error", why, status, wait_s)
    if 300 <= status < 400:
        where = _one_line(headers.get("location", ""), key)
        return Trouble("fatal", f"{why}: it redirects to {where or 'nowhere'}", status)
    return Trouble("fatal" if status in (401, 402, 403, 404) else "refused", why, status)


def of_exception(error: Exception, *, key: str) -> Trouble | None:
    """The trouble behind an exception of the client; None where it is a defect of ours."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return of_status(error.status_code, error.body, error.response.headers, key=key)
    # the HTTP library below the client has changed its name between versions; its classes have not
    names = {kind.__name__ for cause in _causes(error) for kind in type(cause).__mro__}
    if "ConnectTimeout" in names or "ConnectError" in names or "PoolTimeout" in names:
        return Trouble("unreachable", _one_line(str(list(_causes(error))[-1]) or "no connection", key))
    if isinstance(error, openai.APITimeoutError) or "TimeoutException" in names:
        return Trouble("timeout", "no answer in time")
    if isinstance(error, openai.APIConnectionError) or names & {"TransportError", "StreamError", "DecodingError"}:
        return Trouble("cut", _one_line(str(list(_causes(error))[-1]) or "the connection was cut", key))
    return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After` (seconds or a date), None where there is neither."""
    try:
        if (milliseconds := headers.get("retry-after-ms")) is not None:
            return max(0.0, float(milliseconds) / 1e3)
        if (value := headers.get("retry-after")) is None:
            return None
        if re.fullmatch(r"\s*\d+(\.\d+)?\s*", value):
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and what it was raised from, outermost first."""
    chain = [error]
    while (inner := chain[-1].__cause__) is not None and len(chain) < 10:
        chain.append(inner)
    return chain


def _message(body: Any) -> tuple[str, str]:
    """The server's own words and its code for them; vendors nest them differently."""
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict):
            text = inner.get("message") or inner.get("detail") or ""
            return str(text), str(inner.get("code") or inner.get("type") or "")
        return str(inner), ""
    return (body, "") if isinstance(body, str) else ("", "")


def _one_line(text: str, key: str) -> str:
    """The text on one line, not too long, and without the key, should a server echo it."""
    flat = " ".join(text.split())
    if len(key) > 7:
        flat = flat.replace(key, "[key]")
    return flat if len(flat) <= _SHOWN_CHARACTERS else flat[:_SHOWN_CHARACTERS] + " …"
