"""One event loop's worth of requests: how a request is tried, retried, paced, paid for, and given up.

Invariant: never more than `concurrency` requests are at the server; the same request is on its way once at a time; an
answer is in the log before `ask` returns it.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from data_prep.endpoint import trouble
from data_prep.endpoint.account import Account, OverBudget
from data_prep.endpoint.config import EndpointConfig, is_loopback
from data_prep.endpoint.protocol import Malformed, read_reply
from data_prep.endpoint.request import Reply, Request
from data_prep.endpoint.trouble import MAYBE_PAID, RETRIED, Trouble
from data_prep.errors import UserError

if TYPE_CHECKING:
    from data_prep.endpoint.log import RequestLog

_CONNECT_S = 10.0
_FIRST_RETRIES = 2
_GIVE_UP_AFTER = 8  # requests in a row that failed after all their retries
GOES_ON = "the same command goes on from there"


class Failed(Exception):
    """A request that was given up; the run goes on without it.

    Attributes:
        trouble: what was wrong at its last try.
    """

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(f"{trouble.kind}: {trouble.why}")
        self.trouble = trouble


class Stopped(Exception):
    """No further request may be sent; those on their way may end. The reason is `Session.stopped`."""


class Session:
    """Asks one endpoint inside one event loop; an async context manager.

    Attributes:
        stopped: why no further request is sent, None while they are.
        final: whether the requests on their way are hopeless too (the key is wrong, say).
    """

    def __init__(self, config: EndpointConfig, account: Account, log: RequestLog | None) -> None:
        self._config, self._account, self._log = config, account, log
        self._key = config.key()
        self._client = _client(config, self._key)
        self._slots = asyncio.Semaphore(config.concurrency)
        self._pending: dict[str, asyncio.Future[Reply]] = {}
        self._clock = asyncio.get_running_loop().time
        self._resume_s = self._next_s = 0.0
        self._last_answer_s = float("-inf")
        self._answered, self._given_up = False, 0
        self.stopped: UserError | None = None
        self.final = False
        self._stopping, self._checking = asyncio.Event(), asyncio.Lock()
        account.begin()

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def ask(self, request: Request, *, may_be_refused: bool = False) -> Reply:
        """The reply to the request, from the log where it is there.

        Args:
            may_be_refused: the caller has another way then: a refusal is no failed item.

        Raises:
            Failed: it was refused, or failed at every try. Stopped: no request may be sent any more.
        """
        if self._log is not None and (reply := self._log.find(request)):
            self._account.add("cache_hits")
            return reply
        if (twin := self._pending.get(request.key)) is not None:
            reply = await asyncio.shield(twin)
            self._account.add("cache_hits")
            return replace(reply, cached=True)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._pending[request.key] = future
        try:
            reply = await self._try_often(request, may_be_refused)
            future.set_result(reply)
            return reply
        except BaseException as error:
            future.set_exception(error if isinstance(error, Failed | Stopped) else Stopped())
            future.exception()  # nobody may be waiting for it
            raise
        finally:
            del self._pending[request.key]

    async def _try_often(self, request: Request, may_be_refused: bool) -> Reply:
        tries, waits, first_limit_s = 0, 0, None
        while True:
            outcome = await self._try(request)
            if isinstance(outcome, Reply):
                self._answered, self._given_up, self._last_answer_s = True, 0, self._clock()
                return outcome
            self._account.add(f"trouble_{outcome.kind}")
            if outcome.kind == "fatal":
                self._stop_at(outcome, await self._models() if outcome.status == 404 else [])
            if outcome.kind == "refused" and may_be_refused:
                raise Failed(outcome)
            if outcome.kind == "rate_limited":
                first_limit_s = first_limit_s or self._clock()
                pause_s = self._limited(outcome, waits, first_limit_s)
                if pause_s is None:
                    await self._give_up(request, outcome)
                waits += 1
            else:
                allowed = self._config.retries if self._answered else min(self._config.retries, _FIRST_RETRIES)
                if outcome.kind not in RETRIED or tries >= allowed:
                    await self._give_up(request, outcome)
                pause_s = max(outcome.wait_s or 0.0, self._backoff(tries))
                if pause_s > self._config.patience_s:
                    await self._give_up(request, outcome)
                tries += 1
            self._account.add("retries")
            await self._pause(pause_s)

    async def _try(self, request: Request) -> Reply | Trouble:
        """One try: the reply, logged and paid, or what went wrong."""
        try:
            async with self._slots:
                await self._turn()
                async with self._account.reserved(request):
                    if self.stopped:
                        raise Stopped
                    return await self._send(request)
        except OverBudget as error:
            limit = self._config.spending_limit
            self._stop(
                f"spending_limit = {limit}", f"{error}{self._saved()}", f"raise spending_limit; {GOES_ON}", final=False
            )

    async def _send(self, request: Request) -> Reply | Trouble:
        self._account.add("requests")
        found: Trouble | None = None
        try:
            async with asyncio.timeout(self._config.timeout_s):  # the client's own ends only a silence
                content = await self._post(request)
            reply = read_reply(request, content)
        except TimeoutError:
            found = Trouble("timeout", "no answer in time")
        except Malformed as error:
            found = Trouble("malformed", str(error))
        except Exception as error:
            found = trouble.of_exception(error, key=self._key)
            if found is None:
                raise
        except asyncio.CancelledError:
            self._lost(request, "cancelled")
            raise
        if found is not None:
            if found.kind in MAYBE_PAID:
                self._lost(request, found.kind)
            return found
        reply = replace(reply, cost=self._config.cost(reply.prompt_tokens, reply.completion_tokens))
        self._account.answered(reply)
        if self._log is not None:
            self._log.answered(request, reply)
        return reply

    async def _post(self, request: Request) -> bytes:
        route = self._client.chat.completions if request.route == "chat" else self._client.embeddings
        body = dict(request.body)
        # the client knows the protocol's parameters by name; a server's own (vLLM's top_k …) pass only this way
        named = {key: body.pop(key) for key in ("model", "messages", "input", "encoding_format") if key in body}
        response = await route.with_raw_response.create(**named, extra_body=body)
        content: bytes = response.content
        return content

    def _lost(self, request: Request, why: str) -> None:
        if cost := self._account.most(request):
            self._account.lost(cost)
            if self._log is not None:
                self._log.lost(request, cost, why)

    async def _turn(self) -> None:
        """Wait until the server wants requests again and the pace allows one."""
        while (wait_s := max(self._resume_s, self._next_s) - self._clock()) > 0:
            await self._pause(wait_s)
        if self._config.requests_per_minute:
            self._next_s = self._clock() + 60 / self._config.requests_per_minute

    async def _pause(self, seconds: float) -> None:
        """Sleep. Raises `Stopped` as soon as that is called for."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)
        if self.stopped:
            raise Stopped

    def _backoff(self, tries: int) -> float:
        longest_s = min(self._config.backoff_max_s, self._config.backoff_s * 2.0 ** min(tries, 60))
        return longest_s * random.uniform(0.5, 1.0)

    def _limited(self, found: Trouble, waits: int, first_s: float) -> float | None:
        """Seconds to wait for the rate limit; None: this request has waited long enough while others were answered."""
        now_s, patience_s = self._clock(), self._config.patience_s
        pause_s = found.wait_s if found.wait_s is not None else self._backoff(waits)
        rule = ""
        if pause_s > patience_s:
            rule = f"the server asks for a pause of {pause_s:.0f} s"
        elif now_s + pause_s - first_s > patience_s:
            if self._last_answer_s > first_s:
                return None
            rule = f"nothing but rate limits for {now_s - first_s:.0f} s"
        if rule:
            self._stop(
                f"{self._config.base_url} ({found.why})",
                f"{rule}, patience_s is {patience_s:g}{self._saved()}",
                f"wait, lower concurrency, set requests_per_minute, or raise patience_s; {GOES_ON}",
            )
        if found.wait_s is not None:  # it holds for every request, not for this one alone
            self._resume_s = max(self._resume_s, now_s + pause_s)
        return pause_s

    async def _give_up(self, request: Request, found: Trouble) -> NoReturn:
        """Count and list the request as failed, and stop where the endpoint answers nobody."""
        self._account.add("failed")
        self._account.add(f"failed_{found.kind}")
        self._given_up += 1
        if self._log is not None:
            self._log.failed(request, found.kind, found.why)
        async with self._checking:
            if self._in_doubt(found):
                await self._check(request, found)
        raise Failed(found)

    def _in_doubt(self, found: Trouble) -> bool:
        """Whether it may be the endpoint that is at fault and not the requests."""
        # refusals are told at once and cost nothing, and a server that refuses one request answers another
        return not self._answered or (found.kind != "refused" and self._given_up >= _GIVE_UP_AFTER)

    async def _check(self, request: Request, found: Trouble) -> None:
        """Ask the same with one word in place of the texts; stops where that is not answered either.

        A run whose last few requests are hopeless each for itself ends by this, and one at a dead server stops.
        """
        word: dict[str, Any] = {"input": ["rumpun"]}
        if request.route == "chat":
            word = {"messages": [{"role": "user", "content": "rumpun"}]}
        outcome = await self._try(Request(request.route, {**request.body, **word}, label="check"))
        if isinstance(outcome, Trouble) and outcome.kind != "rate_limited":
            self._account.add(f"trouble_{outcome.kind}")
            self._stop_down(found)
        self._answered, self._given_up = True, 0

    def _stop_down(self, found: Trouble) -> NoReturn:
        config = self._config
        if found.kind == "refused":
            self._stop(
                f"{config.base_url}, model {config.model!r}",
                f"refuses every request ({found.why}){self._saved()}",
                f"change the parameters or shorten the texts; {GOES_ON}",
            )
        rule = "cannot be reached" if found.kind == "unreachable" else "answers no request"
        self._stop(
            f"base_url = {config.base_url!r}",
            f"{rule} ({found.kind}: {found.why}){self._saved()}",
            f"see whether the server runs (curl {config.base_url}/models); {GOES_ON}",
        )

    def _stop_at(self, found: Trouble, models: list[str]) -> NoReturn:
        config, fix = self._config, f"see what the vendor says about the account; {GOES_ON}"
        value = f"base_url = {config.base_url!r}"
        if found.status in (401, 403):
            value = f'api_key_env = "{config.api_key_env}"' if config.api_key_env else "api_key_env is not set"
            fix = (
                f"export {config.api_key_env} with a key of this endpoint"
                if config.api_key_env
                else "name the environment variable that holds the key in api_key_env"
            )
        elif found.status == 404:
            value = f"{value}, model = {config.model!r}"
            fix = "see whether base_url is right (it usually ends in /v1), and what its /models lists"
            if models and config.model not in models:
                near = difflib.get_close_matches(config.model, models, 1)
                fix = f"did you mean {near[0]!r}?" if near else f"name one of its models: {', '.join(models[:8])}"
        elif 300 <= found.status < 400:
            fix = "set base_url to the address that it redirects to, if that is the server you mean"
        self._stop(value, f"the endpoint refuses ({found.why}){self._saved()}", fix)

    async def _models(self) -> list[str]:
        """The names that the server lists, none where it lists none."""
        try:
            return [str(model.id) async for model in self._client.models.list()]
        except Exception:  # this is only for a better message
            return []

    def _stop(self, value: str, rule: str, fix: str, *, final: bool = True) -> NoReturn:
        if self.stopped is None:
            self.stopped, self.final = UserError(value, rule, fix), final
            self._stopping.set()
        raise Stopped

    def _saved(self) -> str:
        if self._log is None:
            return ""
        return f"; {len(self._log):,} answers are saved in {self._log.folder}"


def _client(config: EndpointConfig, key: str) -> Any:
    try:
        import openai
    except ImportError as error:
        raise UserError(
            f"base_url = {config.base_url!r}", "endpoints need the package openai", "pip install 'rumpun[synth]'"
        ) from error
    # no redirects: one could lead the key and the texts to another machine; no proxy for this machine itself
    transport = openai.DefaultAsyncHttpxClient(
        follow_redirects=False,
        trust_env=not is_loopback(config.base_url),
        timeout=openai.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s)),
    )
    client: Any = openai.AsyncOpenAI(
        base_url=config.base_url,
        api_key=key,
        max_retries=0,
        timeout=openai.Timeout(config.timeout_s, connect=min(_CONNECT_S, config.timeout_s)),
        http_client=transport,
    )
    # the client takes these from the environment; they belong to another account than the one the recipe names
    client.organization = client.project = client.admin_api_key = None
    return client
