"""The Hub behind one door: every request passes here, and every failure leaves as one line that a user can act on.

The client library (huggingface_hub 1 and 2) speaks the protocol. What it leaves open is added at the one place that all
its requests pass, the `send` of its HTTP client: a time limit, answers above 399 as exceptions of ours, and the token
taken out of whatever a server says. Retries are then in one place, bounded, and ^C ends them at once.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from data_prep.errors import UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")
HUB = "https://huggingface.co"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{20,}")
_PASSING = (408, 425, 429, 500, 502, 503, 504)
_SHOWN = 300


@dataclass(frozen=True)
class Patience:
    """How long to bear with a hub: tries of each request, seconds before the second (doubled after each), the longest
    wait, and seconds without a byte before a request counts as lost."""

    attempts: int = 5
    first_wait_s: float = 1.0
    longest_wait_s: float = 60.0
    timeout_s: float = 60.0


class Answered(Exception):
    """The hub refused: its status, error code, cleaned message, and the seconds that it asks to wait, if any."""

    def __init__(self, status: int, code: str, message: str, wait_s: float | None) -> None:
        super().__init__(f"{status} {message}".strip())
        self.status, self.code, self.message, self.wait_s = status, code, message, wait_s

    @property
    def passing(self) -> bool:
        """Whether trying again may help."""
        return self.status in _PASSING or (self.status == 409 and "conflicting operation" in self.message)


class Silent(Exception):
    """No whole answer came: a time limit, a lost connection, no network, offline mode (`passing` is then False)."""

    def __init__(self, reason: str, *, passing: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.passing = reason, passing


def scrub(text: object, token: str | None = None) -> str:
    """A server's text on one printable line, without the token and anything that looks like one."""
    line = str(text)
    if token:
        line = line.replace(token, "<token>")
    line = _TOKEN.sub("<token>", " ".join(line.split()))
    line = "".join(c for c in line if c.isprintable())
    return line if len(line) <= _SHOWN else line[:_SHOWN] + "…"


def endpoint() -> str:
    """Where the hub is: HF_ENDPOINT, else huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def find_token() -> str | None:
    """The user's token, from HF_TOKEN or the hub's own store; None where there is none.

    Raises:
        UserError: it holds characters that no token has; the message does not show it.
    """
    from huggingface_hub import get_token

    token = get_token()
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise UserError("the hub's token", "holds characters that no token has", "set HF_TOKEN anew, or: hf auth login")
    return token


class Hub:
    """A hub and how to speak to it.

    Args:
        token: the user's token, or None to ask as anybody.
        note: where to say that something is tried again.
        where: address of the hub; HF_ENDPOINT by default.
    """

    def __init__(
        self, token: str | None, *, patience: Patience, note: Callable[[str], None], where: str | None = None
    ) -> None:
        self._token, self.patience, self.note = token, patience, note
        self.where = where or endpoint()
        if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@]*)?", self.where):
            raise UserError("HF_ENDPOINT", "is no http(s) address", "unset it, or write https://HOST")

    @property
    def known(self) -> bool:
        """Whether there is a token."""
        return self._token is not None

    def clean(self, text: object) -> str:
        """A text without the token, on one line."""
        return scrub(text, self._token)

    @contextmanager
    def open(self) -> Iterator[HfApi]:
        """The library's interface, with every request of the process going through this door until the block ends."""
        from huggingface_hub import HfApi, get_session, set_client_factory

        for name in ("httpcore", "httpcore2"):  # at DEBUG they log whole headers, a server's words among them
            logging.getLogger(name).setLevel(logging.INFO)
        first: Any = get_session()
        plain: Any = type(first)
        hooks = first.event_hooks
        watched = _watched(plain, self._token)
        set_client_factory(lambda: watched(event_hooks=hooks, follow_redirects=True, timeout=self.patience.timeout_s))
        try:
            yield HfApi(endpoint=self.where, token=self._token if self._token is not None else False)
        finally:
            set_client_factory(lambda: plain(event_hooks=hooks, follow_redirects=True, timeout=None))

    def ask(self, what: str, call: Callable[[], T], *, expected: Callable[[Answered], bool] | None = None) -> T:
        """The result of a call of the library, tried again where that may help.

        Args:
            what: what is being done, for messages: `reading the repository`.
            expected: answers that the caller deals with; they are raised as they are.

        Raises:
            Answered: one that `expected` says yes to.
            UserError: everything else that goes wrong.
        """
        patience = self.patience
        for attempt in range(1, patience.attempts + 1):
            try:
                return call()
            except UserError:
                raise
            except Exception as error:
                trouble = self._trouble(error)
            if isinstance(trouble, Answered) and expected is not None and expected(trouble):
                raise trouble from None
            if not trouble.passing or attempt == patience.attempts:
                break
            asked = trouble.wait_s if isinstance(trouble, Answered) else None
            wait = asked if asked is not None else patience.first_wait_s * 2 ** (attempt - 1)
            if asked is not None and asked > patience.longest_wait_s:
                raise UserError(
                    f"{self.where}: {what}",
                    f"the hub asks to wait {asked:,.0f} s ({trouble.status})",  # type: ignore[union-attr]
                    "run the same command then; what the hub has is not sent again",
                )
            self.note(f"{what}: {trouble}; trying again in {min(wait, patience.longest_wait_s):.3g} s")
            time.sleep(min(wait, patience.longest_wait_s))
        raise self.told(what, trouble, attempt) from None

    def _trouble(self, error: BaseException) -> Answered | Silent:
        """What lies behind an exception of the library."""
        seen: BaseException | None = error
        while seen is not None:
            if isinstance(seen, Answered | Silent):
                return seen
            seen = seen.__cause__ or seen.__context__
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            return Silent(f"a file cannot be read ({self.clean(error.strerror)})", passing=False)
        reason = self.clean(error) or "no reason given"
        if isinstance(error, ValueError | KeyError | TypeError | AttributeError):
            return Silent(f"the answer makes no sense ({type(error).__name__}: {reason})", passing=False)
        return Silent(f"{type(error).__name__}: {reason}")

    def told(self, what: str, trouble: Answered | Silent, attempts: int) -> UserError:
        """One line for a user."""
        value, again = f"{self.where}: {what}", "the same command goes on: what the hub has is not sent again"
        if isinstance(trouble, Silent):
            tried = f" after {attempts} tries" if attempts > 1 else ""
            check = f"check the network and that HF_ENDPOINT is a hub; {again}"
            if "offline mode" in trouble.reason:
                check = "unset HF_HUB_OFFLINE"
            return UserError(value, f"no answer that can be used{tried}: {trouble.reason}", check)
        said = f" ({trouble.status}: {trouble.message})" if trouble.message else f" ({trouble.status})"
        if trouble.status == 401 and not self.known:
            return UserError(value, f"the hub wants a token{said}", "hf auth login, or set HF_TOKEN")
        if trouble.status == 401:
            return UserError(
                value, f"the hub does not know the token{said}", "make a new one at hf.co/settings/tokens, with write"
            )
        if trouble.status in (402, 403):
            return UserError(
                value, f"the token lacks the right{said}", "use a token that may write there (hf.co/settings/tokens)"
            )
        if trouble.status == 404:
            return UserError(
                value, f"not there, or hidden from this token{said}", "check ORG/NAME and whose the token is"
            )
        if trouble.status == 429:
            return UserError(value, f"too many requests, also after {attempts} tries{said}", f"wait, then {again}")
        if trouble.status >= 500:
            return UserError(value, f"the hub fails, also after {attempts} tries{said}", f"later, {again}")
        return UserError(value, f"the hub refuses{said}", "mend what it names; nothing was changed by this request")


def _watched(plain: Any, token: str | None) -> Any:
    """A subclass of the library's HTTP client whose `send` raises `Answered` and `Silent`."""

    class Watched(plain):  # type: ignore[misc]
        def send(self, request: Any, **options: Any) -> Any:
            try:
                response = super().send(request, **options)
                if response.status_code >= 400:
                    response.read()
            except Exception as error:
                if "Offline" in type(error).__name__:
                    raise Silent("offline mode is on (HF_HUB_OFFLINE)", passing=False) from None
                if type(error).__module__.split(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2"):
                    reason = scrub(error, token)
                    raise Silent(f"{type(error).__name__}{f' ({reason})' if reason else ''}") from None
                raise
            if "x-hf-warning" in response.headers:  # the library prints it as it is
                response.headers["x-hf-warning"] = scrub(response.headers["x-hf-warning"], token)
            if response.status_code >= 400:
                raise _answered(response, token) from None
            return response

    return Watched


def _answered(response: Any, token: str | None) -> Answered:
    """What an error response says, cleaned."""
    message: Any = response.headers.get("x-error-message")
    if not message:
        try:
            body = response.json()
            message = body.get("error") or body.get("message") or body.get("errors") or ""
        except (ValueError, AttributeError):
            html = "html" in response.headers.get("content-type", "")
            message = "" if html else response.text
    wait: float | None = None
    told = response.headers.get("retry-after", "").strip()
    limit = re.search(r"\bt=(\d+)", response.headers.get("ratelimit", ""))
    if told.isdigit():
        wait = float(told)
    elif limit and response.status_code == 429:
        wait = float(limit[1])
    return Answered(response.status_code, response.headers.get("x-error-code", ""), scrub(message, token), wait)
