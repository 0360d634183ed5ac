"""Every score of a block of queries against the corpus, tile by tile, each tile seen once and forgotten.

Invariant: a score is computed in a matrix product of one fixed shape, at one place in it, by one thread: tiles start at
multiples of their size, the last ones are filled up with zeros, and the shape follows from the numbers of queries and
of corpus rows alone. So a score computed in float32 has the same bits whatever the blocks, threads and processes.

The corpus is read in panels of some thousand rows, the next one while the scores of the last are computed, so it may be
larger than the memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol

from data_prep.neighbors.product import multiply, packed

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    import torch

    from data_prep.embed.vectors import Vectors

SLOTS = 3
"""Panels that are held at a time: two that are being multiplied and the one that is loaded."""
_READ_ROWS = 2048
_ALIGNED = 16
"""float32 numbers in 64 bytes: rows of another length start unaligned and may take another path through the product."""


@dataclass(frozen=True)
class Shape:
    """Rows and columns of a tile, rows of a panel of the corpus, and numbers in a row as they are laid out."""

    rows: int
    columns: int
    panel: int
    width: int


def shape_of(
    query_rows: int, corpus_rows: int, dimension: int, *, euclidean: bool, cuda: bool, panel_rows: int | None = None
) -> Shape:
    """The shape for a search; tiles of 512 × 2048 keep the counts of a row in the cache for a while.

    Args:
        panel_rows: rows of a panel, rounded up to whole tiles; by default 4,096, less for long vectors.
    """

    def fit(count: int, most: int) -> int:
        size = 64
        while size < min(count, most):
            size *= 2
        return size

    width = -(-(dimension + euclidean) // _ALIGNED) * _ALIGNED
    rows = fit(query_rows, 4096) if cuda else fit(-(-query_rows // 4), 512)  # few queries too give several threads work
    columns = fit(corpus_rows, 8192 if cuda else 2048)
    wanted = panel_rows or max(1024, (1 << (28 if cuda else 22)) // width)
    return Shape(rows, columns, -(-min(wanted, corpus_rows) // columns) * columns, width)


@dataclass(frozen=True)
class Panel:
    """Some thousand rows of the corpus.

    Attributes:
        base: the corpus row of the first.
        valid: how many are real; those behind are zero.
        vectors: float32 [panel, width].
        tiles: the same rows, those of each tile as the product likes them.
    """

    base: int
    valid: int
    vectors: torch.Tensor
    tiles: list[torch.Tensor]


class Panels:
    """A corpus in panels of float32, filled up with zeros; on a GPU they stay there while there is room."""

    def __init__(self, corpus: Vectors, shape: Shape, *, euclidean: bool, device: torch.device) -> None:
        self.shape, self.rows = shape, corpus.rows
        self.count = -(-corpus.rows // shape.panel)
        self._corpus, self._euclidean, self._device = corpus, euclidean, device
        self._buffers: dict[int, torch.Tensor] = {}
        self._kept: dict[int, Panel] = {}

    def rows_of(self, number: int) -> int:
        """Corpus rows in a panel."""
        return min(self.shape.panel, self.rows - number * self.shape.panel)

    def load(self, number: int) -> Panel:
        """One panel; valid until the panel that comes `SLOTS` later is loaded."""
        import torch

        if number in self._kept:
            return self._kept[number]
        cuda, shape = self._device.type == "cuda", self.shape
        slot = 0 if cuda else number % SLOTS
        if slot not in self._buffers:
            self._buffers[slot] = zeros(shape.panel, shape.width)
        vectors, base, valid = self._buffers[slot], number * shape.panel, self.rows_of(number)
        lay_out(self._corpus, base, base + valid, vectors, side="corpus" if self._euclidean else None)
        vectors[valid:] = 0.0
        vectors = vectors.to(self._device)
        tiles = [vectors[offset : offset + shape.columns] for offset in range(0, valid, shape.columns)]
        panel = Panel(base, valid, vectors, tiles if cuda else [packed(rows, shape.rows) for rows in tiles])
        if cuda and torch.cuda.mem_get_info(self._device)[0] > 8 * vectors.nbytes:
            self._kept[number] = panel
        return panel


def zeros(rows: int, width: int) -> torch.Tensor:
    """Float32 zeros of NumPy, which asks the system for large pages; torch does not, and the kernels feel it."""
    import numpy as np
    import torch

    return torch.from_numpy(np.zeros((rows, width), dtype=np.float32))


def lay_out(
    vectors: Vectors, start: int, stop: int, out: torch.Tensor, *, side: Literal["corpus", "query"] | None
) -> None:
    """Copy rows into `out`, behind each of them -|row|²/2 (corpus) or 1 (query) for distances.

    q·d - |d|²/2 orders the rows d as their distance to q does.
    """
    import numpy as np

    rows, dimension = out.numpy(), vectors.dimension
    for first in range(start, stop, _READ_ROWS):
        last = min(first + _READ_ROWS, stop)
        block, own = vectors.read(first, last), slice(first - start, last - start)
        rows[own, :dimension] = block
        if side == "corpus":
            rows[own, dimension] = np.square(block, dtype=np.float64).sum(axis=1) / -2
        elif side == "query":
            rows[own, dimension] = 1.0


class Visitor(Protocol):
    """Whoever looks at the scores. Calls for different rows come from different threads, those for one row in order."""

    def tile(self, scores: torch.Tensor, first_row: int, rows: int, columns: int, offset: int, panel: Panel) -> None:
        """Look at scores[:rows, :columns]: of the block's rows from `first_row` and panel rows from `offset`.

        The scores may be overwritten.
        """
        ...

    def end_panel(self, first_row: int, rows: int, panel: Panel) -> None:
        """The panel is about to be forgotten."""
        ...


def sweep(
    queries: torch.Tensor, rows: int, panels: Panels, visitor: Visitor, told: Callable[[int], None] | None = None
) -> None:
    """Show every score of a block of queries [whole tiles, width], of which `rows` are real, to the visitor.

    This thread loads panels, the others go from one panel to the next without waiting for each other.

    Args:
        told: is told the corpus rows that are done.
    """
    import torch

    shape = panels.shape
    starts = range(0, rows, shape.rows)
    outs: SimpleQueue[torch.Tensor] = SimpleQueue()

    def one(first: int, panel: Panel, before: Future[None] | None) -> None:
        if before is not None:
            before.result()  # the same queries and the panel before: was started earlier
        out, count = outs.get(), min(shape.rows, rows - first)
        for number, tile in enumerate(panel.tiles):
            offset = number * shape.columns
            scores = multiply(queries[first : first + shape.rows], tile, out)
            visitor.tile(scores, first, count, min(shape.columns, panel.valid - offset), offset, panel)
        visitor.end_panel(first, count, panel)
        outs.put(out)

    def end(running: list[Future[None]], number: int) -> None:
        for done in running:
            done.result()
        if told:
            told(panels.rows_of(number))

    with _threads(1 if queries.is_cuda else None) as (threads, pool):
        for _ in range(threads):
            outs.put(torch.empty((shape.rows, shape.columns), device=queries.device))
        if pool is None:
            for number in range(panels.count):
                panel = panels.load(number)
                for first in starts:
                    one(first, panel, None)
                end([], number)
            return
        flying: deque[list[Future[None]]] = deque()
        before: list[Future[None]] | list[None] = [None] * len(starts)
        try:
            for number in range(panels.count):
                if len(flying) == SLOTS:
                    end(flying.popleft(), number - SLOTS)
                panel = panels.load(number)
                before = [pool.submit(one, first, panel, last) for first, last in zip(starts, before, strict=True)]
                flying.append(before)
            while flying:
                end(flying.popleft(), panels.count - 1 - len(flying))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _threads(most: int | None) -> Iterator[tuple[int, ThreadPoolExecutor | None]]:
    """As many threads as torch was given, and in each of them full float32 products by one thread.

    TF32 (or bfloat16 on some CPUs) would break the bound on the rounding error.
    """
    from concurrent.futures import ThreadPoolExecutor

    import torch

    given, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    threads = min(given, most or given)
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        if threads == 1:
            yield 1, None
        else:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                yield threads, pool
    finally:
        torch.set_num_threads(given)
        torch.set_float32_matmul_precision(precision)
