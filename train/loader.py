"""The next batches, made in a background thread while the device computes.

Invariant: the consumer sees exactly what it would see without the thread: the same items in the same order, and the
same exception in the place of the item that failed. The thread may read shards, tokenise with a fast tokenizer and
work with numpy; it must not use a random generator of the process nor a collective.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterates over `make(step)` for every step, up to `depth` items ahead.

    Use it as a context manager, so that the thread ends with the block, also after an exception or ^C:

        with Prefetch(make, range(first, steps)) as batches:
            for batch in batches: ...

    Args:
        make: builds the item of one step; an exception that it raises comes out of the iteration as it is.
        steps: the steps, in order.
        depth: items held ready; 0 makes each item when it is asked for, without a thread.
    """

    def __init__(self, make: Callable[[int], T], steps: range, *, depth: int = 2) -> None:
        self._make, self._steps, self._depth = make, iter(steps), depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._ended = self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        if depth > 0:
            # a daemon: a batch that hangs in a file system must not keep the process alive
            self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        for step in self._steps:
            try:
                item = self._make(step)
            except BaseException as error:  # the consumer's to judge, ^C in a thread included
                with self._changed:
                    self._error = error
                    self._changed.notify_all()
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                if self._closed:
                    return
                self._ready.append(item)
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if self._thread is None:
            return self._make(next(self._steps))
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready or self._error or self._ended or self._closed))
            if self._ready:
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                error, self._error, self._ended = self._error, None, True
                raise error
            raise StopIteration

    def close(self) -> None:
        """End the thread after the item it is making; what is ready is dropped. Safe to call twice."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=60)

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
