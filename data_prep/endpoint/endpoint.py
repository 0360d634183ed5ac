"""Many requests to one endpoint, from code that is not asynchronous.

    with Endpoint(config, log=folder) as endpoint:
        for request, reply in endpoint.run(requests, progress=progress):
            ...

The requests run in an event loop on a thread of its own; the caller's thread takes the answers as they come, so ^C and
SIGTERM reach it as everywhere else: what was answered is in the log, what was on its way is dropped.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from data_prep.endpoint.account import Account
from data_prep.endpoint.config import EndpointConfig
from data_prep.endpoint.log import RequestLog
from data_prep.endpoint.request import Reply, Request
from data_prep.endpoint.session import Failed, Session, Stopped
from data_prep.progress import Progress

T = TypeVar("T")
R = TypeVar("R")
_END_WITHIN_S = 10.0


class Endpoint:
    """An endpoint with its log and its account; a context manager.

    Args:
        log: folder of the request log; None keeps none, so a killed run asks everything again.
        log_name: of its files (see `RequestLog`).

    Attributes:
        counts, served: see `Account`.

    Raises:
        UserError: the log cannot be written, the key's variable is unset, openai is not installed.
    """

    def __init__(self, config: EndpointConfig, *, log: Path | None = None, log_name: str = "requests") -> None:
        config.key()  # told before anything is prepared
        self._config = config
        self._log = RequestLog(log, name=log_name) if log is not None else None
        self._account = Account(config, before=self._log.spent if self._log is not None else 0.0)
        self.counts, self.served = self._account.counts, self._account.served

    def run(
        self, requests: Iterable[Request], *, progress: Progress | None = None
    ) -> Iterator[tuple[Request, Reply | Failed]]:
        """Each request with its reply, or with why it was given up, in the order in which they end.

        `requests` is read lazily, some of them ahead. Raises `UserError` where the endpoint is down, rate-limited for
        ever, refuses the key or the model, or the spending limit is reached; all answers so far are in the log then.
        """

        async def ask(session: Session, request: Request) -> Reply:
            return await session.ask(request)

        return self.map(ask, requests, progress=progress)

    def map(
        self,
        work: Callable[[Session, T], Awaitable[R]],
        items: Iterable[T],
        *,
        progress: Progress | None = None,
    ) -> Iterator[tuple[T, R | Failed]]:
        """Each item with what `work` makes of it by asking the session as often as it likes.

        A `Failed` that `work` lets pass becomes the item's result; any other exception ends the run. `work` and the
        iterator `items` run on the event loop's thread. `progress` is advanced by one for each item.

        Raises:
            UserError: as `run`.
        """
        results: queue.SimpleQueue[tuple[T, R | Failed] | _End] = queue.SimpleQueue()
        runner = _Runner(self._config, self._account, self._log, work, items, results)
        thread = threading.Thread(target=runner.run, name="endpoint", daemon=True)
        thread.start()
        try:
            while not isinstance(result := results.get(), _End):
                runner.taken()
                if progress:
                    progress.advance(1, **self._account.shown())
                yield result
            if result.error is not None:
                raise result.error
        finally:
            runner.cancel()
            thread.join(_END_WITHIN_S)
            if self._log is not None:
                self._log.sync()

    def shown(self) -> dict[str, float | str]:
        """Tokens, cost, retries: what a progress bar shows beside itself."""
        return self._account.shown()

    def knows(self, request: Request) -> bool:
        """Whether the log has the reply to this request."""
        return self._log is not None and self._log.find(request) is not None

    def forget_replies(self) -> None:
        """Drop the replies from this process's log: they are stored elsewhere now. What was spent stays."""
        if self._log is not None:
            self._log.forget_replies()

    def close(self) -> None:
        """Have the log on the disk and let go of it."""
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _End:
    """The last thing in the queue of results."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


class _Runner(Generic[T, R]):
    """The event loop's side of `Endpoint.map`."""

    def __init__(
        self,
        config: EndpointConfig,
        account: Account,
        log: RequestLog | None,
        work: Callable[[Session, T], Awaitable[R]],
        items: Iterable[T],
        results: queue.SimpleQueue[tuple[T, R | Failed] | _End],
    ) -> None:
        self._config, self._account, self._log = config, account, log
        self._work, self._items, self._results = work, items, results
        self._loop: asyncio.AbstractEventLoop | None = None
        self._main: asyncio.Task[None] | None = None
        self._cancelled = False

    def run(self) -> None:
        """Run to the end, on a thread of its own."""
        error: BaseException | None = None
        try:
            asyncio.run(self._drive())
        except asyncio.CancelledError:
            pass
        except BaseException as raised:
            error = raised
        self._results.put(_End(error))

    def taken(self) -> None:
        """The caller took a result: one more item may begin."""
        self._call(lambda: self._ahead.release())

    def cancel(self) -> None:
        """Drop what is on its way. Does nothing after the end."""
        self._cancelled = True
        self._call(lambda: self._main.cancel() if self._main else None)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            if self._loop:
                self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has ended
            pass

    async def _drive(self) -> None:
        self._ahead = asyncio.Semaphore(4 * self._config.concurrency)
        self._main, self._loop = asyncio.current_task(), asyncio.get_running_loop()
        if self._cancelled:
            return
        tasks: set[asyncio.Task[None]] = set()
        async with Session(self._config, self._account, self._log) as session:
            try:
                for item in self._items:
                    await self._ahead.acquire()
                    if session.stopped or any(task.done() and task.exception() for task in tasks):
                        break
                    tasks = {task for task in tasks if not task.done()}
                    tasks.add(asyncio.create_task(self._one(session, item)))
                await self._finish(session, tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if session.stopped:
                raise session.stopped

    async def _finish(self, session: Session, tasks: set[asyncio.Task[None]]) -> None:
        """Wait for all; not for those on their way where nothing can come of them."""
        while tasks and not (session.stopped and session.final):
            done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # raises what is a defect

    async def _one(self, session: Session, item: T) -> None:
        try:
            result: R | Failed = await self._work(session, item)
        except Failed as failed:
            result = failed
        except Stopped:
            self._ahead.release()
            return
        except BaseException:
            self._ahead.release()  # the feeder may be waiting, and looks for errors when it goes on
            raise
        self._results.put((item, result))
