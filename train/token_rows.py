"""Token shards as numpy arrays, and the passes that a rank makes over its part of a global batch.

Invariant: rows go to ranks in turn (`rows[rank::ranks]`), and every rank makes the same number of passes, because
ZeRO 2 and 3 exchange gradients and weights in each: a rank without a row left makes an idle one, whose loss is zero.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.shards import Shards
from train.draws import Draw
from train.flops import Work
from train.packing import Packed, pack

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

IGNORED = -100
Pass = tuple[Packed, "torch.Tensor"]


class TokenRows:
    """Token shards in memory: `ids` [n, L] int32, where documents start in each row, and the source of each row."""

    def __init__(self, folder: Path) -> None:
        import numpy as np

        shards = Shards(folder, "tokens")
        self.fingerprint = shards.fingerprint
        table = shards.table()
        flat = [c.flatten().to_numpy() for c in table.column("input_ids").chunks]
        self.ids: NDArray[np.int32] = np.concatenate(flat or [np.empty(0, np.int32)]).reshape(
            len(shards), -1 if len(shards) else 0
        )
        starts = [c.flatten().to_numpy() for c in table.column("document_starts").chunks]
        counts = [c.value_lengths().to_numpy() for c in table.column("document_starts").chunks]
        self._starts = np.concatenate(starts or [np.empty(0, np.int32)])
        self._edges = np.concatenate([[0], *counts]).cumsum()
        self.sources: list[str | None] = shards.column("source")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def row_tokens(self) -> int:
        """Tokens of a row."""
        return self.ids.shape[1]

    def starts(self, row: int) -> NDArray[np.int32]:
        """The offsets in a row at which a document begins or goes on; the first is 0."""
        return self._starts[self._edges[row] : self._edges[row + 1]]

    def predicted(self, rows: Sequence[int]) -> int:
        """Tokens of these rows that have a predecessor in their own document."""
        return len(rows) * self.row_tokens - sum(len(self.starts(r)) for r in rows)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """The lengths of the documents (or parts of them) in these rows, in order."""
        import numpy as np

        return [int(n) for r in rows for n in np.diff(self.starts(r), append=self.row_tokens)]

    def packed(self, rows: Sequence[int], device: Any = "cpu") -> Pass:
        """The documents of the rows as one stream, and the [T] targets (-100 at each document's last token).

        The longest come first: attention takes equal lengths in one call, and order changes nothing else.
        """
        import numpy as np
        import torch

        pieces = [p for r in rows for p in np.split(self.ids[r], self.starts(r)[1:])]
        pieces.sort(key=len, reverse=True)
        targets = np.roll(np.concatenate(pieces).astype(np.int64), -1)
        targets[np.cumsum([len(p) for p in pieces]) - 1] = IGNORED
        return pack(pieces, device=device), torch.from_numpy(targets).to(device)

    def idle(self, device: Any = "cpu") -> Pass:
        """A pass that predicts nothing, for a rank that has no row left."""
        import torch

        few = min(2, self.row_tokens)
        return pack([self.ids[0, :few]], device=device), torch.full((few,), IGNORED, device=device)

    def sample(self, limit: int) -> list[int]:
        """Up to `limit` rows, spread evenly over the folder, with at least one of every source where that fits."""
        first: dict[str | None, int] = {}
        for row, source in enumerate(self.sources):
            first.setdefault(source, row)
        chosen = list(first.values())[:limit]
        rest = sorted(set(range(len(self))) - set(chosen))
        wanted = min(limit - len(chosen), len(rest))
        return sorted(chosen + [rest[i * len(rest) // wanted] for i in range(wanted)])


@dataclass(frozen=True)
class Passes:
    """What one rank does for one global batch.

    Attributes:
        passes: as many on every rank. predicted: predicted tokens of the whole batch. work: of the whole batch.
        draw: what was asked for. samples: the (source, row) of every row that the ranks read for it, in its order.
    """

    passes: list[Pass]
    predicted: int
    work: Work
    draw: Draw
    samples: list[tuple[int, int]]


class TokenBatches:
    """The passes of this rank for each optimiser step.

    Args:
        micro_tokens: bound on the tokens of a pass; a row that is longer is a pass of its own.
        padded, recomputed: whether the layers pad their input, and whether they run again in the backward pass, for
            the count of work.
    """

    def __init__(
        self,
        rows: TokenRows,
        *,
        micro_tokens: int,
        rank: int = 0,
        ranks: int = 1,
        device: Any = "cpu",
        padded: bool = False,
        recomputed: bool = False,
    ) -> None:
        self._rows, self._device = rows, device
        self._micro = max(1, micro_tokens // rows.row_tokens)
        self._rank, self._ranks = rank, ranks
        self._padded, self._recomputed = padded, recomputed

    def __call__(self, draw: Draw) -> Passes:
        """The passes of one optimiser step, a function of its draw alone; safe to call from one other thread.

        A draw may hold fewer rows than there are ranks: those without one make idle passes.
        """
        rows = [row for _, row in draw.samples]
        dealt = [rows[r :: self._ranks] for r in range(self._ranks)]
        cut = [self._cut(part, most=len(dealt[0])) for part in dealt]
        return Passes(
            [self._rows.packed(p, self._device) if p else self._rows.idle(self._device) for p in cut[self._rank]],
            self._rows.predicted(rows),
            sum((self._work(part) for parts in cut for part in parts), Work()),
            draw,
            [(0, row) for row in rows],
        )

    def _cut(self, rows: list[int], *, most: int) -> list[list[int]]:
        """The rows of one rank in as many even parts as the rank with `most` rows needs; some may be empty."""
        count = math.ceil(most / self._micro)
        return [rows[len(rows) * k // count : len(rows) * (k + 1) // count] for k in range(count)]

    def _work(self, part: list[int]) -> Work:
        lengths = self._rows.lengths(part)
        computed = [max(lengths)] * len(lengths) if self._padded and lengths else lengths
        again = computed if self._recomputed else ()
        return Work.of(lengths, computed=computed, again=again, head_tokens=sum(lengths))
