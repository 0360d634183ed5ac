"""What was asked, what it cost, and whether the next request can still be paid.

Invariant: with a spending limit, cost so far + the most that the requests on their way can cost never passes it. Costs
of requests whose answer never came count at their most, since nobody can know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.request import Reply, Request

COUNTS = (
    "requests", "answers", "cache_hits", "retries", "failed", "prompt_tokens", "completion_tokens",
    "answers_without_usage",
)  # fmt: skip


class OverBudget(Exception):
    """The next request could pass the spending limit; `str()` says what was spent and what it may cost."""


class Account:
    """Counts of one `Endpoint`.

    Args:
        before: what earlier runs of the same log spent.

    Attributes:
        counts: `requests` sent (retries among them), `answers`, `cache_hits`, `retries`, `failed` items, tokens of
            answers, `answers_without_usage` (their tokens are upper bounds), `cost` of this run, `cost_lost` (at most,
            for requests that were sent and not answered), `cost_before` of earlier runs of the log, `failed_KIND` and
            `trouble_KIND` (tries that went wrong).
        served: the names under which the server answered.
    """

    def __init__(self, config: EndpointConfig, *, before: float = 0.0) -> None:
        self._config = config
        self.counts: dict[str, int | float] = {
            **dict.fromkeys(COUNTS, 0),
            "cost": 0.0,
            "cost_lost": 0.0,
            "cost_before": before,
        }
        self.served: set[str] = set()
        self._held, self._on_their_way = 0.0, 0
        self._freed = asyncio.Event()

    @property
    def spent(self) -> float:
        """Cost of this run and of earlier ones of the same log, lost requests included."""
        return self.counts["cost_before"] + self.counts["cost"] + self.counts["cost_lost"]

    def add(self, name: str, n: int = 1) -> None:
        """Count."""
        self.counts[name] = self.counts.get(name, 0) + n

    def most(self, request: Request) -> float:
        """The most that one try of the request can cost."""
        return self._config.cost(request.most_prompt_tokens, request.most_completion_tokens)

    def begin(self) -> None:
        """Bind to the running event loop; nothing is on its way yet."""
        self._held, self._on_their_way, self._freed = 0.0, 0, asyncio.Event()

    @asynccontextmanager
    async def reserved(self, request: Request) -> AsyncIterator[None]:
        """Hold the most that a try can cost while it runs. Waits for others where only their end tells.

        Raises:
            OverBudget: it could pass the limit although nothing else is on its way.
        """
        limit, most = self._config.spending_limit, self.most(request)
        while limit is not None and self.spent + self._held + most > limit:
            if not self._on_their_way:
                raise OverBudget(f"{self.spent:.6g} is spent and the next request may cost up to {most:.6g}")
            self._freed.clear()
            await self._freed.wait()
        self._held += most
        self._on_their_way += 1
        try:
            yield
        finally:
            self._on_their_way -= 1
            self._held = self._held - most if self._on_their_way else 0.0
            self._freed.set()

    def answered(self, reply: Reply) -> None:
        """Count an answer that was asked and paid now."""
        self.add("answers")
        self.served |= {reply.model} - {""}
        self.add("prompt_tokens", reply.prompt_tokens)
        self.add("completion_tokens", reply.completion_tokens)
        self.add("answers_without_usage", not reply.counted)
        self.counts["cost"] += reply.cost

    def lost(self, cost: float) -> None:
        """Count the most that a request can have cost whose answer never came."""
        self.counts["cost_lost"] += cost

    def shown(self) -> dict[str, float | str]:
        """What a progress bar shows beside itself."""
        counts = self.counts
        shown: dict[str, float | str] = {"tokens": counts["prompt_tokens"] + counts["completion_tokens"]}
        if self._config.price_in or self._config.price_out:
            shown["cost"] = f"{self.spent:.4g}"
        return shown | {name: counts[name] for name in ("cache_hits", "retries", "failed") if counts[name]}
