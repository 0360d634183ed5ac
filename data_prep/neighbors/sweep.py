"""Every score of a block of queries against the corpus, tile by tile, each tile seen once and forgotten.

Invariant: a score is computed in a matrix product of one fixed shape, at one place in it, by one thread: tiles start at
multiples of their size, the last ones are filled up with zeros, and the shape follows from the numbers of queries and
of corpus rows alone. So a score computed in float32 has the same bits whatever the blocks, threads and processes.

The corpus is read in panels of some thousand rows, the next one while the scores of the last are computed, so it may be
larger than the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from data_prep.embed.vectors import Vectors

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
    """The shape for a search; tiles of 512 × 1024 and their vectors stay in the cache of a core.

    Args:
        panel_rows: rows of a panel, rounded up to whole tiles; by default 16,384, less for long vectors.
    """

    def fit(count: int, most: int) -> int:
        size = 64
        while size < min(count, most):
            size *= 2
        return size

    width = -(-(dimension + euclidean) // _ALIGNED) * _ALIGNED
    rows, columns = fit(query_rows, 4096 if cuda else 512), fit(corpus_rows, 8192 if cuda else 1024)
    wanted = panel_rows or max(1024, (1 << (28 if cuda else 24)) // width)
    return Shape(rows, columns, -(-min(wanted, corpus_rows) // columns) * columns, width)


class Panels:
    """A corpus in panels [panel, width] float32, filled up with zeros; on a GPU they stay there while there is room."""

    def __init__(self, corpus: Vectors, shape: Shape, *, euclidean: bool, device: torch.device) -> None:
        self.shape, self.rows = shape, corpus.rows
        self.count = -(-corpus.rows // shape.panel)
        self._corpus, self._euclidean, self._device = corpus, euclidean, device
        self._buffers: dict[int, torch.Tensor] = {}
        self._kept: dict[int, torch.Tensor] = {}

    def rows_of(self, number: int) -> int:
        """Corpus rows in a panel."""
        return min(self.shape.panel, self.rows - number * self.shape.panel)

    def load(self, number: int) -> torch.Tensor:
        """One panel; valid until the panel after the next is loaded."""
        import torch

        if number in self._kept:
            return self._kept[number]
        slot = number % 2
        if slot not in self._buffers:
            self._buffers[slot] = torch.zeros((self.shape.panel, self.shape.width))
        start, valid = number * self.shape.panel, self.rows_of(number)
        lay_out(self._corpus, start, start + valid, self._buffers[slot], side="corpus" if self._euclidean else None)
        self._buffers[slot][valid:] = 0.0
        if self._device.type != "cuda":
            return self._buffers[slot]
        panel = self._buffers[slot].to(self._device)
        free, _ = torch.cuda.mem_get_info(self._device)
        if free > 8 * panel.nbytes:
            self._kept[number] = panel
        return panel


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


def multiply(queries: torch.Tensor, rows: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Inner products [q, n] of float32 rows [q, d] and [n, d], in `out` or in a tensor of their own.

    torch.mm on the CPU is MKL, which uses half the width of an AMD core's vectors; oneDNN, which torch also brings and
    calls for compiled linear layers, uses all of it (here 210 instead of 97 GFLOP/s a core).
    """
    import torch

    if queries.device.type == "cpu" and torch.backends.mkldnn.is_available():
        fused = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
        if fused is not None:
            scores: torch.Tensor = fused(queries, rows, None, "none", [], "")
            return scores
    return torch.mm(queries, rows.T, out=out)


class Visitor(Protocol):
    """Whoever looks at the scores. Calls for different rows come from different threads, those for one row in order."""

    def tile(
        self, scores: torch.Tensor, first_row: int, rows: int, columns: int, offset: int, base: int, panel: torch.Tensor
    ) -> None:
        """Look at scores[:rows, :columns]: of the block's rows from `first_row` and panel rows from `offset`.

        `base` is the corpus row of the panel's first row. The scores may be overwritten.
        """
        ...

    def end_panel(self, first_row: int, rows: int, base: int, panel: torch.Tensor) -> None:
        """The panel is about to be forgotten."""
        ...


def sweep(
    queries: torch.Tensor, rows: int, panels: Panels, visitor: Visitor, told: Callable[[int], None] | None = None
) -> None:
    """Show every score of a block of queries [whole tiles, width], of which `rows` are real, to the visitor.

    Args:
        told: is told the corpus rows that are done.
    """
    import torch

    shape = panels.shape
    starts = range(0, rows, shape.rows)
    outs: SimpleQueue[torch.Tensor] = SimpleQueue()

    def one(first: int, panel: torch.Tensor, number: int) -> None:
        out, base, valid = outs.get(), number * shape.panel, panels.rows_of(number)
        count = min(shape.rows, rows - first)
        for offset in range(0, valid, shape.columns):
            scores = multiply(queries[first : first + shape.rows], panel[offset : offset + shape.columns], out)
            visitor.tile(scores, first, count, min(shape.columns, valid - offset), offset, base, panel)
        visitor.end_panel(first, count, base, panel)
        outs.put(out)

    with _threads(1 if queries.is_cuda else None) as (threads, pool):
        for _ in range(threads):
            outs.put(torch.empty((shape.rows, shape.columns), device=queries.device))
        coming = pool.submit(panels.load, 0) if pool else None
        for number in range(panels.count):
            panel = coming.result() if coming else panels.load(number)
            if pool is None:
                for first in starts:
                    one(first, panel, number)
            else:
                if number + 1 < panels.count:
                    coming = pool.submit(panels.load, number + 1)
                for done in [pool.submit(one, first, panel, number) for first in starts]:
                    done.result()
            if told:
                told(panels.rows_of(number))


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
